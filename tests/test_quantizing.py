from __future__ import annotations

import importlib
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
from bottleneck_opt.exporting import quantizing
from bottleneck_opt.images import Pictures
from bottleneck_opt.inputs import noise_batches
from bottleneck_opt.tracing import choose_inputs
from bottleneck_opt.working_copy import working_copy
from tests.networks import Branches, Residual, classifier, conv, noise, seeded
from tests.test_cli import FACTORY, run
from tests.test_exporting import CASES, Pair, X, compress, decoder, run_onnx, tiny
from tests.zoo.families import find_entry

DATA = noise(32, 3, 8, 8, dtype=torch.float32)
INT8: dict[str, Any] = {"quantize": "int8", "calibration": DATA}


def make_classifier() -> nn.Module:
    """Logits of three classes."""
    return seeded(
        lambda: nn.Sequential(conv(3, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("case", ["reduce", "dropped channels", "residual with batch norm", "transposed", "one axis"])
def test_a_result_in_8_bits_is_close_to_the_model_at_any_batch(case: str, tmp_path: Path) -> None:
    make, data, passes = CASES[case]
    result = compress(make, data, passes)
    calibration = noise(32, *data.shape[1:], dtype=torch.float32)
    written = result.export(tmp_path / "model.onnx", quantize="int8", calibration=calibration)
    told = written.quantized
    assert told is not None
    assert told.change is not None
    assert 0 < told.change < 5e-3
    assert sum(told.operators[name] for name in ("Conv", "ConvTranspose", "Gemm") if name in told.operators) >= 2
    for count in (1, 5):
        with torch.no_grad():
            expected = result.model(calibration[:count])
        (got,) = run_onnx(tmp_path / "model.onnx", calibration[:count])
        assert float((got - expected).square().mean() / expected.var()) < 2e-2
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx"}


def test_the_weights_take_a_quarter_of_the_room(tmp_path: Path) -> None:
    wide = seeded(lambda: nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 64)), dtype=torch.float32)
    plain = bo.export(wide, DATA[:1], tmp_path / "plain.onnx")
    written = bo.export(wide, DATA[:1], tmp_path / "small.onnx", **INT8)
    assert written.quantized is not None
    assert written.quantized.float_size == plain.size
    assert written.size == (tmp_path / "small.onnx").stat().st_size < 0.35 * plain.size
    onnx = importlib.import_module("onnx")
    kinds = {onnx.TensorProto.DataType.Name(each.data_type) for each in onnx.load(written.path).graph.initializer}
    assert {"INT8", "UINT8", "INT32"} <= kinds


def test_a_quarter_of_the_examples_is_held_out_and_compared_on(tmp_path: Path) -> None:
    told = bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", **INT8).quantized
    assert told is not None
    assert (told.examples, told.compared, told.held_out) == (24, 8, True)
    few = bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", quantize="int8", calibration=DATA[:3]).quantized
    assert few is not None
    assert (few.examples, few.compared, few.held_out) == (3, 3, False)
    some = bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", **INT8, calibration_limit=16).quantized
    assert some is not None
    assert some.examples + some.compared == 16


def test_no_range_is_taken_from_what_is_held_out(tmp_path: Path) -> None:
    examples = torch.full((8, 3, 8, 8), 0.5)
    examples[3::4] = 50.0
    examples += 0.01 * noise(*examples.shape, dtype=torch.float32)
    with pytest.raises(bo.ExportError, match=r"differs from the model's by .* of its variance, as much as a constant"):
        bo.export(tiny(), examples[:1], tmp_path / "net.onnx", quantize="int8", calibration=examples.split(1))
    assert list(tmp_path.iterdir()) == []


def test_top_classes_are_compared_where_there_are_classes(tmp_path: Path) -> None:
    told = bo.export(make_classifier(), DATA[:1], tmp_path / "net.onnx", **INT8)
    assert told.quantized is not None
    assert told.quantized.agreement is not None
    assert told.quantized.agreement >= 7 / 8
    assert "keep their top class (8 examples, held out)" in str(told)
    picture = bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", **INT8)
    assert picture.quantized is not None
    assert picture.quantized.agreement is None
    assert "top class" not in str(picture)


def test_what_stays_in_float_is_told(tmp_path: Path) -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 16), nn.Sigmoid(), conv(16, 16)), dtype=torch.float32)
    written = bo.export(net, DATA[:1], tmp_path / "net.onnx", **INT8)
    assert written.quantized is not None
    assert (written.quantized.operators, written.quantized.left) == ({"Conv": 2}, {"Sigmoid": 1})
    assert "int8: 2 Conv; in float32: 1 Sigmoid" in str(written)


