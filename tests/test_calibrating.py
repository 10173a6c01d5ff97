"""Statistics are taken once and used many times, within a memory limit, and it changes nothing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt import calibration, statistics_file
from bottleneck_opt.spilling import Stored, open_matrix
from tests.networks import classifier, noise, seeded

X = noise(12, 3, 10, 10, dtype=torch.float32)


def make() -> nn.Module:
    return seeded(classifier, dtype=torch.float32)


def optimize(model: nn.Module | None = None, **options: Any) -> bo.Result:
    return bo.optimize(model or make(), X[:1], budget=0.4, progress=False, **options)


def calibrate(model: nn.Module | None = None, **options: Any) -> bo.Statistics:
    return bo.calibrate(model or make(), X[:1], progress=False, **{"calibration": X, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrate().save(tmp_path_factory.mktemp("saved") / "statistics.safetensors")


# -- the same result ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [X, None], ids=["images", "noise"])
def test_the_plan_and_the_weights_are_those_without_statistics(data: Any) -> None:
    plain, reused = optimize(calibration=data), optimize(calibration=data, statistics=calibrate(calibration=data))
    assert plain.plan.steps
    assert reused.plan.to_json() == plain.plan.to_json()
    assert all(map(torch.equal, reused.model.state_dict().values(), plain.model.state_dict().values()))


def test_the_plan_from_a_file_is_the_same(saved: Path) -> None:
    assert optimize(calibration=X, statistics=saved).plan == optimize(calibration=X).plan


def test_one_file_serves_fewer_layers_and_other_budgets(saved: Path) -> None:
    for budget in (0.8, 0.3):
        with_file, without = (
            bo.optimize(make(), X[:1], budget=budget, exclude="0", calibration=X, progress=False, statistics=statistics)
            for statistics in (str(saved), None)
        )
        assert with_file.plan == without.plan


def test_the_data_is_not_run_through_the_model_again(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck_opt.calibrating.collect_statistics", None)
    assert "calibrate" not in dict(optimize(calibration=X, statistics=saved).seconds)


def test_a_limit_changes_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert optimize(calibration=X, memory=0).plan.to_json() == optimize(calibration=X).plan.to_json()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(calibration, "_check_finite", fail)
    with pytest.raises(KeyError):
        optimize(calibration=X, memory=0)
    assert list(tmp_path.iterdir()) == []


def test_spilled_statistics_can_be_saved(tmp_path: Path, saved: Path) -> None:
    assert calibrate(memory="1kB").save(tmp_path / "spilled").read_bytes() == saved.read_bytes()


# -- what is said -------------------------------------------------------------------------------------------------


def test_a_result_says_which_statistics_it_used(saved: Path) -> None:
    notes = optimize(calibration=X, statistics=saved).notes
    assert "fitted with statistics= taken earlier of 12 unlabelled examples, seed 0" in notes
    assert not any("noise" in note for note in notes)


def test_without_data_nothing_is_refitted_to_noise(saved: Path) -> None:
    result = optimize(statistics=saved)
    assert result.corrections == ()
    assert any("no calibration= was given beside statistics=: no layer was refitted" in note for note in result.notes)
    assert not any("calibrated on noise" in note for note in result.notes)


def test_statistics_of_noise_need_no_data() -> None:
    result = optimize(statistics=calibrate(calibration=None))
    assert result.corrections
    assert any("calibrated on noise" in note for note in result.notes)


# -- what does not fit --------------------------------------------------------------------------------------------


def test_other_weights_are_refused(saved: Path) -> None:
    other = make()
    with torch.no_grad():
        other.get_parameter("0.weight")[0, 0, 0, 0] += 1
    with pytest.raises(bo.InputError, match=r"^statistics: they are of a torch.*Sequential with other weights than"):
        optimize(other, calibration=X, statistics=saved)


def test_missing_layers_are_refused() -> None:
    with pytest.raises(bo.InputError, match=r"^statistics: '2' .* is not among the 1 layers they are of"):
        optimize(calibration=X, statistics=calibrate(include="0"))


def test_merged_statistics_have_no_origin_and_are_refused(tmp_path: Path) -> None:
    one = calibrate()
    with pytest.raises(bo.InputError, match="do not say of which model"):
        optimize(calibration=X, statistics=one.merge(one))
    with pytest.raises(ValueError, match="without an origin"):
        one.merge(one).save(tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


# -- the file -----------------------------------------------------------------------------------------------------


def test_the_file_holds_the_same_sums(saved: Path) -> None:
    kept, read = calibrate(), bo.Statistics.load(saved)
    assert (read.examples, read.scales, read.origin) == (kept.examples, kept.scales, kept.origin)
    for path, layer in kept.layers.items():
        for mine, theirs in ((layer.inputs, read.layers[path].inputs), (layer.outputs, read.layers[path].outputs)):
            assert (mine.count, mine.squares) == (theirs.count, theirs.squares)
            assert torch.equal(mine.total, theirs.total)
            assert torch.equal(mine.covariance(), theirs.covariance())
        assert torch.equal(layer.curvature, read.layers[path].curvature)
        assert layer.probes == read.layers[path].probes


def test_the_file_is_a_safetensors_file_of_sums(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    assert tensors["0/inputs/outer"].shape == (27, 27)
    assert tensors["0/inputs/outer"].dtype == torch.float64


def test_covariances_stay_in_the_file(saved: Path) -> None:
    outer = bo.Statistics.load(saved).layers["0"].inputs.outer
    assert isinstance(outer, Stored)


def test_a_file_that_changes_while_it_is_used(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(saved.read_bytes())
    outer = bo.Statistics.load(copy).layers["0"].inputs.outer
    copy.unlink()
    assert outer is not None
    with pytest.raises(bo.FileError, match="changed or removed"):
        open_matrix(outer)


def spoil(content: bytes, **changes: Any) -> bytes:
    """The file with some metadata changed."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = {**json.loads(header["__metadata__"][statistics_file._KEY]), **changes}
    header["__metadata__"] = {statistics_file._KEY: json.dumps(metadata)}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "not a whole safetensors file"),
        (lambda content: content[:-8], "not a whole safetensors file"),
        (lambda content: content[:-8] + bytes(8), "its sums were changed after saving"),
        (lambda content: spoil(content, format=9), "has format 9; this version reads format 1"),
        (lambda content: spoil(content, examples="many"), "its metadata were changed: examples: "),
        (lambda content: spoil(content, extra=1), "its metadata were changed: extra: "),
        (lambda content: spoil(content, layers={}), r"'0/curvature' has shape \(12, 12\); expected None"),
        (lambda content: safetensors.torch.save({"a": torch.zeros(1)}), "holds no statistics"),
    ],
)
def test_what_is_no_such_file_is_refused(change: Any, message: str, saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(change(saved.read_bytes()))
    with pytest.raises(bo.FileError, match=rf"broken\.safetensors: .*{message}"):
        bo.Statistics.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(bo.FileError, match=r"none\.safetensors: there is no such file"):
        optimize(calibration=X, statistics=tmp_path / "none.safetensors")
