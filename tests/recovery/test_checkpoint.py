from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

from bottleneck_opt import Recovery
from bottleneck_opt.errors import FileError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.progress import Shown
from bottleneck_opt.recovery import distil
from bottleneck_opt.working_copy import working_copy
from tests.networks import Residual, seeded
from tests.recovery.samples import QUICK, X, data, same, state


class BrokenOffError(RuntimeError):
    """Stands for an interrupt."""


def interrupted(pair: tuple[nn.Module, nn.Module], options: Recovery, step: int) -> None:
    """Train a copy and break off during a step."""
    calls = 0

    def advance() -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        distil(pair[0], copy.deepcopy(pair[1]), data(), options, shown=Shown(advance))


@pytest.mark.parametrize("step", [1, 10, 27])
def test_an_interrupted_run_goes_on_to_the_same_result(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path, step: int
) -> None:
    whole = copy.deepcopy(pair[1])
    expected = distil(pair[0], whole, data(), QUICK)
    kept = replace(QUICK, checkpoint=tmp_path / "recovery.safetensors")
    interrupted(pair, kept, step)
    calls: list[None] = []
    found = distil(*pair, data(), kept, shown=Shown(lambda: calls.append(None)))
    assert same(pair[1], whole)
    assert found == expected
    assert len(calls) == 40


def test_a_run_interrupted_in_its_second_try_goes_on_to_the_same_result(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bottleneck_opt.recovery.distilling.choose_rate", lambda *given: 0.2)
    whole = copy.deepcopy(pair[1])
    expected = distil(pair[0], whole, data(), QUICK)
    kept, looks = replace(QUICK, checkpoint=tmp_path / "recovery.safetensors"), 0

    def tell(text: str) -> None:
        nonlocal looks
        looks += 1
        if looks == 6:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        distil(pair[0], copy.deepcopy(pair[1]), data(), kept, shown=Shown(tell=tell))
    found = distil(*pair, data(), kept)
    assert found == expected
    assert found.in_vain == 40
    assert same(pair[1], whole)


def test_a_finished_run_is_read_back(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    kept = replace(QUICK, checkpoint=tmp_path / "recovery.safetensors")
    first, second = copy.deepcopy(pair[1]), pair[1]
    distil(pair[0], first, data(), kept)
    written = (tmp_path / "recovery.safetensors").read_bytes()
    distil(pair[0], second, data(), kept)
    assert same(first, second)
    assert (tmp_path / "recovery.safetensors").read_bytes() == written
    with safetensors.safe_open(tmp_path / "recovery.safetensors", framework="pt") as file:
        assert any(name.startswith("adam/exp_avg/") for name in file.keys())  # noqa: SIM118  (it is no dict)


def test_a_checkpoint_of_another_run_is_refused(
    net: nn.Module, pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    teacher, student = pair
    kept = replace(QUICK, steps=2, checkpoint=tmp_path / "recovery.safetensors")
    distil(teacher, copy.deepcopy(student), data(), kept)
    other = working_copy(seeded(Residual, seed=1, dtype=torch.float32))
    before = state(student)
    for message, arguments in {
        "of another original": (other, student, data(), kept),
        "of another rewritten model": (teacher, other, data(), kept),
        "of other data": (teacher, student, data(X + 1), kept),
        r"of other options \(.*\"steps\": 2.*expected.*\"steps\": 3": (
            teacher, student, data(), replace(kept, steps=3),
        ),
    }.items():  # fmt: skip
        with pytest.raises(FileError, match=message):
            distil(*arguments)
    assert same(student, before)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_checkpoint_is_refused(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "recovery.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"recovery\.safetensors: is not a checkpoint of a recovery"):
        distil(*pair, data(), replace(QUICK, checkpoint=path))
    assert path.read_bytes() == content


def test_a_truncated_checkpoint_is_refused(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "recovery.safetensors"
    kept = replace(QUICK, steps=1, checkpoint=path)
    distil(*pair, data(), kept)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="is not a checkpoint of a recovery"):
        distil(*pair, data(), kept)


def test_a_place_that_cannot_be_written_is_told_before_training(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    steps: list[None] = []
    with pytest.raises(FileError, match="cannot be written"):
        distil(*pair, data(), replace(QUICK, checkpoint=tmp_path / "no" / "x"), shown=Shown(lambda: steps.append(None)))
    assert steps == []


def test_a_start_that_is_no_number_is_beaten_by_any_and_goes_on_from_a_file(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    looks = 0

    def loss(got: Tensor, expected: Tensor, batch: Inputs) -> Tensor:
        nonlocal looks
        looks += not got.requires_grad
        return (got - expected).square().mean() * (math.nan if looks == 1 and not got.requires_grad else 1)

    kept = replace(QUICK, loss=loss, checkpoint=tmp_path / "x")
    interrupted(pair, kept, 5)
    found = distil(*pair, data(), kept)
    assert found.before == math.inf
    assert found.after < 1