def test_a_file_that_became_no_smaller_is_told(tmp_path: Path) -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 2), nn.ReLU()), dtype=torch.float32)
    written = bo.export(net, DATA[:1], tmp_path / "net.onnx", **INT8)
    assert any("no smaller than in float32" in note for note in written.notes)


def test_how_images_were_prepared_is_told(tmp_path: Path) -> None:
    pictures = Pictures(DATA, "calibration: the 32 images in a folder, resized")
    written = bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", quantize="int8", calibration=pictures)
    assert pictures.note in written.notes


def test_a_shared_bottleneck_is_quantised_too(tmp_path: Path) -> None:
    result = compress(Branches, X, ["shared"], 0.7)
    written = result.export(tmp_path / "model.onnx", **INT8)
    assert written.quantized is not None
    assert (written.quantized.change or 1) < 5e-3


def test_without_the_check_nothing_is_compared(tmp_path: Path) -> None:
    written = bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", **INT8, check=False)
    assert written.quantized is not None
    assert (written.difference, written.quantized.change, written.quantized.compared) == (None, None, 0)
    assert "changed by" not in str(written)


@pytest.mark.parametrize("form", ["dicts", "tuples"])
def test_data_of_several_inputs_have_the_form_of_the_call(form: str, tmp_path: Path) -> None:
    net, scale = seeded(Pair, dtype=torch.float32), torch.linspace(1, 2, 32)
    batches: list[Any] = list(zip(DATA.split(4), scale.split(4), strict=True))
    if form == "dicts":
        batches = [{"image": image, "scale": number} for image, number in batches]
    written = bo.export(net, batches[0], tmp_path / "net.onnx", quantize="int8", calibration=batches)
    assert written.quantized is not None
    got = run_onnx(written.path, DATA[:2], scale[:2])[0]
    with torch.no_grad():
        expected = net(DATA[:2], scale[:2])["features"]
    assert torch.allclose(got, expected, atol=0.05 * float(expected.abs().max()))


