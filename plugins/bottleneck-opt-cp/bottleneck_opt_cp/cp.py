"""The pass: a 1x1, one depthwise convolution along each axis of the kernel, and a 1x1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bottleneck_opt_cp.decomposing import CpFactors, decompose, decompose_exactly, largest_rank
from torch import Tensor

from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.sites import Option, Site, Skip, Weights

LONGEST = 5e10
"""Multiply-adds that the decomposition of one layer may take, some ten seconds of a core."""


@dataclass(frozen=True)
class Cp:
    """1x1 (in -> r), depthwise kx1, depthwise 1xk, 1x1 (r -> out): CP; exact at r = min(in, out) kernel offsets.

    The full rank is that of an SVD for each kernel offset, which needs no iterations; lower ranks are tensorly's.

    Attributes:
        ranks: How many ranks to offer, evenly spread on a logarithmic scale up to where the layers cost as much.
        iterations: Of alternating least squares for each rank, at most.

    Source: Lebedev et al. 2015 for the shape, in the metric of the inputs and of the network's output.
    """

    name: ClassVar[str] = "cp"
    ranks: int = 4
    iterations: int = 10

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.ranks < 1 or self.iterations < 1:
            raise ValueError(f"ranks={self.ranks} and iterations={self.iterations} must be at least 1")

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at a few ranks; None for 1x1 kernels and Linears."""
        if site.layer.offsets == 1:
            return None
        obstacle = _find_obstacle(site)
        if obstacle is not None:
            return obstacle
        ranks = _list_ranks(site, self.ranks)
        work = self.iterations * sum(ranks) * site.weight.numel() * (2 + len(site.layer.kernel))
        if work > LONGEST:
            return Skip(f"its CP would take {work:.1g} multiply-adds", "ask for fewer: cp:ranks=2:iterations=10")
        full = largest_rank(site.weight.shape)
        covariance, curvature = site.covariance(), site.curvature()
        found = [decompose(site.weight, covariance, curvature, rank, iterations=self.iterations) for rank in ranks]
        return [_option(site, each, full) for each in (*found, decompose_exactly(site.weight))]


def _find_obstacle(site: Site) -> Skip | None:
    layer = site.layer
    if layer.groups > 1:
        return Skip(f"groups={layer.groups}: cp handles layers without groups")
    if layer.subclass:
        return Skip("its own forward is kept: its padding cannot be split between layers")
    if site.statistics.inputs.outer is None:
        return Skip(f"its patches have {layer.offsets * layer.in_channels} entries: too many for a covariance")
    axes = len(layer.kernel)
    both = zip(site.input_shapes, site.output_shapes, strict=False)
    if any(layer.output_size(shape[-axes:]) != tuple(made[-axes:]) for shape, made in both):
        return Skip("its output size is given in the call: it cannot be split between layers")
    return None


def _list_ranks(site: Site, count: int) -> list[int]:
    """Ranks below that at which the layers have as many weights as the kernel, each 1.6 times the one before."""
    layer = site.layer
    even = site.weight.numel() // (layer.in_channels + layer.out_channels + sum(layer.kernel))
    most = min(0.8 * even, largest_rank(site.weight.shape) - 1)
    return sorted({max(1, round(most / 1.6**step)) for step in range(count)}) if most >= 1 else []


def _option(site: Site, factors: CpFactors, full: int) -> Option:
    rank = factors.out.shape[1]
    layers = _describe(site.layer, rank)
    flat = factors.out @ factors.patterns()
    loss = 0.0 if rank == full else site.predict_loss(flat)
    return Option("cp", (rank,), (full,), layers, loss, partial(_fill, site, factors, layers, flat))


def _describe(layer: LayerSpec, rank: int) -> tuple[LayerSpec, ...]:
    return (
        layer.pointwise("first", layer.in_channels, rank, bias=False),
        *(_along(layer, axis, rank) for axis in _long_axes(layer)),
        layer.pointwise("last", rank, layer.out_channels, bias=True),
    )


def _long_axes(layer: LayerSpec) -> list[int]:
    return [axis for axis, length in enumerate(layer.kernel) if length > 1]


def _along(layer: LayerSpec, axis: int, rank: int) -> LayerSpec:
    """The depthwise layer along one axis; the first does what there is to do along the axes that are one long, too."""
    first = axis == _long_axes(layer)[0]
    mine = [a == axis or (first and length == 1) for a, length in enumerate(layer.kernel)]

    def keep(values: Sequence[int], neutral: int) -> tuple[int, ...]:
        return tuple(value if own else neutral for value, own in zip(values, mine, strict=True))

    return layer.named(
        f"axis{axis}", in_channels=rank, out_channels=rank, groups=rank, bias=False, kernel=keep(layer.kernel, 1),
        stride=keep(layer.stride, 1), dilation=keep(layer.dilation, 1),
        padding=layer.padding if isinstance(layer.padding, str) else keep(layer.padding, 0),
        output_padding=keep(layer.output_padding, 0) if layer.output_padding else (),
    )  # fmt: skip


def _fill(site: Site, factors: CpFactors, layers: Sequence[LayerSpec], flat: Tensor) -> Sequence[Weights]:
    """The factors as layers; an axis of length one has no layer, its factor goes into the last one."""
    first, *middle, last = layers
    scale = math.prod((each[0] for each in factors.axes if len(each) == 1), start=factors.out.new_ones(1))
    long = [each for each in factors.axes if len(each) > 1]
    depthwise = [Weights(factor.T.reshape(layer.weight_shape)) for factor, layer in zip(long, middle, strict=True)]
    return (
        Weights(factors.inner.T.reshape(first.weight_shape)),
        *depthwise,
        Weights((factors.out * scale).reshape(last.weight_shape), site.corrected_bias(flat)),
    )
