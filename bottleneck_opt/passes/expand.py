"""A convolution to few channels, and a 1x1 that expands them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bottleneck_opt.factorization import ExpandFit, Factors, factor_exactly, fit_expand, fit_expand_by_inputs
from bottleneck_opt.grouped_losses import list_losses_of_groups
from bottleneck_opt.kernels import spread_groups
from bottleneck_opt.layers import LINEAR
from bottleneck_opt.sites import Option, Site, Skip, Weights, paying_ranks


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
        before = site.layer.offsets * site.layer.in_channels // site.layer.groups
        ranks = paying_ranks(before=before, after=site.layer.out_channels // site.layer.groups)
        most = max(ranks[:-1], default=0)
        if site.layer.groups == 1:
            fits, losses = _fit_whole(site, most)
        else:
            fits, losses = _fit_groups(site, most)
        fitted = _Fitted(site, fits, most)
        found = [*(float(losses[rank]) for rank in ranks[:-1]), 0.0]
        return [_option(fitted, rank, ranks[-1], loss) for rank, loss in zip(ranks, found, strict=True)]


def _fit_whole(site: Site, most: int) -> tuple[tuple[ExpandFit, ...], Tensor]:
    if site.flat_weight.shape[1] < len(site.weight) and site.statistics.inputs.outer is not None:
        fit = fit_expand_by_inputs(site.flat_weight, site.covariance(), site.curvature(), most=most)
    else:
        fit = fit_expand(site.flat_weight, site.output_covariance(), site.curvature(), most=most)
    return (fit,), fit.losses


def _fit_groups(site: Site, most: int) -> tuple[tuple[ExpandFit, ...], Tensor]:
    """The fits; and the losses at all ranks up to ``most``, of all groups together: their errors are correlated."""
    fits = tuple(_fit_whole(part, most)[0][0] for part in site.split())
    nested = [_complete(fit) for fit in fits]
    return fits, list_losses_of_groups(nested, 1, site.output_covariance(), site.curvature())


def _complete(fit: ExpandFit) -> Factors:
    """What a group keeps of its output, rank after rank, and then what no rank keeps: all together, the output."""
    whole = torch.eye(len(fit.left), dtype=fit.left.dtype, device="cpu")
    rest = whole - fit.left @ fit.right.T
    return Factors(torch.cat([fit.right.T, rest]), torch.cat([fit.left, whole], dim=1))


@dataclass(frozen=True)
class _Fitted:
    """A site with the fit of each of its groups, up to the highest rank that pays."""

    site: Site
    fits: tuple[ExpandFit, ...]
    most: int

    def factors(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """First factor ``(groups * rank, in * offsets / groups)``, second ``(out, rank)``, and their product, flat."""
        parts = self.site.split()
        both = [self._factor(part, fit, rank) for part, fit in zip(parts, self.fits, strict=True)]
        inner = parts[0].layer
        merged = torch.cat([each.second @ each.first for each in both])
        kernels = merged.view(len(merged), inner.offsets, inner.in_channels).transpose(1, 2)
        full = spread_groups(kernels, self.site.layer.groups).transpose(1, 2).flatten(1)
        return torch.cat([each.first for each in both]), torch.cat([each.second for each in both]), full

    def _factor(self, part: Site, fit: ExpandFit, rank: int) -> Factors:
        weight = part.flat_weight
        if rank <= self.most:
            return fit.factors(rank, weight)
        exact = factor_exactly(weight[:, None])
        return Factors(exact.first, exact.second[:, 0])


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
