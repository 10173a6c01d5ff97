from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.exporting import onnx_file, writing
from bottleneck_opt.files import read_bytes
from tests.networks import Branches, Residual, classifier, conv, noise, seeded
from tests.test_cli import FACTORY, run
from tests.zoo.families import find_entry

X = noise(6, 3, 8, 8, dtype=torch.float32)
SIGNAL = noise(6, 4, 32, dtype=torch.float32)


def decoder() -> nn.Module:
    """Down and up again."""
    return nn.Sequential(conv(3, 16, stride=2), nn.ReLU(), nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1))


def tiny() -> nn.Module:
    """One convolution, for what does not depend on the model."""
    return seeded(lambda: nn.Sequential(conv(3, 4), nn.ReLU()), dtype=torch.float32)


def listener() -> nn.Module:
    """Convolutions of a signal."""
    return nn.Sequential(nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, stride=2), nn.Tanh())


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "reduce": (lambda: classifier(16), X, ["reduce"]),
    "expand": (lambda: classifier(16), X, ["expand"]),
    "tucker and spatial": (lambda: classifier(24), X, ["tucker", "spatial"]),
    "dropped channels": (lambda: classifier(16), X, ["select"]),
    "residual with batch norm": (Residual, X, ["reduce", "expand"]),
    "transposed": (decoder, X, ["reduce", "expand"]),
    "one axis": (listener, SIGNAL, ["reduce", "expand"]),
}


def compress(make: Callable[[], nn.Module], data: Tensor, passes: list[str], budget: float = 0.6) -> bo.Result:
    net = seeded(make, dtype=torch.float32)
    return bo.optimize(net, data[:1], calibration=data, passes=passes, budget=budget, progress=False)


def run_onnx(path: Path, *arguments: Tensor) -> list[Tensor]:
    """What ONNX Runtime gives, independently of the package."""
    session = importlib.import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {each.name: value.numpy() for each, value in zip(session.get_inputs(), arguments, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, given)]


@pytest.mark.parametrize("case", CASES)
def test_a_result_round_trips_through_both_formats_at_any_batch(case: str, tmp_path: Path) -> None:
    make, data, passes = CASES[case]
    result = compress(make, data, passes)
    assert {step.pass_name for step in result.plan.steps} <= set(passes)
    written = result.export(tmp_path / "model.onnx")
    assert written.dynamic_batch
    assert written.difference is not None
    assert written.difference < 1e-5
    torch_written = result.export(tmp_path / "model.pt2")
    assert torch_written.difference == 0
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 2, 5):
        with torch.no_grad():
            expected = result.model(data[:count])
        assert torch.equal(loaded(data[:count]), expected)
        (got,) = run_onnx(tmp_path / "model.onnx", data[:count])
        assert torch.allclose(got, expected, atol=1e-5)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.pt2"}


def test_a_shared_bottleneck_is_exported_too(tmp_path: Path) -> None:
    result = compress(Branches, X, ["shared"], 0.7)
    written = result.export(tmp_path / "model.onnx")
    (got,) = run_onnx(tmp_path / "model.onnx", X[:1])
    assert torch.allclose(got, result.model(X[:1]), atol=1e-5)
    assert written.dynamic_batch


