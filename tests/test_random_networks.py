"""Networks put together at random from everything that models are made of; what must hold for each of them."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import bottleneck_opt as bo
from bottleneck_opt.layers import is_layer
from bottleneck_opt.testing import FullRankRewrite, rewrite_everything
from tests.layer_samples import MODES, Activated, Covering, OwnKernel, Scaled, Standardised, relative_gap
from tests.networks import Computes, counted_by_torch, noise, seeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # importing fvcore scripts a function, which torch deprecates
    from fvcore.nn import FlopCountAnalysis

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
SIZES = {1: (15,), 2: (9, 8), 3: (6, 5, 6)}
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.SiLU, nn.Hardswish)
Make = Callable[[], nn.Module]


def of(name: str, axes: int) -> Any:
    """The torch.nn class of that name for a number of axes."""
    return getattr(nn, f"{name}{axes}d")


class _Drawer:
    """Draws pieces of a network; every piece takes ``width`` channels and gives as many, whatever happens inside."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.axes = draw(st.sampled_from([2, 2, 1, 3]))
        self.width = draw(st.sampled_from([4, 6, 8]))

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def conv(self, i: int, o: int) -> nn.Module:
        """A convolution that keeps the size."""
        kernel, dilation, mode = self.pick(3, 1, 5), self.pick(1, 2), self.pick("zeros", "zeros", *MODES)
        dilation = 1 if kernel == 5 else dilation
        padding = self.pick("same", dilation * (kernel // 2), dilation * (kernel // 2))
        groups = self.pick(1, 1, 2) if i % 2 == o % 2 == 0 else 1
        shape = {"padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
        made: nn.Module = of("Conv", self.axes)(i, o, kernel, bias=self.pick(True, False), **shape)
        return made

    def plain(self) -> nn.Module:
        return nn.Sequential(self.conv(self.width, 2 * self.width), nn.ReLU(), self.conv(2 * self.width, self.width))

    def residual(self) -> nn.Module:
        inner = nn.Sequential(self.conv(self.width, self.width), of("BatchNorm", self.axes)(self.width), nn.ReLU())
        return Computes(lambda net, x: x + net.inner(x), inner=inner)

    def branches(self) -> nn.Module:
        half = self.width // 2
        return Computes(lambda net, x: torch.cat([net.left(x), net.right(x).tanh()], 1),
                        left=self.conv(self.width, self.width - half), right=self.conv(self.width, half))  # fmt: skip

    def called_twice(self) -> nn.Module:
        return Computes(lambda net, x: net.loop(net.loop(x).tanh()), loop=self.conv(self.width, self.width))

    def two_names(self) -> nn.Module:
        layer = self.conv(self.width, self.width)
        return Computes(lambda net, x: net.a(x).tanh() - net.b(2 * x).tanh(), a=layer, b=layer)

    def tied(self) -> nn.Module:
        first = self.conv(self.width, self.width)
        second = copy.deepcopy(first)
        for name, parameter in list(first._parameters.items()):
            second.register_parameter(name, parameter)
        return nn.Sequential(first, nn.Tanh(), second)

    def depthwise(self) -> nn.Module:
        factor = self.pick(1, 2)
        spatial = of("Conv", self.axes)(self.width, factor * self.width, 3, padding=1, groups=self.width)
        return nn.Sequential(spatial, nn.SiLU(), of("Conv", self.axes)(factor * self.width, self.width, 1))

    def hourglass(self) -> nn.Module:
        """Down by a stride and up by a transposed convolution, to the size before."""
        groups, stride = self.pick(1, 2), self.pick(2, 3)
        down = of("Conv", self.axes)(self.width, 2 * self.width, 3, stride=stride, padding=1)
        up = of("ConvTranspose", self.axes)(2 * self.width, self.width, 3, stride=stride, padding=1, groups=groups)
        return Computes(lambda net, x: net.up(net.down(x).tanh(), output_size=x.shape[2:]), down=down, up=up)

    def upsampling(self) -> nn.Module:
        up = of("ConvTranspose", self.axes)(self.width, self.width, 2, stride=2, groups=self.pick(1, 2))
        return nn.Sequential(up, nn.ReLU(), of("AvgPool", self.axes)(2))

    def normed(self) -> nn.Module:
        made: nn.Module = parametrizations.weight_norm(of("Conv", self.axes)(self.width, self.width, 3, padding=1))
        return made

    def stateless(self) -> nn.Module:
        norm = self.pick(nn.GroupNorm(2, self.width), of("InstanceNorm", self.axes)(self.width, affine=True),
                         of("BatchNorm", self.axes)(self.width))  # fmt: skip
        return nn.Sequential(norm, self.pick(*ACTIVATIONS)(), of("MaxPool", self.axes)(3, 1, 1))

    def attention(self) -> nn.Module:
        """Linears over the positions: gates, and a product of queries with keys."""

        def run(net: Any, x: Tensor) -> Tensor:
            rows = x.flatten(2).transpose(1, 2)
            query, key, value = net.mixed(rows).chunk(3, -1)
            scores = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
            out: Tensor = net.out(scores @ value).transpose(1, 2)
            return out.reshape(x.shape) + x

        return Computes(run, mixed=nn.Linear(self.width, 3 * self.width), out=nn.Linear(self.width, self.width))

    def own(self) -> nn.Module:
        """Layers with a forward of their own, which are written for pictures."""
        kind = self.pick(OwnKernel, Standardised, Covering, Scaled, Activated)
        options = {} if kind in (OwnKernel, Covering) else {"padding": 1}
        made: nn.Module = kind(self.width, self.width, 3, **options)
        return made

    def pieces(self) -> Sequence[Make]:
        every: list[Make] = [
            self.plain, self.residual, self.branches, self.called_twice, self.two_names, self.tied, self.depthwise,
            self.hourglass, self.upsampling, self.normed, self.stateless, self.attention,
        ]  # fmt: skip
        return [*every, self.own, self.own] if self.axes == 2 else every

    def network(self) -> nn.Module:
        body = [piece() for piece in self.draw(st.lists(st.sampled_from(self.pieces()), min_size=1, max_size=4))]
        head = [of("AdaptiveAvgPool", self.axes)(1), nn.Flatten(), nn.Linear(self.width, 5)] * self.pick(0, 1)
        return nn.Sequential(self.conv(2 * (self.width // 4), self.width), *body, *head)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of random pieces in float64 and eval mode, with its input's shape."""
    drawer = _Drawer(draw)
    net = seeded(drawer.network, seed=draw(st.integers(0, 99)))
    return net, (2, 2 * (drawer.width // 4), *SIZES[drawer.axes])


def check_layers_are_accounted_for(net: nn.Module, rewritten: FullRankRewrite) -> None:
    """Every layer is either rewritten, under all its names, or refused with a reason; tied twins are one layer."""
    done = {name for step in rewritten.plan.steps for name in step.names}
    twins: dict[int, set[str]] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        if is_layer(module) or isinstance(module, OwnKernel):
            twins.setdefault(id(next(module.parameters())), set()).add(path)
    for names in twins.values():
        assert names <= done or (names & rewritten.refused.keys() and not names & done), names
    assert all(skip.reason for skip in rewritten.refused.values())


def check_costs(net: nn.Module, x: Tensor, rewritten: FullRankRewrite) -> None:
    """The counts before are torch's own, and those of the plan afterwards too."""
    assert rewritten.traced.cost.macs == counted_by_torch(net, x)
    assert rewritten.plan.after.macs == counted_by_torch(rewritten.model, x)
    assert rewritten.plan.after.params == sum(parameter.numel() for parameter in rewritten.model.parameters())


MATRIX = {"conv", "linear", "addmm", "matmul", "bmm", "mm"}


def counted_by_fvcore(net: nn.Module, x: Tensor) -> int | None:
    """Multiply-adds by fvcore's own analysis; None where it says itself that it left out a convolution."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(net, x)
        counts, unsupported = analysis.by_operator(), analysis.unsupported_ops()
    if "aten::_convolution_mode" in unsupported:  # padding="same" and "valid"
        return None
    return int(sum(count for name, count in counts.items() if name in MATRIX))


@given(networks(), st.sampled_from([None, ["reduce"], ["expand"]]))
@settings(deadline=None, max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_a_random_network_is_rewritten_exactly_and_counted_rightly(
    drawn: tuple[nn.Module, tuple[int, ...]], passes: list[str] | None
) -> None:
    net, shape = drawn
    example, x = noise(*shape, seed=11), noise(*shape, seed=12)
    expected, state = net(x), copy.deepcopy(net.state_dict())
    rewritten = rewrite_everything(net, example, passes=passes)
    assert relative_gap(rewritten.model(x), expected) < 1e-6
    check_layers_are_accounted_for(net, rewritten)
    check_costs(net, example, rewritten)
    assert bo.Plan.from_json(rewritten.plan.to_json()) == rewritten.plan
    assert torch.equal(net(x), expected)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@given(networks())
@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_where_fvcore_counts_everything_it_counts_the_same(drawn: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = drawn
    x = noise(*shape, seed=11)
    counted = counted_by_fvcore(net, x)
    if counted is None:
        assert any(isinstance(getattr(module, "padding", 0), str) for module in net.modules())
    else:
        assert counted == bo.trace(net, x).cost.macs


def can_export(net: nn.Module, x: Tensor) -> bool:
    try:
        torch.export.export(net, (x,))
    except Exception:  # export fails in many ways; each of them means no
        return False
    return True


@given(networks())
@settings(deadline=None, max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_what_could_be_exported_still_can(drawn: tuple[nn.Module, tuple[int, ...]]) -> None:
    net, shape = drawn
    x = noise(*shape, seed=11)
    model = rewrite_everything(net, x).model.requires_grad_(False)
    if can_export(net, x):
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x))
