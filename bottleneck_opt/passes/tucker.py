"""A narrow convolution between two 1x1 layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bottleneck_opt.alternating import affordable_rounds, improve_projection, make_target
from bottleneck_opt.sites import Option, Site, Skip, Weights, break_even, rank_steps
from bottleneck_opt.tied import find_tied_obstacle
from bottleneck_opt.tucker_factors import TuckerFactors, fit_tucker, list_tucker_losses


@dataclass(frozen=True)
class Tucker:
    """1x1 (in -> r1), the kernel (r1 -> r2), 1x1 (r2 -> out); exact at r1 = in, r2 = out.

    Attributes:
        steps: How many values of r1 to try, evenly spread; for each, all values of r2 come from one decomposition.

    Source: Kim et al. 2016 for the shape; the first basis is that of ``reduce``, the last the optimum for it.
    """

    name: ClassVar[str] = "tucker"
    steps: int = 8

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options on a grid of both ranks; None for 1x1 kernels."""
        if site.layer.offsets == 1:
            return None
        skip = _find_obstacle(site)
        if skip is not None:
            return skip
        pairs = _list_ranks(site, self.steps)
        losses = list_tucker_losses(site.reduced, sorted({before for before, _ in pairs}))
        full = (site.layer.in_channels, site.layer.out_channels)
        fit = _Fit(site, site.reduced.projection)
        found = [_option(fit, pair, float(losses[pair[0]][pair[1]])) for pair in pairs]
        return [*found, _option(fit, full, 0.0)]


def _list_ranks(site: Site, steps: int) -> list[tuple[int, int]]:
    """Pairs of ranks at which neither outer factor could be left out for fewer weights and no more loss."""
    inner, outer, offsets = site.layer.in_channels, site.layer.out_channels, site.layer.offsets
    before = [rank for rank in rank_steps(inner) if rank <= break_even(before=inner, after=offsets * outer)]
    chosen = sorted({before[index * len(before) // steps] for index in range(steps)} if before else ())
    return [
        (one, two)
        for one in chosen
        for two in rank_steps(outer)
        if one <= break_even(before=inner, after=offsets * two) and two <= break_even(before=offsets * one, after=outer)
    ]


def _find_obstacle(site: Site) -> Skip | None:
    if site.layer.groups > 1:
        return Skip(f"groups={site.layer.groups}: tucker handles layers without groups, the other passes handle these")
    if not site.mixable_output:
        return Skip("its own forward does more with its output than a convolution: no 1x1 can stand after it")
    return find_tied_obstacle(site)


@dataclass(frozen=True)
class _Fit:
    """A site and the first factor of ``reduce`` at the highest rank that can pay; the rest is computed when chosen."""

    site: Site
    projection: Tensor

    def factors(self, ranks: tuple[int, int]) -> TuckerFactors:
        site, (before, after) = self.site, ranks
        weight = site.offset_weight
        if ranks == (site.layer.in_channels, site.layer.out_channels):
            ones = [torch.eye(rank, dtype=weight.dtype, device="cpu") for rank in ranks]
            return TuckerFactors(ones[0], weight, ones[1])
        covariance, curvature, first = site.covariance(), site.curvature(), self.projection[:before]
        out, offsets, width = weight.shape
        rounds = affordable_rounds(site.rounds, out=out, width=offsets * width, rank=before)
        if rounds:
            target = make_target(weight, covariance, curvature)
            first = improve_projection(target, first, rounds=rounds, after=after)
        return fit_tucker(weight, covariance, curvature, first, after)


def _option(fit: _Fit, ranks: tuple[int, int], loss: float) -> Option:
    layer = fit.site.layer
    layers = (
        layer.pointwise("reduce", layer.in_channels, ranks[0], bias=False),
        layer.named("conv", in_channels=ranks[0], out_channels=ranks[1], bias=False),
        layer.pointwise("expand", ranks[1], layer.out_channels, bias=True),
    )
    full = (layer.in_channels, layer.out_channels)
    return Option("tucker", ranks, full, layers, loss, partial(_fill, fit, ranks))


def _fill(fit: _Fit, ranks: tuple[int, int]) -> Sequence[Weights]:
    found = fit.factors(ranks)
    kernel = fit.site.layer.kernel
    ones = tuple(1 for _ in kernel)
    merged = (found.last @ found.core.flatten(1)).view(len(found.last), *found.core.shape[1:]) @ found.first
    return (
        Weights(found.first.reshape(*found.first.shape, *ones)),
        Weights(found.core.transpose(1, 2).reshape(ranks[1], ranks[0], *kernel)),
        Weights(found.last.reshape(*found.last.shape, *ones), fit.site.corrected_bias(merged.flatten(1))),
    )
