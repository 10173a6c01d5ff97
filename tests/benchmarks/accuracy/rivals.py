"""Factors by others' methods, as passes, so that the same code counts, chooses and places them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bottleneck_opt.layers import LINEAR
from bottleneck_opt.sites import Option, Site, Skip, Weights

TUCKER_SHARES = 96


@dataclass(frozen=True)
class WeightSvd:
    """The kernel (in -> r), then 1x1 (r -> out): the truncated SVD of the weight as ``(out, in * offsets)``.

    Source: Denton et al. 2014, in the form with one matrix of all of a filter's weights. No data, the bias as it was.
    """

    name: ClassVar[str] = "svd"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank."""
        if site.layer.groups > 1:
            return Skip(f"groups={site.layer.groups}: not in this comparison")
        left, values, right = torch.linalg.svd(site.weight.flatten(1), full_matrices=False)
        full = len(values)
        dropped = values.square().flip(0).cumsum(0).flip(0)
        losses = [*dropped[1:].tolist(), 0.0]
        first, second = values.sqrt()[:, None] * right, left * values.sqrt()
        return [_svd_option(site, first[:r], second[:, :r], full, losses[r - 1]) for r in range(1, full + 1)]


def _svd_option(site: Site, first: Tensor, second: Tensor, full: int, loss: float) -> Option:
    layer, rank = site.layer, len(first)
    kept = site.bias is not None
    layers = (
        layer.named("linear" if layer.kind == LINEAR else "conv", out_channels=rank, bias=False),
        layer.pointwise("expand", rank, layer.out_channels, bias=kept),
    )
    ones = tuple(1 for _ in layer.kernel)

    def fill() -> Sequence[Weights]:
        kernel = first.reshape(rank, layer.in_channels, *layer.kernel)
        return Weights(kernel), Weights(second.reshape(*second.shape, *ones), site.bias)

    return Option("svd", (rank,), (full,), layers, loss, fill)


@dataclass(frozen=True)
class WeightTucker:
    """1x1 (in -> r1), the kernel (r1 -> r2), 1x1 (r2 -> out), with r1/in = r2/out: Tucker-2 by tensorly's HOOI.

    Source: Kim et al. 2016. No data, the bias as it was. A 1x1 or Linear has no kernel to keep and gets the SVD.
    """

    name: ClassVar[str] = "tucker2"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at the ranks of many shares."""
        layer = site.layer
        if layer.groups > 1 or layer.offsets == 1:
            return WeightSvd().propose(site)
        shares = [number / TUCKER_SHARES for number in range(1, TUCKER_SHARES + 1)]
        pairs = {
            (max(1, round(share * layer.in_channels)), max(1, round(share * layer.out_channels))) for share in shares
        }
        return [_tucker_option(site, pair) for pair in sorted(pairs)]


def _tucker_option(site: Site, ranks: tuple[int, int]) -> Option:
    """Its loss only orders the pairs, none of which is larger in one rank and smaller in the other."""
    layer = site.layer
    layers = (
        layer.pointwise("reduce", layer.in_channels, ranks[0], bias=False),
        layer.named("conv", in_channels=ranks[0], out_channels=ranks[1], bias=False),
        layer.pointwise("expand", ranks[1], layer.out_channels, bias=site.bias is not None),
    )
    full = (layer.in_channels, layer.out_channels)
    return Option("tucker2", ranks, full, layers, 1 / (ranks[0] + ranks[1]), partial(_fill_tucker, site, ranks))


def _fill_tucker(site: Site, ranks: tuple[int, int]) -> Sequence[Weights]:
    import tensorly.decomposition  # noqa: PLC0415  (an extra)

    (core, (last, first)), _ = tensorly.decomposition.partial_tucker(
        site.weight.numpy(), rank=[ranks[1], ranks[0]], modes=[0, 1], init="svd"
    )
    ones = tuple(1 for _ in site.layer.kernel)
    before, after = torch.tensor(first.T.copy()), torch.tensor(last.copy())
    return (
        Weights(before.reshape(*before.shape, *ones)),
        Weights(torch.tensor(core.copy())),
        Weights(after.reshape(*after.shape, *ones), site.bias),
    )
