from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bottleneck_opt as bo
from bottleneck_opt.cli import main

FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

def score(model):
    return 0.5

def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())

def score_badly(model):
    raise ValueError("first line\\n\\x1b[31msecond line\\x1b[0m")

def stopped():
    raise KeyboardInterrupt

broken = 7
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    """MODEL for a small network in a file."""
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    return f"{tmp_path / 'net.py'}:net"


def run(*arguments: str | Path) -> int:
    """The exit code of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_optimize_writes_the_result_and_prints_the_table(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("optimize", net, "--input", "1x3x8x8", "--budget", "macs=0.5", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "MACs" in printed
    assert "report.html" in printed
    assert {"plan.json", "model.safetensors", "report.html", "report.json"} <= {file.name for file in out.iterdir()}


def test_optimize_json_is_json_and_nothing_else(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", net, "--input", "1x3x8x8", "--budget", "0.5", "--out", tmp_path / "o", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["headline"]["macs"]["ratio"] <= 0.5
    assert printed.err == ""


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_calibration_is_read_from_a_file(
    net: str, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = torch.randn(6, 3, 8, 8), tmp_path / f"data.{suffix}"
    if suffix == "npy":
        np.save(file, data.numpy())
    else:
        save_file({"images": data}, file)
    arguments = ("--input", "1x3x8x8", "--calibration", file, "--out", tmp_path / "o", "--json")
    assert run("optimize", net, *arguments) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["calibration"] == "6 unlabelled examples"


def test_weights_are_loaded_before_optimising(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1)
    )
    torch.save(other.state_dict(), tmp_path / "w.pt")
    arguments = ("--input", "1x3x8x8", "--weights", tmp_path / "w.pt", "--out", tmp_path / "o", "--json")
    assert run("optimize", net, *arguments) == 0
    loaded = bo.load(tmp_path / "o", other)
    changed = {step["path"] for step in json.loads(capsys.readouterr().out)["layers"]}
    for path in {"0", "2"} - changed:
        assert torch.equal(loaded.get_parameter(f"{path}.weight"), other.get_parameter(f"{path}.weight"))


def test_evaluate_is_called_by_name(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = net.replace(":net", ":score")
    assert run("optimize", net, "--input", "1x3x8x8", "--evaluate", score, "--out", tmp_path / "o", "--json") == 0
    assert json.loads(capsys.readouterr().out)["headline"]["metric"] == {"before": 0.5, "after": 0.5, "drop": 0.0}


def test_calibration_tells_the_size_of_the_inputs(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(6, 3, 12, 10)))
    assert run("optimize", net, "--calibration", tmp_path / "images.npy", "--out", tmp_path / "o", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["provenance"]["inputs"] == "Tensor 1x3x12x10 float32"
    assert "inputs: Tensor 1x3x12x10 float32, the first example of the calibration data" in report["notes"]


def test_a_folder_of_images_is_calibration_data(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    for index, values in enumerate(np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), dtype=np.uint8)):
        pillow.fromarray(values).save(tmp_path / "images" / f"{index}.png")
    arguments = ("--input", "1x3x8x8", "--calibration", tmp_path / "images", "--out", tmp_path / "o", "--json")
    assert run("optimize", net, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["provenance"]["calibration"] == "6 unlabelled images"
    assert any("the middle 8x8 cut out; mean and std of ImageNet" in note for note in report["notes"])


def test_recovery_is_asked_for_by_its_steps(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images.npy"
    np.save(images, torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0)).numpy())
    arguments = ("--input", "1x3x8x8", "--calibration", images, "--recover", "5", "--out", tmp_path / "o")
    assert run("optimize", net, *arguments) == 0
    assert "loss by recovery" in capsys.readouterr().out
    found = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))["recovery"]
    assert (found["steps"], found["trained_on"], found["held_out"]) == (5, 10, 80)  # ten, and seven mixes of each


def test_profile_prints_a_table_or_json(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", net, "--input", "1x3x8x8") == 0
    assert "conv 3x3" in capsys.readouterr().out
    assert run("profile", net, "--input", "1x3x8x8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["macs"] == 64 * 9 * (3 * 16 + 16 * 16)


def test_profile_prints_the_summary_that_keras_prints(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", net, "--input", "1x3x8x8", "--style", "keras") == 0
    printed = capsys.readouterr().out
    assert "(None, 16, 8, 8)" in printed
    assert "Total params: 2,768 (10.81 KB)" in printed


def test_the_summary_of_keras_loses_no_column_in_a_narrow_terminal(
    net: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert run("profile", net, "--input", "1x3x8x8", "--style", "keras") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("Conv2d" in line and "2,320 \u2502" in line for line in lines)
    assert max(map(len, lines[:8])) == 70


def test_the_look_of_keras_is_not_json(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", net, "--input", "1x3x8x8", "--style", "keras", "--json") == 2
    assert "leave out --style keras" in capsys.readouterr().err


def test_draw_writes_the_picture(net: str, tmp_path: Path) -> None:
    assert run("draw", net, "--input", "1x3x8x8", "-o", tmp_path / "net.dot") == 0
    assert "conv 3x3" in (tmp_path / "net.dot").read_text(encoding="utf-8")


def test_passes_lists_the_built_in_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("passes", "--json") == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert {"reduce", "expand"} <= set(listed)
    assert (listed["reduce"]["origin"], listed["reduce"]["version"]) == ("bottleneck-opt", bo.__version__)
    assert listed["tucker"]["options"] == [{"name": "steps", "type": "int", "default": "8"}]


def test_passes_prints_options_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("passes") == 0
    printed = capsys.readouterr().out
    assert "steps: int = 8" in printed
    assert f"bottleneck-opt {bo.__version__}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimize", "nothing"], "Put a colon between"),
        (["optimize", "no_such_package:net"], "No module named 'no_such_package'"),
        (["optimize", "NET:missing"], "has no 'missing'"),
        (["optimize", "NET:broken"], "gave a int; expected a torch.nn.Module"),
        (["optimize", "NET:net", "--input", "3by8"], "expected numbers with x between them"),
        (["optimize", "NET:net", "--input", "1x4x8x8"], "expected input"),
        (["optimize", "NET:net", "--weights", "missing.pt"], "cannot be read"),
        (["optimize", "NET:net", "--weights", "NET"], "expected .safetensors"),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--calibration", "EMPTY"], "EMPTY: holds no image; expected"),
        (
            ["optimize", "NET:net", "--input", "1x3x8x8", "--calibration", "missing.npy"],
            "calibration data cannot be read",
        ),
        (
            ["optimize", "NET:net", "--input", "1x3x8x8", "--calibration", "NET"],
            "got a '.py' file for calibration data; expected .npy or .safetensors, examples along axis 0, or a folder",
        ),
        (
            ["optimize", "NET:net", "--input", "1x3x8x8", "--evaluate", "NET:score_badly"],
            "evaluate: failed on the model before: ValueError: first line second line.",
        ),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--device", "nope"], "device: got 'nope'"),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--budget", "macs=half"], "expected a ratio"),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--budget", "speed=1"], "unknown unit 'speed'"),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--budget", "macs=0.0001"], "the smallest reachable is macs="),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--passes", "redoce"], "Did you mean 'reduce'"),
        (
            ["optimize", "NET:net", "--input", "1x3x8x8", "--passes", "reduce,tucker:step=4"],
            "pass 'tucker': got the option 'step'; expected one of steps. Did you mean 'steps'?",
        ),
        (["optimize", "NET:net", "--input", "1x3x8x8", "--exclude", "head*"], "matches none"),
        (["optimize", "NET:net", "--max-drop", "0.01"], "max_drop: got 0.01 without evaluate=; expected a function"),
        (["optimize", "NET:net", "--recover", "0"], "expected a number of training steps, at least 1"),
        (["draw", "NET:net", "--input", "1x3x8x8", "-o", "net.gif"], "expected one of .svg"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(
    net: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    file = net.removesuffix(":net")
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    out = ["--out", str(tmp_path / "o")] if arguments[0] == "optimize" else []
    assert run(*(argument.replace("NET", file) for argument in arguments), *out) == 1
    printed = [line for line in capsys.readouterr().err.splitlines() if ": done in" not in line]
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert message in printed[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [["nonsense"], ["optimize"], ["optimize", "a:b", "--no-such-option"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments) == 2


def test_unpickling_weights_are_refused(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pt")
    assert run("optimize", net, "--weights", tmp_path / "module.pt", "--out", tmp_path / "o") == 1
    told = capsys.readouterr().err
    assert "without unpickling" in told
    assert re.search(r"\w \.\.\. Save tensors only: torch\.save\(model\.state_dict\(\), path\)\.$", told)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == bo.__version__


def test_an_interrupt_is_said_and_exits_with_130(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", net.replace(":net", ":stopped")) == 130
    assert capsys.readouterr().err == "interrupted; nothing half-written was left\n"


def test_an_empty_array_file_is_told(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.npy").touch()
    assert run("optimize", net, "--input", "1x3x8x8", "--calibration", tmp_path / "empty.npy") == 1
    assert "calibration data cannot be read" in capsys.readouterr().err


def test_a_missing_zoo_is_to_be_installed_and_a_broken_one_is_to_match_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert run("profile", "torchvision:resnet18") == 1
    told = capsys.readouterr().err
    assert "installed but cannot be imported: RuntimeError: operator nms does not exist. torchvision must match" in told
    assert "pip install" not in told
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert run("profile", "torchvision:resnet18") == 1
    assert "torchvision is not installed. Install it: pip install torchvision" in capsys.readouterr().err


def test_a_promise_that_cannot_meet_the_budget_ends_with_one_and_still_writes_the_model(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("optimize", net, "--input", "1x3x8x8", "--max-drop", "0.1", "--out", tmp_path / "o")
    sized = net.replace(":net", ":count_parameters")
    assert run(*arguments, "--evaluate", sized, "--budget", "0.2") == 1
    printed = capsys.readouterr()
    assert "budget macs=0.2: NOT met" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: budget macs=0.2: not met within max_drop=0.1; the nearest")
    found = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))
    assert (found["headline"]["budget_met"], found["headline"]["layers_changed"]) == (False, 0)


def test_a_promise_finds_the_smallest_model(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("optimize", net, "--input", "1x3x8x8", "--max-drop", "0", "--json", "--out", tmp_path / "o")
    assert run(*arguments, "--evaluate", net.replace(":net", ":score")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["headline"]["macs"]["ratio"] < 0.2
    assert [each["metric"] for each in found["promise"]["tried"]] == [0.5] * len(found["promise"]["tried"])


def test_a_second_run_goes_on_from_the_cache(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("optimize", net, "--input", "1x3x8x8", "--budget", "0.5", "--recover", "2", "--cache", tmp_path / "c")
    assert run(*arguments, "--out", tmp_path / "first") == 0
    assert "read back" not in capsys.readouterr().err
    assert run(*arguments, "--out", tmp_path / "second") == 0
    printed = capsys.readouterr()
    assert "fit: done before, read back from" in printed.err
    assert "cache: went on from what an earlier run kept in" in printed.out
    for name in ("plan.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_an_interrupted_run_says_where_it_goes_on(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = ("optimize", net, "--input", "1x3x8x8", "--cache", tmp_path / "c", "--out", tmp_path / "o", "--json")
    with monkeypatch.context() as patched:
        patched.setattr("bottleneck_opt.carrying.apply_plan", interrupt)
        assert run(*arguments) == 130
    told = f"what was done until now is kept in {tmp_path / 'c'}: the same call goes on from there"
    assert capsys.readouterr().err.splitlines() == [told, "interrupted; nothing half-written was left"]
    assert not (tmp_path / "o").exists()
    assert run(*arguments) == 0
    assert any("fit together (" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_calibrate_and_optimize_share_a_cache(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--input", "1x3x8x8", "--cache", tmp_path / "c", "--out")
    assert run("calibrate", net, *common, tmp_path / "s.safetensors") == 0
    assert run("optimize", net, *common, tmp_path / "o") == 0
    assert "calibrate: done before, read back from" in capsys.readouterr().err


def test_settings_to_time_in_may_be_repeated(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--timing", "batch=1", "--timing", "batch=4,threads=1")
    options = ("--input", "1x3x16x16", "--budget", "macs=0.5", "--out", tmp_path / "out", "--json")
    assert run("optimize", net, *options, *settings, "--allow-slower") == 0
    checked = json.loads(capsys.readouterr().out)["verification"]
    assert [each["batch"] for each in (checked["speed"], *checked["more_speeds"])] == [1, 4]


def test_a_time_that_cannot_be_reached_is_one_line(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("optimize", net, "--input", "1x3x4x4", "--budget", "latency=1us", "--out", tmp_path / "out") == 1
    assert re.search(r"^error: budget: .* ms cannot be reached: \d+ models? .* latency=", capsys.readouterr().err, re.M)
    assert not (tmp_path / "out").exists()


def test_a_picture_of_another_format_is_refused_before_the_model_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("draw", "missing.py:net", "-o", tmp_path / "net.jpg") == 1
    assert "net.jpg: got the suffix '.jpg', expected one of .svg" in capsys.readouterr().err