def test_a_file_for_a_fixed_batch_is_calibrated_with_just_as_many(tmp_path: Path) -> None:
    written = bo.export(tiny(), DATA[:5], tmp_path / "net.onnx", **INT8, dynamic_batch=False)
    assert written.quantized is not None
    assert (written.quantized.examples, written.quantized.compared) == (25, 5)
    with pytest.raises(bo.InputError, match=r"no batch of it has the 5 examples that the file takes at once"):
        bo.export(
            tiny(), DATA[:5], tmp_path / "net.onnx", quantize="int8", calibration=DATA[:4], dynamic_batch=False
        )  # fmt: skip


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no data": ("net.onnx", {"quantize": "int8"}, r"'int8' without calibration=; .* of noise they would be wrong"),
    "another scheme": ("net.onnx", {**INT8, "quantize": "int4"}, r"quantize: got 'int4'; expected 'int8', or None"),
    "torch's own file": ("net.pt2", INT8, r"got 'int8' for a \.pt2 file; only \.onnx files are quantised"),
    "data for nothing": ("net.onnx", {"calibration": DATA}, r"calibration: is for quantize=\"int8\""),
    "other sizes": (
        "net.onnx", {"quantize": "int8", "calibration": DATA[:, :, :6]},
        r"got Tensor 8x3x6x8 float32; the file takes Tensor \dx3x8x8 float32, and no other size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantised_is_refused(case: str, tmp_path: Path) -> None:
    name, options, message = REFUSED[case]
    with pytest.raises(bo.InputError, match=message):
        bo.export(tiny(), DATA[:1], tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(bo.ExportError, match=rf"the model is in {name}; expected float32, .* Export model\.float\(\)"):
        bo.export(tiny().to(dtype), DATA[:1], tmp_path / "net.onnx", **INT8)


def test_a_failure_of_the_quantiser_is_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no\nscale")

    (tmp_path / "net.onnx").write_text("older")
    monkeypatch.setattr(importlib.import_module("onnxruntime.quantization"), "quantize_static", fail)
    with pytest.raises(bo.ExportError, match=r"cannot quantise the file: ValueError: no scale\. Leave quantize= out"):
        bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", **INT8)
    assert (tmp_path / "net.onnx").read_text() == "older"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_change_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "USELESS", 1e-9)
    with pytest.raises(bo.ExportError, match=r"Pass calibration= that is like the model's real inputs"):
        bo.export(tiny(), DATA[:1], tmp_path / "net.onnx", **INT8)
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    np.save(tmp_path / "data.npy", DATA.numpy())
    model, out = f"{tmp_path / 'net.py'}:net", tmp_path / "out"
    assert run("optimize", model, "--calibration", tmp_path / "data.npy", "--out", out) == 0
    capsys.readouterr()
    quantized = ("export", out, model, "-o", tmp_path / "net.onnx", "--quantize", "int8")
    assert run(*quantized) == 1
    assert "without calibration=" in capsys.readouterr().err
    assert run(*quantized, "--calibration", tmp_path / "data.npy", "--json") == 0
    told = json.loads(capsys.readouterr().out)["quantized"]
    assert (told["scheme"], told["examples"], told["held_out"]) == ("int8", 24, True)
    assert told["change"] < 5e-3


ZOO = (
    "torchvision/mobilenet_v3_small", "networks/transformer_encoder", "networks/tcn", "networks/wavenet",
    "networks/audio_unet", "networks/gan_generator", "networks/autoencoder3d", "networks/crnn", "networks/convlstm",
    "networks/super_resolution", "yolo/c2f_anchor_free", "hand_written/grouped", "hand_written/weight_norm",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_models_of_all_kinds_are_quantised(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models' own packages
        entry = find_entry(name)
        torch.manual_seed(0)
        model = entry.build().eval()
        inputs = entry.inputs(model)
        call, _ = choose_inputs(working_copy(model), inputs)
        data = [each.args[0] for each in noise_batches(call, examples=16, seed=0)]
        written = bo.export(model, call.args[0], tmp_path / "model.onnx", quantize="int8", calibration=data)
    assert written.quantized is not None
    assert sum(written.quantized.operators.get(kind, 0) for kind in ("Conv", "ConvTranspose", "MatMul", "Gemm")) > 1
    assert written.quantized.change is not None
    assert written.quantized.change < 1e-2


# -- files as modules ---------------------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> tuple[nn.Module, bo.OnnxModel]:
    """A model of two inputs and two outputs, and its file as a module."""
    net = seeded(Pair, dtype=torch.float32)
    bo.export(net, {"image": DATA[:2], "scale": torch.ones(2)}, tmp_path / "net.onnx")
    return net, bo.open_onnx(tmp_path / "net.onnx")


def test_a_file_gives_what_the_model_gives_however_it_is_called(opened: tuple[nn.Module, bo.OnnxModel]) -> None:
    net, model = opened
    scale = torch.arange(5.0)
    expected = list(net(DATA[:5], scale).values())
    for got in (model(DATA[:5], scale), model(scale=scale, image=DATA[:5]), model(DATA[:5], scale=scale)):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))
    assert not model.training
    assert list(model.parameters()) == []
    assert "image: batch x 3 x 8 x 8 tensor(float)" in repr(model)


def test_the_callers_evaluate_measures_a_file(tmp_path: Path) -> None:
    def evaluate(model: Callable[[Tensor], Tensor]) -> float:
        return float((model(DATA).argmax(1) == classes).double().mean())

    net = make_classifier()
    classes = net(DATA).argmax(1)
    bo.export(net, DATA[:1], tmp_path / "net.onnx", **INT8)
    assert evaluate(net) == 1
    assert evaluate(bo.open_onnx(str(tmp_path / "net.onnx"))) > 0.8


def test_what_a_file_does_not_take_is_told(opened: tuple[nn.Module, bo.OnnxModel]) -> None:
    for given in ((DATA[:2, :, :4], torch.ones(2)), (DATA[:2],), (DATA[:2].double(), torch.ones(2))):
        with pytest.raises(bo.InputError, match=r"net\.onnx: .* It takes image: batch x 3 x 8 x 8 tensor\(float\)"):
            opened[1](*given)


def test_a_missing_or_broken_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(bo.FileError, match=r"nowhere\.onnx: cannot be read: no such file or directory"):
        bo.open_onnx(tmp_path / "nowhere.onnx")
    (tmp_path / "broken.onnx").write_text("no network")
    with pytest.raises(bo.ExportError, match=r"cannot run broken\.onnx: .* Name a whole file"):
        bo.open_onnx(tmp_path / "broken.onnx")


@pytest.mark.parametrize("make", [lambda: classifier(16), Residual, decoder])
def test_the_example_data_are_not_in_the_file(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    secret = DATA + 1234.5
    written = bo.export(seeded(make, dtype=torch.float32), secret[:1], tmp_path / "net.onnx", quantize="int8",
                        calibration=secret)  # fmt: skip
    assert secret.numpy()[0, 0, 0, :2].tobytes() not in written.path.read_bytes()
