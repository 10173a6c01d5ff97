"""A narrow convolution between two 1x1 layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bottleneck_opt.factorization import TuckerFit, fit_tucker
from bottleneck_opt.sites import Option, Site, Skip, Weights, rank_steps
from bottleneck_opt.tied import find_tied_obstacle


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
        inner, outer = site.layer.in_channels, site.layer.out_channels
        before = rank_steps(inner)
        chosen = sorted({before[index * len(before) // self.steps] for index in range(self.steps)} if before else ())
        fit = fit_tucker(site.reduced, site.curvature(), (*chosen, inner))
        after = (*rank_steps(outer), outer)
        return [_option(site, fit, (one, two)) for one in (*chosen, inner) for two in after]


def _find_obstacle(site: Site) -> Skip | None:
    if site.layer.groups > 1:
        return Skip(f"groups={site.layer.groups}: tucker handles layers without groups, the other passes handle these")
    if not site.mixable_output:
        return Skip("its own forward does more with its output than a convolution: no 1x1 can stand after it")
    return find_tied_obstacle(site)


def _option(site: Site, fit: TuckerFit, ranks: tuple[int, int]) -> Option:
    layer = site.layer
    layers = (
        layer.pointwise("reduce", layer.in_channels, ranks[0], bias=False),
        layer.named("conv", in_channels=ranks[0], out_channels=ranks[1], bias=False),
        layer.pointwise("expand", ranks[1], layer.out_channels, bias=True),
    )
    full = (layer.in_channels, layer.out_channels)
    return Option("tucker", ranks, full, layers, fit.loss(*ranks), partial(_fill, site, fit, ranks))


def _fill(site: Site, fit: TuckerFit, ranks: tuple[int, int]) -> Sequence[Weights]:
    first, core, last = fit.factors(*ranks, site.offset_weight, site.covariance())
    kernel = site.layer.kernel
    ones = tuple(1 for _ in kernel)
    merged = (last @ core.flatten(1)).view(len(last), *core.shape[1:]) @ first
    return (
        Weights(first.reshape(*first.shape, *ones)),
        Weights(core.transpose(1, 2).reshape(ranks[1], ranks[0], *kernel)),
        Weights(last.reshape(*last.shape, *ones), site.corrected_bias(merged.flatten(1))),
    )
