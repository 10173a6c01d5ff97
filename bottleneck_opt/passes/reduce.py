"""A 1x1 that reduces the channels before an expensive convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bottleneck_opt.sites import Option, Site, Skip, Weights, paying_ranks
from bottleneck_opt.tied import Order, TiedFit, find_tied_obstacle, fit_tied


@dataclass(frozen=True)
class Reduce:
    """1x1 (in -> r), then the kernel (r -> out); exact at r = min(in, kernel offsets * out), a group each.

    The 1x1 carries no bias, so zero padding commutes with it and borders are exact.

    Source: Szegedy et al. 2015 for the shape (Inception's reductions); the fit is two-sided reduced-rank regression.
    """

    name: ClassVar[str] = "reduce"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank worth offering; None for 1x1 kernels."""
        if site.layer.offsets == 1:
            return None
        skip = find_tied_obstacle(site)
        if skip is not None:
            return skip
        layer = site.layer
        before, after = layer.in_channels // layer.groups, layer.offsets * layer.out_channels // layer.groups
        ranks = paying_ranks(before=before, after=after)
        fit = fit_tied(site, Order(layer.kernel), ranks)
        return [_option(fit, rank, ranks[-1]) for rank in ranks]


def _option(fit: TiedFit, rank: int, full: int) -> Option:
    layer = fit.site.layer
    width = layer.groups * rank
    layers = (
        layer.pointwise("reduce", layer.in_channels, width, bias=False),
        layer.named("conv", in_channels=width, bias=True),
    )
    return Option("reduce", (rank,), (full,), layers, fit.losses[rank], partial(_fill, fit, rank))


def _fill(fit: TiedFit, rank: int) -> Sequence[Weights]:
    first, second, approximation = fit.factors(rank)
    kernel = fit.site.layer.kernel
    pointwise = first.reshape(*first.shape, *(1 for _ in kernel))
    conv = second.transpose(1, 2).reshape(len(second), rank, *kernel)
    return Weights(pointwise), Weights(conv, fit.site.corrected_bias(approximation))
