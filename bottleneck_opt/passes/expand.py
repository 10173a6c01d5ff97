"""A convolution to few channels, and a 1x1 that expands them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from bottleneck_opt.factorization import ExpandFit, fit_expand, loss_of
from bottleneck_opt.kernels import spread_groups
from bottleneck_opt.layers import LINEAR
from bottleneck_opt.sites import Option, Site, Skip, Weights, rank_steps


@dataclass(frozen=True)
class Expand:
    """The kernel (in -> r), then 1x1 (r -> out); exact at r = min(out, in * kernel offsets), a group each.

    The stride stays on the first layer, so the second works at output resolution. For a 1x1 convolution and a Linear
    this is the only two-layer form.

    Source: Zhang et al. 2015 (output reconstruction), with the curvature of the network's output as the metric.
    """

    name: ClassVar[str] = "expand"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank worth offering."""
        if site.layer.out_channels == site.layer.groups:
            return Skip("one output channel a group: there is nothing to expand")
        if not site.mixable_output:
            return Skip("its own forward does more with its output than a convolution: no 1x1 can stand after it")
        parts = site.split()
        fits = tuple(fit_expand(part.flat_weight, part.output_covariance(), part.curvature()) for part in parts)
        inner = parts[0].layer
        full = min(inner.out_channels, inner.offsets * inner.in_channels)
        ranks = (*rank_steps(full), full)
        fitted, losses = _Fitted(site, parts, fits), _find_losses(site, fits, ranks)
        return [_option(fitted, rank, full, loss) for rank, loss in zip(ranks, losses, strict=True)]


def _find_losses(site: Site, fits: Sequence[ExpandFit], ranks: Sequence[int]) -> list[float]:
    """With several groups, the errors of different groups are correlated: the loss is taken of all together."""
    if len(fits) == 1:
        return [float(fits[0].losses[rank]) for rank in ranks]
    covariance, curvature = site.output_covariance(), site.curvature()
    projections = (torch.block_diag(*(fit.projection(rank) for fit in fits)) for rank in ranks)
    whole = torch.eye(len(curvature), dtype=curvature.dtype, device="cpu")
    return [loss_of(whole, projection, covariance, curvature) for projection in projections]


@dataclass(frozen=True)
class _Fitted:
    """A site with the fit of each of its groups."""

    site: Site
    parts: tuple[Site, ...]
    fits: tuple[ExpandFit, ...]

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """First factor ``(groups * rank, in * offsets / groups)``, second ``(out, rank)``, and their product, flat."""
        both = [fit.factors(rank, part.flat_weight) for fit, part in zip(self.fits, self.parts, strict=True)]
        inner = self.parts[0].layer
        merged = torch.cat([each.second @ each.first for each in both])
        kernels = merged.view(len(merged), inner.offsets, inner.in_channels).transpose(1, 2)
        full = spread_groups(kernels, self.site.layer.groups).transpose(1, 2).flatten(1)
        return torch.cat([each.first for each in both]), torch.cat([each.second for each in both]), full


def _option(fitted: _Fitted, rank: int, full: int, loss: float) -> Option:
    layer = fitted.site.layer
    width = layer.groups * rank
    first = "linear" if layer.kind == LINEAR else "conv"
    layers = (
        layer.named(first, out_channels=width, bias=False),
        layer.pointwise("expand", width, layer.out_channels, bias=True),
    )
    return Option("expand", (rank,), (full,), layers, loss, partial(_fill, fitted, rank))


def _fill(fitted: _Fitted, rank: int) -> Sequence[Weights]:
    first, second, approximation = fitted.factors(rank)
    layer = fitted.site.layer
    kernel = first.view(len(first), layer.offsets, -1).transpose(1, 2).reshape(len(first), -1, *layer.kernel)
    pointwise = second.reshape(*second.shape, *(1 for _ in layer.kernel))
    return Weights(kernel), Weights(pointwise, fitted.site.corrected_bias(approximation))
