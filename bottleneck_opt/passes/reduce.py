"""A 1x1 that reduces the channels before an expensive convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from bottleneck_opt.factorization import ReduceFit, fit_reduce
from bottleneck_opt.sites import Option, Site, Skip, Weights, rank_steps


@dataclass(frozen=True)
class Reduce:
    """1x1 (in -> r), then the kernel (r -> out); exact at r = in.

    The 1x1 carries no bias, so zero padding commutes with it and borders are exact.

    Source: Szegedy et al. 2015 for the shape (Inception's reductions); the fit is two-sided reduced-rank regression.
    """

    name: ClassVar[str] = "reduce"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank worth offering; None for 1x1 kernels."""
        if site.layer.offsets == 1:
            return None
        if site.layer.in_channels < 2:
            return Skip("one input channel: there is nothing to reduce")
        if site.statistics.inputs.outer is None:
            width = len(site.statistics.inputs.total)
            return Skip(f"its patches have {width} entries: the {width} x {width} covariance is too large to fit")
        fit = fit_reduce(site.offset_weight, site.covariance(), site.curvature())
        full = site.layer.in_channels
        return [_option(site, fit, rank) for rank in (*rank_steps(full), full)]


def _option(site: Site, fit: ReduceFit, rank: int) -> Option:
    layer = site.layer
    layers = (
        layer.pointwise("reduce", layer.in_channels, rank, bias=False),
        layer.named("conv", in_channels=rank, bias=True),
    )
    return Option(
        "reduce", (rank,), (layer.in_channels,), layers, float(fit.losses[rank]), partial(_fill, site, fit, rank)
    )


def _fill(site: Site, fit: ReduceFit, rank: int) -> Sequence[Weights]:
    factors = fit.factors(rank, site.offset_weight, site.covariance())
    approximation = (factors.second @ factors.first).flatten(1)
    out, _, _ = factors.second.shape
    kernel = factors.second.transpose(1, 2).reshape(out, rank, *site.layer.kernel)
    pointwise = factors.first.reshape(rank, -1, *(1 for _ in site.layer.kernel))
    return Weights(pointwise), Weights(kernel, site.corrected_bias(approximation))
