from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError
from bottleneck_opt.recovery import distil
from tests.networks import conv
from tests.recovery.samples import QUICK, X, data, double


def watched(seen: list[Tensor]) -> tuple[nn.Module, nn.Module]:
    """The same, writing down what the student is trained on."""

    def run(net: nn.Module, x: Tensor) -> Any:
        y = net.get_submodule("c")(x)
        if y.requires_grad:
            seen.append(x.detach())
        return y

    return double(run)


def test_held_out_examples_are_not_trained_on_and_all_others_are() -> None:
    seen: list[Tensor] = []
    found = distil(*watched(seen), data(X), replace(QUICK, steps=4, batch=4))
    assert (found.trained_on, found.held_out) == (16, 4)
    assert len({float(example.sum()) for batch in seen for example in batch}) == 16
    assert [len(batch) for batch in seen] == [4] * 4


def test_examples_of_several_sizes_are_trained_on_in_batches_of_their_own() -> None:
    seen: list[Tensor] = []
    found = distil(*watched(seen), data(X, X[:10, :, :6, :6]), replace(QUICK, batch=4))
    assert {tuple(batch.shape[2:]) for batch in seen} == {(8, 8), (6, 6)}
    assert found.after < found.before


def test_crops_and_flips_are_of_the_pictures() -> None:
    seen: list[Tensor] = []
    ramp = torch.arange(8.0).expand(20, 3, 8, 8) + X[:, :1, :1, :1]
    found = distil(*watched(seen), data(ramp), replace(QUICK, crop=5, flip=True))
    pictures = torch.cat(seen)
    assert pictures.shape[1:] == (3, 5, 5)
    steps = pictures.diff(dim=3)
    assert {float(step.median().round()) for step in steps} == {-1.0, 1.0}
    assert len({round(float(p.min() % 1), 3) for p in pictures}) == found.trained_on


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (X, {"crop": 9}, "got 9; expected at most 8, for pictures of 8x8"),
        (X[:, 0, 0], {"flip": True}, r"crop and flip need pictures .*got Tensor 1x8 float32"),
    ],
)
def test_what_cannot_be_cropped_is_told(given: Tensor, options: dict[str, Any], message: str) -> None:
    teacher = nn.Linear(8, 2) if given.dim() == 2 else conv(3, 3)
    with pytest.raises(InputError, match=message):
        distil(teacher, copy.deepcopy(teacher), data(given), replace(QUICK, **options))


def test_a_model_that_takes_no_such_batch_is_told_how() -> None:
    pair = double(lambda net, x: net.c(x).view(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"in batches of 8: the model fails on Tensor 8x3x8x8.*Recovery\(batch=1\)"):
        distil(*pair, data(*X.split(1)), QUICK)
    assert distil(*pair, data(*X.split(1)), replace(QUICK, batch=1)).accepted


def test_one_example_is_too_few(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(InputError, match="got 1 example to recover with; expected at least 2"):
        distil(*pair, data(X[:1]), QUICK)
