from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.checking import check_limits, read_limit
from bottleneck_opt.outcome import Speed
from bottleneck_opt.reading import Change, Headline, Made, Pair, Report, read_report
from tests.networks import classifier, seeded
from tests.test_cli import FACTORY, run

NUMBERS: dict[str, Any] = {
    "macs": Pair(1000, 480),
    "params": Pair(20_000, 12_000),
    "milliseconds": Pair(2.0, 1.5),
    "metric": Pair(0.9, 0.895),
    "output_change": Change(0.002),
}


def report(**changed: Any) -> Report:
    return Report(1, Headline(**{**NUMBERS, **changed}), Made("Tensor 1x3x8x8 float32"))


@pytest.mark.parametrize(
    ("name", "typed", "value", "passed"),
    [
        ("macs", "0.5", 0.48, True),
        ("macs", "0.48", 0.48, True),
        ("macs", "0.47", 0.48, False),
        ("macs", "0.5k", 480, True),
        ("macs", "0.4K", 480, False),
        ("params", "0.5", 0.6, False),
        ("params", "12k", 12_000, True),
        ("latency", "0.8", 0.75, True),
        ("latency", "1.5 ms", 1.5, True),
        ("latency", "1400us", 1.5, False),
        ("latency", "0.001s", 1.5, False),
        ("drop", "0.01", 0.005, True),
        ("drop", "0.001", 0.005, False),
        ("drop", "0", 0.005, False),
        ("change", "2e-3", 0.002, True),
        ("change", "0.001", 0.002, False),
    ],
)
def test_a_limit_holds_up_to_and_with_its_value(name: str, typed: str, value: float, passed: bool) -> None:
    (verdict,) = check_limits(report(), [read_limit(name, typed)])
    assert verdict.value == pytest.approx(value)
    assert verdict.passed is passed
    assert typed in verdict.text


@pytest.mark.parametrize(("name", "passed"), [("macs", True), ("latency", True), ("drop", False), ("change", False)])
def test_what_was_measured_of_other_weights_proves_nothing(name: str, passed: bool) -> None:
    (verdict,) = check_limits(report(weights_changed=True), [read_limit(name, "0.9")])
    assert verdict.passed is passed
    assert ("the weights were changed after this was measured" in verdict.text) is not passed


@pytest.mark.parametrize(
    ("name", "missing", "advice"),
    [
        ("latency", {"milliseconds": None}, "give --measure MODEL"),
        ("drop", {"metric": None}, "run optimize with --evaluate"),
        ("change", {"output_change": Change(None)}, "no change of the output was recorded"),
    ],
)
def test_a_limit_on_what_was_not_recorded_is_broken(name: str, missing: dict[str, Any], advice: str) -> None:
    (verdict,) = check_limits(report(**missing), [read_limit(name, "0.5")])
    assert (verdict.passed, verdict.value) == (False, None)
    assert advice in verdict.text


def test_a_better_metric_is_no_drop() -> None:
    (verdict,) = check_limits(report(metric=Pair(0.5, 0.75)), [read_limit("drop", "0")])
    assert (verdict.passed, verdict.value) == (True, -0.25)


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("macs", "half", "a share of the original, or a number with one of k, m, g, t. Write for instance 0.5 or 2G"),
        ("macs", "2000000", "a share of the original"),
        ("macs", "5ms", "a share of the original"),
        ("latency", "5M", "with one of us, ms, s. Write for instance 0.8 or 0.7ms"),
        ("drop", "1%", "expected a number"),
        ("params", "", "a share of the original"),
    ],
)
def test_a_limit_that_cannot_be_read_is_told(name: str, typed: str, expected: str) -> None:
    with pytest.raises(bo.InputError, match=rf"--max-{name}: got '{typed}'; expected .*") as told:
        read_limit(name, typed)
    assert expected in str(told.value)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved result with a metric; ``net.py`` beside it makes the model."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "net.py").write_text(FACTORY, encoding="utf-8")
    net = f"{folder / 'net.py'}:net"
    score = net.replace(":net", ":score")
    assert run("optimize", net, "--input", "1x3x8x8", "--evaluate", score, "--out", folder / "out") == 0
    return folder / "out"


