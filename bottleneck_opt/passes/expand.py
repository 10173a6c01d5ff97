"""A convolution to few channels, and a 1x1 that expands them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bottleneck_opt.factorization import ExpandFit, fit_expand
from bottleneck_opt.layers import LINEAR
from bottleneck_opt.sites import Option, Site, Skip, Weights, rank_steps


@dataclass(frozen=True)
class Expand:
    """The kernel (in -> r), then 1x1 (r -> out); exact at r = min(out, in * kernel offsets).

    The stride stays on the first layer, so the second works at output resolution. For a 1x1 convolution and a Linear
    this is the only two-layer form.

    Source: Zhang et al. 2015 (output reconstruction), with the curvature of the network's output as the metric.
    """

    name: ClassVar[str] = "expand"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank worth offering."""
        if site.layer.out_channels < 2:
            return Skip("one output channel: there is nothing to expand")
        fit = fit_expand(site.flat_weight, site.output_covariance(), site.curvature())
        full = min(site.layer.out_channels, site.layer.offsets * site.layer.in_channels)
        return [_option(site, fit, rank, full) for rank in (*rank_steps(full), full)]


def _option(site: Site, fit: ExpandFit, rank: int, full: int) -> Option:
    layer = site.layer
    first = "linear" if layer.kind == LINEAR else "conv"
    layers = (
        layer.named(first, out_channels=rank, bias=False),
        layer.pointwise("expand", rank, layer.out_channels, bias=True),
    )
    return Option("expand", (rank,), (full,), layers, float(fit.losses[rank]), partial(_fill, site, fit, rank))


def _fill(site: Site, fit: ExpandFit, rank: int) -> Sequence[Weights]:
    factors = fit.factors(rank, site.flat_weight)
    layer = site.layer
    kernel = factors.first.view(rank, layer.offsets, layer.in_channels).transpose(1, 2)
    pointwise = factors.second.reshape(layer.out_channels, rank, *(1 for _ in layer.kernel))
    bias = site.corrected_bias(factors.second @ factors.first)
    return Weights(kernel.reshape(rank, layer.in_channels, *layer.kernel)), Weights(pointwise, bias)
