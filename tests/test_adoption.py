from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.testing import rewrite_everything
from tests.layer_samples import OwnKernel, relative_gap, spec_of
from tests.networks import Computes, conv, noise, seeded

X = noise(2, 6, 8, 9)


class Own(nn.Module):
    """A parameter and a function of it and the input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.kernel = function, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.kernel)


OWN: dict[str, tuple[Callable[[], nn.Module], nn.Module]] = {
    "scaled": (lambda: OwnKernel(6, 8), conv(6, 8)),
    "plain": (lambda: Own(F.conv2d, 8, 6, 3, 3), nn.Conv2d(6, 8, 3, bias=False)),
    "options by keyword": (
        lambda: Own(lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=1, groups=2), 8, 3, 3, 3),
        nn.Conv2d(6, 8, 3, stride=(2, 1), padding=1, groups=2, bias=False),
    ),
    "named padding": (
        lambda: Own(lambda x, w: F.conv2d(x, w, None, 1, "same", 2), 8, 6, 3, 3),
        nn.Conv2d(6, 8, 3, padding="same", dilation=2, bias=False),
    ),
    "transposed": (
        lambda: Own(lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1), 6, 8, 3, 3),
        nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, bias=False),
    ),
    "normalised": (lambda: Own(lambda x, w: F.conv2d(x, w / w.norm()), 8, 6, 3, 3), nn.Conv2d(6, 8, 3, bias=False)),
}


def in_a_net(make: Callable[[], nn.Module]) -> nn.Module:
    return seeded(lambda: nn.Sequential(make(), nn.Tanh()))


@pytest.mark.parametrize("name", OWN)
def test_a_module_that_is_one_convolution_is_a_layer(name: str) -> None:
    make, twin = OWN[name]
    found = bo.trace(in_a_net(make), X).own_layers["0"]
    assert found.named("conv", subclass="") == spec_of(twin)
    assert found.subclass.endswith(("OwnKernel", "Own"))


@pytest.mark.parametrize("form", ["reduce", "expand"])
@pytest.mark.parametrize("name", OWN)
def test_it_is_rewritten_exactly(name: str, form: str) -> None:
    net = in_a_net(OWN[name][0])
    rewritten = rewrite_everything(net, X, passes=[form])
    x = noise(3, 6, 9, 10, seed=1)
    assert [step.path for step in rewritten.plan.steps] == ["0"]
    assert relative_gap(rewritten.model(x), net(x)) < 1e-8


def test_a_linear_of_ones_own() -> None:
    net = in_a_net(lambda: Own(F.linear, 5, 9))
    rewritten = rewrite_everything(net, noise(2, 3, 9))
    assert [step.form for step in rewritten.plan.steps] == ["expand"]
    assert relative_gap(rewritten.model(noise(4, 9, seed=1)), net(noise(4, 9, seed=1))) < 1e-8


def run_twice(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.own(net.own(x))
    return out


def test_a_module_called_twice_is_one_layer() -> None:
    net = seeded(lambda: Computes(run_twice, own=Own(lambda x, w: F.conv2d(x, w, padding=1), 6, 6, 3, 3)))
    rewritten = rewrite_everything(net, X)
    assert [step.path for step in rewritten.plan.steps] == ["own"]
    assert relative_gap(rewritten.model(X.flip(0) + 1), net(X.flip(0) + 1)) < 1e-8


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "an activation": lambda: Own(lambda x, w: F.conv2d(x, w).relu(), 8, 6, 3, 3),
    "two convolutions": lambda: Own(lambda x, w: F.conv2d(F.conv2d(x, w), w), 6, 6, 3, 3),
    "a weight of the input": lambda: Own(lambda x, w: F.conv2d(x, w * x.mean().sin()), 8, 6, 3, 3),
    "no parameter of its own": lambda: Own(lambda x, w: F.conv2d(x, torch.ones(8, 6, 3, 3).to(x)) * w[0, 0], 1, 1),
    "a layer inside": lambda: Computes(lambda net, x: F.conv2d(net.inner(x), net.inner.weight), inner=conv(6, 6)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_module_that_does_more_is_not_replaced(name: str) -> None:
    net = in_a_net(OTHERS[name])
    rewritten = rewrite_everything(net, noise(2, 6, 8, 9, seed=3))
    assert "0" not in [step.path for step in rewritten.plan.steps]
    assert relative_gap(rewritten.model(X), net(X)) < 1e-8


def test_a_model_without_values_has_no_layers_of_its_own() -> None:
    with torch.device("meta"):
        net = nn.Sequential(OwnKernel(6, 8))
    assert not bo.trace(net, torch.empty(1, 6, 8, 8, device="meta")).own_layers


def test_the_network_that_is_one_convolution_itself_is_left_alone() -> None:
    assert not rewrite_everything(seeded(lambda: OwnKernel(6, 8)), X).plan.steps
