from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import optimize
from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.factored import Factored
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.recovery import distil
from bottleneck_opt.recovery.distilling import measure_scales
from bottleneck_opt.recovery.objective import Objective, find_blocks, weigh_blocks
from bottleneck_opt.working_copy import working_copy
from tests.networks import conv, noise, seeded
from tests.recovery.samples import QUICK, UNFITTED, X, data, double


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


class Chain(nn.Module):
    """Five convolutions in a row, and either a map or a few values."""

    def __init__(self, *, maps: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(conv(3 if not index else 16, 16) for index in range(5)))
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y if self.maps else y.mean((2, 3))[:, :2]


def chain(*, maps: bool) -> tuple[nn.Module, nn.Module]:
    net = seeded(lambda: Chain(maps=maps), dtype=torch.float32)
    small = optimize(net, X[:1], calibration=X, budget=0.4, passes=("reduce",), recipe=UNFITTED, progress=False)
    return working_copy(net), working_copy(small.model)


def test_blocks_of_few_layers_are_followed(pair: tuple[nn.Module, nn.Module]) -> None:
    changed = [path for path, each in pair[1].named_modules() if isinstance(each, Factored)]
    found = find_blocks(*pair, Inputs((X,)), examples=20)
    assert found == tuple(dict.fromkeys(path.rpartition(".")[0] or path for path in changed))


def test_of_a_chain_its_layers_are_followed_where_outputs_are_few() -> None:
    pair = chain(maps=False)
    found = find_blocks(*pair, Inputs((X,)), examples=len(X))
    assert found
    assert found == tuple(path for path, each in pair[1].named_modules() if isinstance(each, Factored))


@pytest.mark.parametrize(("maps", "examples"), [(True, 20), (False, 10**6)])
def test_of_a_chain_nothing_is_followed_where_outputs_tell_enough(maps: bool, examples: int) -> None:
    assert find_blocks(*chain(maps=maps), Inputs((X,)), examples=examples) == ()


def test_what_is_inside_begins_with_twenty_times_the_loss_of_the_outputs() -> None:
    pair, batch = chain(maps=False), Inputs((X,))
    plain = Objective(*pair, measure_scales(pair[0], data()), find_blocks(*pair, batch, examples=20), None, 0)
    weighed = weigh_blocks(plain, [batch])
    outputs, inside = plain.compare_both(batch, 0)
    assert float(weighed.weight * inside) == pytest.approx(20 * float(outputs), rel=1e-4)
    assert float(weighed.training_loss(batch, 0)) == pytest.approx(21 * float(outputs), rel=1e-4)


def test_beside_a_loss_of_the_users_own_what_is_inside_keeps_its_weight() -> None:
    pair, batch = chain(maps=False), Inputs((X,))
    blocks = find_blocks(*pair, batch, examples=20)
    own = Objective(*pair, measure_scales(pair[0], data()), blocks, lambda got, wanted, inputs: got.sum(), 0)
    assert weigh_blocks(own, [batch]) == own


def test_where_outputs_are_not_finite_what_is_inside_keeps_its_weight() -> None:
    pair, scales = chain(maps=False), measure_scales(chain(maps=False)[0], data())
    plain = Objective(*pair, scales, find_blocks(*pair, Inputs((X,)), examples=20), None, 0)
    with torch.no_grad():
        next(pair[1].parameters()).fill_(math.nan)
    assert weigh_blocks(plain, [Inputs((X,))]) == plain
