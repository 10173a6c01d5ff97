from __future__ import annotations

import json
from pathlib import Path

import pytest

from bottleneck_opt.cli import main
from tests.test_cli import FACTORY, run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, as the current one."""
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def optimise(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The report of a run."""
    assert run("optimize", *arguments, "--json") == 0
    report: dict[str, object] = json.loads(capsys.readouterr().out)
    return report


CONFIG = """
model = "net.py:net"
input = "1x3x8x8"
budget = {macs = 0.6, params = 0.7}
passes = ["reduce", "expand"]
exclude = "0"
seed = 3
out = "there"
"""


def test_a_file_sets_any_option_and_the_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text(CONFIG, encoding="utf-8")
    report = optimise("--config", "my.toml", capsys=capsys)
    provenance = report["provenance"]
    assert isinstance(provenance, dict)
    assert (provenance["budget"], provenance["seed"]) == ("macs=0.6,params=0.7", 3)
    assert provenance["passes"] == ["reduce", "expand"]
    assert [each["path"] for each in report["layers"]] == ["2"]  # type: ignore[attr-defined]
    assert (here / "there" / "plan.json").is_file()


def test_a_file_sets_switches_and_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text(CONFIG + 'timing = ["batch=1", "batch=2"]\nallow-slower = true\n', encoding="utf-8")
    report = optimise("--config", "my.toml", capsys=capsys)
    assert report["clocked"] is None
    assert len(report["verification"]["more_speeds"]) == 1  # type: ignore[index]


def test_the_command_line_wins(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text(CONFIG, encoding="utf-8")
    report = optimise("--config", "my.toml", "--seed", "5", "--budget", "0.9", "--out", "o", capsys=capsys)
    assert report["provenance"]["seed"] == 5  # type: ignore[index]
    assert report["provenance"]["budget"] == "macs=0.9"  # type: ignore[index]
    assert not (here / "there").exists()


def test_the_table_in_pyproject_is_read_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pyproject.toml").write_text(f"[project]\nname = 'mine'\n[tool.bottleneck-opt]{CONFIG}", encoding="utf-8")
    assert optimise(capsys=capsys)["provenance"]["seed"] == 3  # type: ignore[index]
    assert optimise("--config", "pyproject.toml", capsys=capsys)["provenance"]["seed"] == 3  # type: ignore[index]


def test_a_pyproject_without_the_table_sets_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pyproject.toml").write_text("[project]\nname = 'mine'\n", encoding="utf-8")
    assert optimise("net.py:net", "--input", "1x3x8x8", capsys=capsys)["provenance"]["seed"] == 0  # type: ignore[index]


def test_no_model_anywhere_is_wrong_usage(here: Path) -> None:
    (here / "my.toml").write_text("seed = 3", encoding="utf-8")
    assert run("optimize", "--config", "my.toml") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "budgit = 0.5",
            "my.toml: unknown option 'budgit'; expected one of allow-slower, budget, cache, calibration, ",
        ),
        ("budgit = 0.5", "Did you mean 'budget'?"),
        ("zzz = 1", "Leave it out."),
        ("config = 'other.toml'", "unknown option 'config'"),
        ("seed = 2026-01-01", "seed: got datetime.date(2026, 1, 1); expected text or a number"),
        ("seed = ", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(
    here: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "my.toml").write_text(content, encoding="utf-8")
    assert run("optimize", "net.py:net", "--config", "my.toml") == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_value_of_the_wrong_kind_is_wrong_usage(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text("seed = 'x'", encoding="utf-8")
    assert run("optimize", "net.py:net", "--config", "my.toml") == 2
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.toml", "pyproject.toml"])
def test_a_file_that_is_named_must_have_options(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "pyproject.toml").write_text("[project]\nname = 'mine'\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["optimize", "net.py:net", "--config", name])
    assert stop.value.code == 1
    assert ("cannot be read" if name == "missing.toml" else "no table [tool.bottleneck-opt]") in capsys.readouterr().err


def test_other_commands_take_what_they_share(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text(f"{CONFIG}max_drop = 0.1\nstatistics = 'stats.safetensors'\n", encoding="utf-8")
    assert run("calibrate", "--config", "my.toml", "--out", "stats.safetensors") == 0
    assert capsys.readouterr().out.startswith("1 layers")  # of two: one is excluded
    assert run("profile", "--config", "my.toml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["macs"] > 0
    assert run("draw", "--config", "my.toml", "-o", "net.svg") == 0
    assert {path.name for path in here.iterdir()} >= {"stats.safetensors", "net.svg"}
    assert not (here / "there").exists()


def test_a_plan_is_applied_with_the_options_it_was_made_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text(CONFIG, encoding="utf-8")
    made = optimise("--config", "my.toml", capsys=capsys)
    assert run("apply", "there", "--config", "my.toml", "--json", "--out", "again") == 0
    assert [each["path"] for each in json.loads(capsys.readouterr().out)["layers"]] == ["2"]
    assert [each["path"] for each in made["layers"]] == ["2"]  # type: ignore[attr-defined]
    assert not (here / "out").exists()


def test_a_misspelt_option_is_refused_by_every_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.toml").write_text("detail = 'block'", encoding="utf-8")
    assert run("draw", "net.py:net", "--config", "my.toml") == 1
    assert "unknown option 'detail'; expected one of allow-slower, budget" in capsys.readouterr().err
