"""A convolution along one axis, then one along the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.sites import Option, Site, Skip, Weights, paying_ranks
from bottleneck_opt.tied import Order, TiedFit, find_tied_obstacle, fit_tied, kernel_along


@dataclass(frozen=True)
class Spatial:
    """kx1 (in -> r, stride (s, 1)), then 1xk (r -> out, stride (1, s)); exact at r = min(k in, k out), a group each.

    In three dimensions the first layer spans height and width, the second the depth.

    Source: Jaderberg et al. 2014 for the shape, Tran et al. 2018 for three dimensions; the fit is that of ``reduce``.
    """

    name: ClassVar[str] = "spatial"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank worth offering; None for kernels that span one axis only."""
        if sum(length > 1 for length in site.layer.kernel) < 2:
            return None
        if site.layer.subclass:
            return Skip("its own forward is kept: its padding cannot be split between two layers")
        skip = find_tied_obstacle(site) or _find_told_size(site)
        if skip is not None:
            return skip
        order = _choose_order(site.layer)
        layer = site.layer
        before = layer.offsets // order.groups * layer.in_channels // layer.groups
        after = order.groups * layer.out_channels // layer.groups
        ranks = paying_ranks(before=before, after=after)
        fit = fit_tied(site, order, ranks)
        return [_option(fit, rank, ranks[-1]) for rank in ranks]


def _find_told_size(site: Site) -> Skip | None:
    axes = len(site.layer.kernel)
    both = zip(site.input_shapes, site.output_shapes, strict=False)
    told = any(site.layer.output_size(shape[-axes:]) != tuple(made[-axes:]) for shape, made in both)
    return Skip("its output size is given in the call: it cannot be split between two layers") if told else None


def _choose_order(layer: LayerSpec) -> Order:
    return Order(layer.kernel, (0,) if len(layer.kernel) == 2 else (1, 2))


def _option(fit: TiedFit, rank: int, full: int) -> Option:
    layer, order = fit.site.layer, fit.order
    width = layer.groups * rank
    layers = (
        _along(layer, order.lead, "column", out_channels=width, bias=False),
        _along(layer, order.rest, "row", in_channels=width, bias=True),
    )
    return Option("spatial", (rank,), (full,), layers, fit.losses[rank], partial(_fill, fit, rank))


def _along(layer: LayerSpec, axes: Sequence[int], name: str, **changes: object) -> LayerSpec:
    """The part of a layer that works along some axes; along the others it does nothing."""

    def keep(values: Sequence[int], neutral: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else neutral for axis, value in enumerate(values))

    return layer.named(
        name,
        kernel=kernel_along(axes, layer.kernel),
        stride=keep(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else keep(layer.padding, 0),
        dilation=keep(layer.dilation, 1),
        output_padding=keep(layer.output_padding, 0),
        **changes,
    )


def _fill(fit: TiedFit, rank: int) -> Sequence[Weights]:
    first, second, approximation = fit.factors(rank)
    layer, order = fit.site.layer, fit.order
    lead, rest = (kernel_along(axes, layer.kernel) for axes in (order.lead, order.rest))
    column = first.reshape(len(first), -1, layer.in_channels // layer.groups).transpose(1, 2)
    row = second.transpose(1, 2)
    return (
        Weights(column.reshape(len(first), -1, *lead)),
        Weights(row.reshape(len(second), rank, *rest), fit.site.corrected_bias(approximation)),
    )