class Pair(nn.Module):
    """Two inputs by name, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 8)

    def forward(self, image: Tensor, scale: Tensor, flip: bool = False) -> dict[str, Tensor]:
        y = self.conv(image) * scale[:, None, None, None]
        return {"features": y.flip(-1) if flip else y, "mean": y.mean((1, 2, 3))}


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_several_inputs_and_outputs_keep_their_names_and_order(suffix: str, tmp_path: Path) -> None:
    net = seeded(Pair, dtype=torch.float32)
    call = {"image": X[:2], "scale": torch.tensor([1.0, 2.0])}
    written = bo.export(net, call, tmp_path / f"net.{suffix}")
    assert written.inputs == ("image: batch x 3 x 8 x 8 float32", "scale: batch float32")
    expected = net(X[:5], torch.arange(5.0))
    if suffix == "onnx":
        got = run_onnx(written.path, X[:5], torch.arange(5.0))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected.values(), strict=True))
    else:
        loaded = torch.export.load(written.path).module()(image=X[:5], scale=torch.arange(5.0))
        assert {name: torch.equal(value, expected[name]) for name, value in loaded.items()} == {
            "features": True, "mean": True,
        }  # fmt: skip


def test_the_names_of_axes_are_in_the_onnx_file(tmp_path: Path) -> None:
    bo.export(tiny(), X[:1], tmp_path / "net.onnx")
    session = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "net.onnx")
    assert [each.shape for each in session.get_inputs()] == [["batch", 3, 8, 8]]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("output", ["batch", 4, 8, 8])]


class Counts(nn.Module):
    """Its forward holds the number of examples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1).sum(1)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_model_for_one_batch_only_is_exported_for_it_with_the_reason(suffix: str, tmp_path: Path) -> None:
    written = bo.export(Counts(), X[:2], tmp_path / f"net.{suffix}")
    assert not written.dynamic_batch
    assert written.inputs == ("x: 2 x 3 x 8 x 8 float32",)
    assert any(note.startswith("takes 2 examples a call, no other number: ") for note in written.notes)


def test_a_fixed_batch_can_be_asked_for(tmp_path: Path) -> None:
    written = bo.export(tiny(), X[:3], tmp_path / "net.pt2", dynamic_batch=False)
    assert not written.dynamic_batch
    assert written.notes == ()
    assert "3 x 3 x 8 x 8" in str(written)


def test_the_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    onnx = importlib.import_module("onnx")
    written = bo.export(tiny(), X[:1], tmp_path / "net.onnx", opset=18)
    assert written.opset == 18
    assert [each.version for each in onnx.load(written.path).opset_import if not each.domain] == [18]
    with pytest.raises(bo.InputError, match=r"opset: got 18 for a \.pt2 file, which has none"):
        bo.export(nn.ReLU(), X[:1], tmp_path / "net.pt2", opset=18)


def test_neither_examples_nor_pickles_are_in_a_pt2_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = torch.full((1, 3, 8, 8), 1234.5)
    bo.export(tiny(), secret, tmp_path / "net.pt2")
    assert secret.numpy()[0, 0, 0, :4].tobytes() not in read_bytes(tmp_path / "net.pt2", "the file")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, refuse)
    assert torch.export.load(tmp_path / "net.pt2").module()(X).shape == (6, 4, 8, 8)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    net = seeded(Residual, dtype=torch.float32).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bo.export(net, X[:1], tmp_path / "net.pt2")
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Decides(nn.Module):
    """What runs depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_model_that_looks_at_values_is_refused_with_the_line(
    suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = r"Decides: .* depends on the values of a tensor, at test_exporting\.py:\d+: if x\.sum\(\) > 0:"
    with pytest.raises(bo.ExportError, match=told):
        bo.export(Decides(), X[:1], tmp_path / f"net.{suffix}")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


class Texts(nn.Module):
    """Gives something that is no tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x + 1, "text"


