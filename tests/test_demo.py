from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bottleneck_opt as bo
from bottleneck_opt.demo import run as demo
from bottleneck_opt.demo.digits import TEST_DIGITS, DigitsResNet, accuracy, load_digits


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the trained weights in it."""
    folder: Path = tmp_path_factory.mktemp("cache")
    demo.trained_model(load_digits(demo.SEED), folder / "bottleneck-opt" / f"{demo.RECIPE}.safetensors", shown=False)
    return folder


def test_digits_are_split_without_overlap() -> None:
    digits = load_digits()
    assert digits.train_x.shape == (1000, 1, 16, 16)
    assert len(digits.test_x) == TEST_DIGITS == 797
    assert abs(float(digits.train_x.mean())) < 1e-5


def test_demo_keeps_the_accuracy_and_writes_loadable_results(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    rows = demo.run_demo(tmp_path / "out")
    assert rows[0].accuracy > 0.98
    assert [row.macs <= limit * rows[0].macs for row, limit in zip(rows[1:], demo.BUDGETS, strict=True)] == [True, True]
    assert rows[1].accuracy >= rows[0].accuracy - 0.005
    assert rows[2].accuracy >= rows[0].accuracy - 0.015
    digits = load_digits(demo.SEED)
    loaded = bo.load(tmp_path / "out" / "0.25", DigitsResNet())
    assert accuracy(loaded, digits.test_x, digits.test_y) == rows[2].accuracy
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert "bo.load(" in printed


def test_trained_weights_are_read_from_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "train", lambda *_, **__: pytest.fail("trained although the cache has the weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    model = demo.trained_model(load_digits(demo.SEED), demo.cache_file(), shown=True)
    assert str(demo.cache_file()) in capsys.readouterr().err
    assert not model.training


def test_damaged_cache_is_named_and_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"not weights")
    monkeypatch.setattr(demo, "train", lambda *_, **__: None)
    demo.trained_model(load_digits(demo.SEED), damaged, shown=False)
    assert "cannot be used" in capsys.readouterr().err
    assert damaged.stat().st_size > 10_000


def test_demo_prints_json_for_machines(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    demo.run_demo(tmp_path / "out", as_json=True)
    printed = capsys.readouterr()
    assert [row["model"] for row in json.loads(printed.out)] == ["before", "macs=0.5", "macs=0.25"]
    assert printed.err == ""


def test_training_leaves_the_random_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    before = torch.get_rng_state()
    demo.trained_model(load_digits(demo.SEED), tmp_path / "w.safetensors", shown=False)
    assert torch.equal(torch.get_rng_state(), before)
