from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.recovery import distil
from tests.networks import noise
from tests.recovery.samples import QUICK, X, data, double


def test_calls_with_masks_shared_tensors_and_many_outputs() -> None:
    table = noise(3, 1, 1, dtype=torch.float32)

    def run(net: nn.Module, x: Tensor, *, mask: Tensor, table: Tensor) -> Any:
        y = net.get_submodule("c")(x * table) * mask[:, None, None, None]
        return {"maps": y, "scores": [y.mean((2, 3)), mask]}

    mask = torch.ones(20, dtype=torch.long)
    calls = [Inputs((X[at : at + 10],), {"mask": mask[at : at + 10], "table": table}) for at in (0, 10)]
    found = distil(*double(run), data(*calls), QUICK)
    assert found.after < 0.5 * found.before


def test_outputs_ruled_out_by_infinity_are_left_out() -> None:
    def run(net: nn.Module, x: Tensor) -> Any:
        y = net.get_submodule("c")(x).mean((2, 3))
        return torch.cat([y, torch.full((len(x), 1), -math.inf)], 1)

    found = distil(*double(run), data(), QUICK)
    assert found.after < 0.5 * found.before


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda net, x: torch.no_grad()(net.c)(x), "no gradient reaches the parameters"),
        (lambda net, x: net.c(x).argmax(1), "the output has no floating values that vary"),
        (lambda net, x: net.c(x) * 0, "the output has no floating values that vary"),
    ],
)
def test_a_model_that_cannot_learn_stays_and_the_reason_is_told(function: Callable[..., Any], reason: str) -> None:
    found = distil(*double(function), data(), QUICK)
    assert not found.accepted
    assert found.stopped == reason


def test_an_unchanged_model_is_not_trained(pair: tuple[nn.Module, nn.Module]) -> None:
    found = distil(pair[0], copy.deepcopy(pair[0]), data(), replace(QUICK, reestimate_norms=False))
    assert (found.steps, found.stopped) == (0, "the outputs are those of the original already")


def test_a_backward_pass_that_fails_is_told() -> None:
    def run(net: nn.Module, x: Tensor) -> Any:
        y = net.get_submodule("c")(x).exp()
        z = y * 2
        y.zero_()
        return z

    with pytest.raises(ModelError, match=r"Computes cannot be trained, its backward pass fails: one of the variables"):
        distil(*double(run), data(), QUICK)


def test_a_loss_of_the_users_own_is_followed(pair: tuple[nn.Module, nn.Module]) -> None:
    def first(got: Tensor, expected: Tensor, batch: Inputs) -> Tensor:
        assert len(got) == batch_size(batch)
        return (got - expected)[:, 0].square().mean()

    teacher, student = pair
    with torch.no_grad():
        before = (teacher(X) - student(X)).square().mean(0)
    distil(teacher, student, data(), replace(QUICK, loss=first, features=False))
    with torch.no_grad():
        after = (teacher(X) - student(X)).square().mean(0)
    assert after[0] < 0.5 * before[0]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda got, expected, batch: got - expected, r"loss returned \(.*\); expected a Tensor of one value"),
        (lambda got, expected, batch: 1.0, "loss returned float"),
        (lambda got, expected, batch: got.x, "loss failed: AttributeError"),
    ],
)
def test_a_loss_that_is_none_is_told(pair: tuple[nn.Module, nn.Module], loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        distil(*pair, data(), replace(QUICK, loss=loss))