def test_all_limits_hold_one_line_each_and_exit_code_0(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", out, "--max-macs", "0.5", "--max-params", "3k", "--max-drop", "0", "--max-change", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in ("macs", "params", "drop", "change")]


def test_a_broken_limit_is_named_and_the_exit_code_is_1(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", out, "--max-macs", "0.1", "--max-drop", "0.01") == 1
    broken, held = capsys.readouterr().out.splitlines()
    assert broken.startswith("BROKEN  macs ")
    assert broken.endswith("at most 0.1 of the original")
    assert held.startswith("ok      drop ")


def test_json_says_the_same_to_machines(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", out / "report.json", "--max-macs", "0.1", "--max-drop", "0", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False
    assert [(each["name"], each["passed"]) for each in told["limits"]] == [("macs", False), ("drop", True)]


def test_the_model_is_timed_again_where_it_is_asked_for(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((out / "report.json").read_text(encoding="utf-8"))
    told["headline"]["milliseconds"] = None
    (out / "report.json").write_text(json.dumps(told), encoding="utf-8")
    assert run("check", out, "--max-latency", "10") == 1
    assert "no time was recorded: give --measure MODEL" in capsys.readouterr().out
    ran: list[torch.Size] = []
    compare = bo.checking.compare_speed  # type: ignore[attr-defined]

    def watch(before: Any, after: Any, inputs: Any, **options: Any) -> Any:
        ran.append(inputs.tensors()[0].shape)
        assert not torch.equal(inputs.call(before), inputs.call(after))
        return compare(before, after, inputs, **options)

    monkeypatch.setattr("bottleneck_opt.checking.compare_speed", watch)
    model = f"{out.parent / 'net.py'}:net"
    assert run("check", out, "--max-latency", "10", "--measure", model) == 0
    assert run("check", out / "report.json", "--max-latency", "10s", "--measure", model, "--input", "2x3x4x4") == 0
    assert ran == [(1, 3, 8, 8), (2, 3, 4, 4)]


def test_no_limit_is_wrong_usage(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", out) == 2
    assert "give for instance --max-macs 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the report cannot be read: no such file or directory"),
        ("nonsense", "is not a report: the text as a whole"),
        ('{"format": 1, "headline": {}}', "is not a report: headline.macs: Field required"),
    ],
)
def test_a_folder_without_a_sound_report_is_told(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
    assert run("check", tmp_path, "--max-macs", "0.5") == 1
    assert message in capsys.readouterr().err


def test_a_report_of_a_later_format_is_refused(tmp_path: Path) -> None:
    result = bo.optimize(seeded(classifier), torch.randn(1, 3, 8, 8).double(), progress=False)
    path = result.save(tmp_path / "out") / "report.json"
    assert read_report(path).headline.macs == Pair(result.before.cost.macs, result.after.cost.macs)
    path.write_text(path.read_text(encoding="utf-8").replace('"format": 1,', '"format": 9,'), encoding="utf-8")
    with pytest.raises(bo.FileError, match=r"has format 9; this version reads format 1\. Save the result again"):
        read_report(path)


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ("Tensor 2x3x8x8 float64", (2, 3, 8, 8)),
        ("Tensor 4 float32", (4,)),
        ("Tensor 1x7 int64", None),
        ("Tensor 1x3 float32, Tensor 1x3 float32", None),
        ("no tensors", None),
    ],
)
def test_the_example_is_made_again_where_it_was_one_float_tensor(inputs: str, shape: tuple[int, ...] | None) -> None:
    made = Report(1, Headline(**NUMBERS), Made(inputs)).example()
    assert (None if made is None else tuple(made.shape)) == shape


WORKFLOW = Path(__file__).parent.parent / "examples" / "check-workflow.yml"
PACKAGE = {
    "models.py": FACTORY.replace("net()", "make_network()"),
    "scores.py": "def accuracy(model):\n    return 0.9\n",
    "__init__.py": "",
}


def test_the_commands_of_the_example_workflow_run_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    folded = re.findall(r"run: (?:>\n)?((?: *bottleneck-opt [^\n]*)(?:\n {10}[^ \n][^\n]*)*)", text)
    commands = [shlex.split(" ".join(each.split())) for each in folded]
    assert [command[1] for command in commands] == ["optimize", "check", "export"]
    (tmp_path / "my_package").mkdir()
    for name, source in PACKAGE.items():
        (tmp_path / "my_package" / name).write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bottleneck_opt.checking.compare_speed", lambda *args, **options: Speed(2.0, 1.0, 5, 1, "cpu"))
    np.save("calibration.npy", torch.randn(6, 3, 16, 16).numpy())
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
    save_file(net.state_dict(), "weights.safetensors")
    try:
        for command in commands:
            assert run(*command[1:]) == 0, capsys.readouterr()
    finally:
        for name in [each for each in sys.modules if each.partition(".")[0] == "my_package"]:
            del sys.modules[name]
    assert (tmp_path / "out" / "model.onnx").is_file()
