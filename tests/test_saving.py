from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bottleneck_opt import FileError, ModelError, Result, RewriteError, load, optimize, saving
from tests.networks import Repeated, Residual, classifier, conv, noise, seeded

X = noise(2, 3, 8, 8)
PICTURES = {"before", "after", "diff"}


class Tied(nn.Module):
    """Two Linears with one weight, buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 16)
        self.into = nn.Linear(16, 16)
        self.out = nn.Linear(16, 16)
        self.out.weight = self.into.weight
        self.shift = nn.Buffer(torch.randn(16))
        self.steps = nn.Buffer(torch.tensor(3))
        self.empty = nn.Buffer(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(self.conv(x).mean((2, 3)))
        out: Tensor = self.out(torch.tanh(y + self.shift))
        return out


def optimized(make: Callable[[], nn.Module] = Residual, **options: Any) -> Result:
    return optimize(seeded(make), X, **{"progress": False, "budget": 0.6, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def result() -> Result:
    return optimized()


@pytest.fixture
def saved(result: Result, tmp_path: Path) -> Path:
    return result.save(tmp_path / "out")


@pytest.mark.parametrize("make", [Residual, Repeated, classifier, Tied])
@pytest.mark.parametrize("training", [True, False])
def test_a_fresh_instance_gives_the_same_outputs_bit_for_bit(
    make: Callable[[], nn.Module], training: bool, tmp_path: Path
) -> None:
    made = optimized(make)
    assert made.plan.steps
    fresh = seeded(make, seed=7).train(training)
    kept = {name: value.clone() for name, value in fresh.state_dict().items()}
    loaded = load(made.save(tmp_path / "out"), fresh)
    assert all(module.training is training for module in loaded.modules())
    assert type(loaded) is type(made.model)
    assert torch.equal(loaded.eval()(X), made.model(X))
    assert not torch.equal(fresh.eval()(X), made.model(X))
    assert all(torch.equal(value, kept[name]) for name, value in fresh.state_dict().items())


def test_weights_trained_in_place_are_those_saved_and_the_reports_say_so(tmp_path: Path) -> None:
    made = optimized()
    before = json.loads((made.save(tmp_path / "before") / "report.json").read_text(encoding="utf-8"))
    assert before["headline"]["weights_changed"] is False
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1)
    made.model.train()(X).square().sum().backward()
    optimizer.step()
    folder = made.save(tmp_path / "after")
    after = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert torch.equal(load(folder, seeded(Residual)).eval()(X), made.model.eval()(X))
    assert after["headline"] == {**before["headline"], "weights_changed": True}
    assert after["notes"][0].startswith("the weights were changed after they were measured")
    assert after["notes"][1:] == before["notes"]
    warning = "Its weights were changed after they were measured"
    pages = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("before", "after")]
    assert [warning in page for page in pages] == [False, True]


def test_moving_a_model_does_not_change_its_weights(tmp_path: Path) -> None:
    made = optimized()
    made.model.to(memory_format=torch.channels_last).train().requires_grad_(False)  # type: ignore[call-overload]
    report = json.loads((made.save(tmp_path / "out") / "report.json").read_text(encoding="utf-8"))
    assert report["headline"]["weights_changed"] is False


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    folder = optimized(Tied).save(tmp_path / "out")
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert ("into.weight" in stored) + ("out.weight" in stored) == 1
    loaded = load(folder, seeded(Tied, seed=3))
    assert loaded.get_parameter("into.weight") is loaded.get_parameter("out.weight")
    assert int(loaded.get_buffer("steps")) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_and_memory_format_are_those_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    net = seeded(Residual, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = optimize(net, X.to(dtype), budget=0.6, progress=False)
    for plain in (seeded(Residual, seed=1, dtype=dtype), net):
        loaded = load(made.save(tmp_path / "out"), plain)
        assert torch.equal(loaded(X.to(dtype)), made.model(X.to(dtype)))


def test_views_of_one_tensor_are_stored_as_what_they_are(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 16)
            table = torch.randn(16, 16)
            self.table, self.turned, self.row = nn.Buffer(table), nn.Buffer(table.T), nn.Buffer(table[0])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x).mean((2, 3)) @ self.table @ self.turned + self.row
            return out

    made = optimized(Views, budget=0.8)
    loaded = load(made.save(tmp_path / "out"), seeded(Views, seed=1))
    assert torch.equal(loaded.get_buffer("turned"), made.model.get_buffer("turned"))
    assert torch.equal(loaded(X), made.model(X))


def test_every_promised_file_is_there_and_only_those(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    explorer = {"model_explorer.json", "model_explorer_graph.json"}
    assert names == {
        "plan.json", "model.safetensors", "report.html", "report.json", *explorer,
        *(f"{picture}.svg" for picture in PICTURES),
    }  # fmt: skip


def test_nothing_is_pickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load(saved, seeded(Residual))
    for content in contents(saved).values():
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))


def test_saving_twice_gives_the_same_plan_and_weights(result: Result, tmp_path: Path) -> None:
    one, two = result.save(tmp_path / "one"), result.save(tmp_path / "two")
    for name in ("plan.json", "model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_saving_again_replaces_own_files_and_keeps_others(result: Result, saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "more").mkdir()
    (saved / "more" / "deep.bin").write_bytes(b"\x00")
    (saved / "plan.json").write_text("old")
    result.save(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "more" / "deep.bin").read_bytes() == b"\x00"
    assert (saved / "plan.json").read_text() == result.plan.to_json()
    load(saved, seeded(Residual))


def test_folders_above_are_made(result: Result, tmp_path: Path) -> None:
    assert load(result.save(str(tmp_path / "a" / "b" / "out")), seeded(Residual))


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("where", ["_save_weights", "render_html", "report_json", "draw_diff"])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, where: str
) -> None:
    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "plan.json").write_text("older")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    before = contents(tmp_path)
    monkeypatch.setattr(saving, where, fail)
    with pytest.raises(KeyboardInterrupt):
        result.save(out)
    assert contents(tmp_path) == before
    assert out.exists() is existing
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])


def test_a_full_disk_is_told_and_leaves_nothing(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_save_weights", fail)
    with pytest.raises(FileError, match=r"out: cannot be written: no space left on device\. Choose another folder"):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_refused(result: Result, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileError, match=r"out: is a file; expected a folder to write to\. Choose another name"):
        result.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_a_file_above_is_refused(result: Result, tmp_path: Path) -> None:
    (tmp_path / "above").write_text("a file")
    with pytest.raises(FileError, match=r"above/out: cannot be written: .*\. Choose a folder that is yours"):
        result.save(tmp_path / "above" / "out")


def test_an_unwritable_folder_is_refused(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileError, match=r"out: cannot be written: permission denied\. Choose a folder that is yours"):
        result.save(out)
    assert list(out.iterdir()) == []


def test_state_that_is_no_tensor_cannot_be_saved(tmp_path: Path) -> None:
    class Extra(nn.Sequential):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    made = optimized(lambda: Extra(conv(3, 16)))
    with pytest.raises(FileError, match=r"values that are no tensors \(_extra_state\); only tensors can be saved"):
        made.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "what"), [("plan.json", "the plan"), ("model.safetensors", "the weights file")])
def test_a_missing_file_is_named(saved: Path, name: str, what: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileError, match=rf"{name}: {what} cannot be read: no such file or directory\. Pass the folder"):
        load(saved, seeded(Residual))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere/plan\.json: the plan cannot be read"):
        load(tmp_path / "nowhere", seeded(Residual))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
def test_a_truncated_file_is_refused(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileError, match=r"not a valid plan|not a whole safetensors file"):
        load(saved, seeded(Residual))


def test_a_changed_weight_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"model\.safetensors: its weights were changed after saving\. Save the result"):
        load(saved, seeded(Residual))


@pytest.mark.parametrize("position", [0, 7, 8, 9, 40, 200])
def test_a_changed_header_is_refused(saved: Path, position: int) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 0x15
    path.write_bytes(content)
    with pytest.raises((FileError, RewriteError)):
        load(saved, seeded(Residual))


def test_a_changed_plan_is_refused(saved: Path) -> None:
    plan = saved / "plan.json"
    plan.write_text(plan.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(FileError, match=r"was saved with another plan\.json than the one beside it"):
        load(saved, seeded(Residual))


def test_a_plan_with_other_line_ends_is_the_same_plan(saved: Path) -> None:
    plan = saved / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b"\n", b"\r\n"))
    load(saved, seeded(Residual))


def test_a_plan_that_is_no_text_is_refused(saved: Path) -> None:
    (saved / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match=r"plan\.json: is not UTF-8 text"):
        load(saved, seeded(Residual))


def rewrite_metadata(path: Path, **changes: Any) -> None:
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        seal = json.loads(file.metadata()["bottleneck_opt"])
    safetensors.torch.save_file(tensors, path, metadata={"bottleneck_opt": json.dumps({**seal, **changes})})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "has format 99; this version reads format 1"),
        ({"aliases": {"a": "b"}}, "names tensors it does not hold"),
        ({"aliases": [1]}, "its metadata were changed: aliases: Input should be"),
        ({"aliases": {"a": [1]}}, r"its metadata were changed: aliases\.a: Input should be"),
        ({"aliases": {"a": "head.bias"}}, r"do not fit this model: 'a' is \(5,\) float64 in the file, missing in the"),
        ({"weights_sha256": "0"}, "its weights were changed"),
        ({"new": 1}, "its metadata were changed: new: "),
    ],
)
def test_changed_metadata_is_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    rewrite_metadata(saved / "model.safetensors", **changes)
    with pytest.raises((FileError, RewriteError), match=message):
        load(saved, seeded(Residual))


def test_weights_without_our_metadata_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)
    with pytest.raises(FileError, match=r"was not written by result\.save\(\)"):
        load(saved, seeded(Residual))


def test_the_wrong_model_is_told(saved: Path) -> None:
    with pytest.raises(RewriteError, match=r"which this model does not have|expected .*Pass the model that the plan"):
        load(saved, seeded(classifier))


def test_a_model_of_another_width_is_told(tmp_path: Path) -> None:
    folder = optimized(lambda: Residual(classes=5), include=["blocks.*"]).save(tmp_path / "out")
    with pytest.raises(
        RewriteError, match=r"'head\.bias' is \(5,\) float64 in the file, \(6,\) float64 in the model \(2 differ\)"
    ):
        load(folder, seeded(lambda: Residual(classes=6)))


def test_a_model_of_another_precision_is_told(saved: Path) -> None:
    with pytest.raises(RewriteError, match=r" float64 in the file, .* float32 in the model .*in the same precision"):
        load(saved, seeded(Residual, dtype=torch.float32))


def test_loading_into_what_is_no_module_is_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match=r"^model: got type; expected a torch\.nn\.Module"):
        load(saved, Residual)  # type: ignore[arg-type]


def test_a_failed_load_leaves_the_model_alone(saved: Path) -> None:
    rewrite_metadata(saved / "model.safetensors", aliases={"a": "head.bias"})
    net = seeded(Residual, seed=9)
    with pytest.raises(RewriteError):
        load(saved, net)
    twin = seeded(Residual, seed=9)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_an_unchanged_result_can_be_saved_and_loaded(tmp_path: Path) -> None:
    made = optimized(budget=1.0)
    assert not made.plan.steps
    assert torch.equal(load(made.save(tmp_path / "out"), seeded(Residual, seed=2))(X), made.model(X))


def test_what_was_trained_further_is_what_is_saved(tmp_path: Path) -> None:
    made = optimized()
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(1.1)
    assert torch.equal(load(made.save(tmp_path / "out"), seeded(Residual, seed=2))(X), made.model(X))


def test_the_report_json_is_strict_json(saved: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((saved / "report.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("wrong", [None, 3, b"out"])
def test_a_folder_that_is_no_name_is_refused(result: Result, wrong: Any) -> None:
    with pytest.raises(FileError, match=rf"^save: got {type(wrong).__name__}; expected the name of a folder"):
        result.save(wrong)
    with pytest.raises(FileError, match=rf"^load: got {type(wrong).__name__}; expected the name of a folder"):
        load(wrong, seeded(Residual))


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_folder_of_an_impossible_name_is_told(result: Result, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        result.save(tmp_path / name)
    with pytest.raises(FileError, match="the plan cannot be read"):
        load(tmp_path / name, seeded(Residual))


def test_a_lazy_model_is_told_to_run_once_before_loading(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.LazyConv2d(16, 3))

    x = torch.randn(1, 3, 8, 8)
    folder = optimize(make(), x, progress=False).save(tmp_path / "out")
    with pytest.raises(RewriteError, match=r"is a lazy layer that has no shape yet\. Call the model once"):
        load(folder, make())
    fresh = make()
    fresh(x)
    load(folder, fresh)