def test_what_no_file_can_hold_is_told(tmp_path: Path) -> None:
    with pytest.raises(bo.ExportError, match=r"\.pt2: .* Let the model take and return tensors"):
        bo.export(Texts(), X[:1], tmp_path / "net.pt2")
    with pytest.raises(bo.ExportError, match=r"\.onnx: .* Let it take and return tensors only"):
        bo.export(Texts(), X[:1], tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Exotic(nn.Module):
    """Uses an operation that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.special.airy_ai(x)
        return y


def test_an_operation_without_counterpart_is_named_with_its_line(tmp_path: Path) -> None:
    told = r"operation aten\.special_airy_ai\S* \(y: .*airy_ai\(x\)\) has no ONNX counterpart\. .*pt2"
    with pytest.raises(bo.ExportError, match=told):
        bo.export(Exotic(), X[:1], tmp_path / "net.onnx")
    assert bo.export(Exotic(), X[:1], tmp_path / "net.pt2").difference == 0


def test_a_type_that_onnx_runtime_does_not_know_is_told(tmp_path: Path) -> None:
    with pytest.raises(bo.ExportError, match=r"ONNX Runtime cannot run what was made: .* check=False"):
        bo.export(tiny().double(), X[:1], tmp_path / "net.onnx")
    written = bo.export(tiny().double(), X[:1], tmp_path / "net.onnx", check=False)
    assert (written.difference, written.checked) == (None, "")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(
        bo.ExportError, match=rf"\.onnx needs {missing}, not installed here\. .*bottleneck-opt\[export\]"
    ):
        bo.export(nn.ReLU(), X[:1], tmp_path / "net.onnx")


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.pt2").write_text("older")
    monkeypatch.setattr(writing, "run_pt2", lambda content: lambda x: x * 1.01)
    with pytest.raises(bo.ExportError, match=r"does not compute what the model does: its output differs by 1\.0e-02"):
        bo.export(nn.Identity(), X[:1], tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_that_no_onnx_file_can_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    with pytest.raises(bo.ExportError, match=r"one file holds 2 GB at most\. Export to \.pt2"):
        bo.export(tiny(), X[:1], tmp_path / "net.onnx")


def test_another_suffix_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(bo.ExportError, match=r"got a '\.pth' file.*expected \.onnx .* or \.pt2"):
        bo.export(nn.ReLU(), X[:1], tmp_path / "net.pth")
    with pytest.raises(bo.FileError, match=r"cannot be written: no such file or directory"):
        bo.export(nn.ReLU(), X[:1], tmp_path / "nowhere" / "net.pt2")


ZOO = (
    "networks/tcn", "networks/wavenet", "networks/audio_unet", "networks/gan_generator", "networks/crnn",
    "networks/convlstm", "networks/transformer_encoder", "networks/super_resolution", "networks/autoencoder3d",
    "networks/gan_discriminator", "yolo/c2f_anchor_free", "hand_written/tied_weights", "hand_written/shared_block",
    "hand_written/weight_norm", "hand_written/channels_last", "hand_written/dilated", "hand_written/grouped",
    "torchvision/mobilenet_v3_small", "torchvision/lraspp_mobilenet_v3_large", "timm/resnet.test_resnet",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_rewritten_models_of_all_kinds_are_exported(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models' own packages
        entry = find_entry(name)
        torch.manual_seed(0)
        model = entry.build().eval()
        inputs = entry.inputs(model)
        result = bo.optimize(model, inputs, calibration_limit=4, passes=["reduce", "expand"], progress=False)
    assert result.plan.steps or name == "networks/transformer_encoder"
    for form in ("onnx", "pt2"):
        written = result.export(tmp_path / f"model.{form}")
        assert written.difference is not None
        assert written.difference < 1e-4
        assert written.dynamic_batch is (name != "networks/convlstm")  # its code holds the number of examples


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    model, out = f"{tmp_path / 'net.py'}:net", tmp_path / "out"
    assert run("optimize", model, "--input", "1x3x8x8", "--out", out) == 0
    capsys.readouterr()
    assert run("export", out, model, "-o", tmp_path / "net.onnx") == 0
    assert "batch x 3 x 8 x 8" in capsys.readouterr().out
    net = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16))
    (got,) = run_onnx(tmp_path / "net.onnx", X)
    with torch.no_grad():
        assert np.allclose(got, bo.load(out, net)(X), atol=1e-5)
    assert run("export", out, model, "-o", tmp_path / "net.pt2", "--fixed-batch", "--input", "2x3x4x4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == ["input: 2 x 3 x 4 x 4 float32"]
    assert told["difference"] == 0
    assert run("export", out, model, "-o", tmp_path / "net.txt") == 1
