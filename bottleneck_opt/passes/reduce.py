"""A 1x1 that reduces the channels before an expensive convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from bottleneck_opt.factorization import ReduceFit, fit_reduce
from bottleneck_opt.kernels import spread_groups
from bottleneck_opt.sites import Option, Site, Skip, Weights, rank_steps


@dataclass(frozen=True)
class Reduce:
    """1x1 (in -> r), then the kernel (r -> out); exact at r = in. Grouped layers: both in the same groups, r a group.

    The 1x1 carries no bias, so zero padding commutes with it and borders are exact.

    Source: Szegedy et al. 2015 for the shape (Inception's reductions); the fit is two-sided reduced-rank regression.
    """

    name: ClassVar[str] = "reduce"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank worth offering; None for 1x1 kernels."""
        if site.layer.offsets == 1:
            return None
        skip = _find_obstacle(site)
        if skip is not None:
            return skip
        parts = site.split()
        fits = tuple(fit_reduce(part.offset_weight, part.covariance(), part.curvature()) for part in parts)
        full = parts[0].layer.in_channels
        return [_option(_Fitted(site, parts, fits), rank, full) for rank in (*rank_steps(full), full)]


def _find_obstacle(site: Site) -> Skip | None:
    if site.layer.in_channels == site.layer.groups:
        return Skip("one input channel a kernel: there is nothing to reduce")
    if not site.mixable_input:
        return Skip("its own forward does more with its input than a convolution: no 1x1 can stand before it")
    if site.statistics.inputs.outer is None:
        width = len(site.statistics.inputs.total)
        return Skip(f"its patches have {width} entries: the {width} x {width} covariance is too large to fit")
    return None


@dataclass(frozen=True)
class _Fitted:
    """A site with the fit of each of its groups."""

    site: Site
    parts: tuple[Site, ...]
    fits: tuple[ReduceFit, ...]

    def loss(self, rank: int) -> float:
        """With several groups, the errors of different groups are correlated: the loss is taken of all together."""
        if len(self.fits) == 1:
            return float(self.fits[0].losses[rank])
        return self.site.predict_loss(self.factors(rank)[2])

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """First factor ``(groups * rank, in)``, second ``(out, offsets, rank)``, and their product, flat."""
        both = [
            fit.factors(rank, part.offset_weight, part.covariance())
            for fit, part in zip(self.fits, self.parts, strict=True)
        ]
        merged = torch.cat([(each.second @ each.first).transpose(1, 2) for each in both])
        full = spread_groups(merged, self.site.layer.groups).transpose(1, 2).flatten(1)
        return torch.cat([each.first for each in both]), torch.cat([each.second for each in both]), full


def _option(fitted: _Fitted, rank: int, full: int) -> Option:
    layer = fitted.site.layer
    width = layer.groups * rank
    layers = (
        layer.pointwise("reduce", layer.in_channels, width, bias=False),
        layer.named("conv", in_channels=width, bias=True),
    )
    return Option("reduce", (rank,), (full,), layers, fitted.loss(rank), partial(_fill, fitted, rank))


def _fill(fitted: _Fitted, rank: int) -> Sequence[Weights]:
    first, second, approximation = fitted.factors(rank)
    kernel = fitted.site.layer.kernel
    pointwise = first.reshape(*first.shape, *(1 for _ in kernel))
    conv = second.transpose(1, 2).reshape(len(second), rank, *kernel)
    return Weights(pointwise), Weights(conv, fitted.site.corrected_bias(approximation))
