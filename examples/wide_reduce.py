"""A pass for layers too wide for ``reduce``: the same 1x1 before the kernel, found from the weights alone.

``reduce`` learns from the inputs which directions a layer needs. Where a patch has more than 8,192 numbers, as a 5x5
over 512 channels has, it says that the statistics would be too large. This pass fills the gap: it takes all directions
of the input for equally strong, which makes the best 1x1 a singular value decomposition of the weights.
:mod:`inception` uses it beside ``reduce``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bottleneck_opt.sites import Option, Site, Skip, Weights, paying_ranks


@dataclass(frozen=True)
class WideReduce:
    """1x1 (in -> r), then the kernel (r -> out), for layers whose inputs have no covariance."""

    name: ClassVar[str] = "wide-reduce"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        layer = site.layer
        if layer.offsets == 1 or site.statistics.inputs.outer is not None:
            return None  # there is nothing before which a 1x1 would save, or ``reduce`` knows better
        if layer.groups > 1 or not site.mixable_input:
            return Skip("only for plain convolutions without groups")
        columns = site.offset_weight.flatten(0, 1)  # (out * offsets, in)
        u, s, v = torch.linalg.svd(columns, full_matrices=False)
        ranks = paying_ranks(before=layer.in_channels, after=len(columns))
        return [self.option(site, u[:, :rank] * s[:rank], v[:rank], ranks[-1]) for rank in ranks]

    def option(self, site: Site, kernels: Tensor, directions: Tensor, full: int) -> Option:
        """The layer at the rank of these factors."""
        layer, rank = site.layer, len(directions)
        product = (kernels @ directions).view(layer.out_channels, -1)
        missing = site.flat_weight - product
        loss = site.statistics.inputs.variance * float(torch.sum((site.curvature() @ missing) * missing))
        layers = (
            layer.pointwise("reduce", layer.in_channels, rank, bias=False),
            layer.named("conv", in_channels=rank, bias=True),
        )
        first = directions.view(rank, -1, *(1 for _ in layer.kernel))
        second = kernels.view(layer.out_channels, -1, rank).transpose(1, 2).unflatten(2, layer.kernel)
        weights = Weights(first), Weights(second, site.corrected_bias(product))
        return Option("reduce", (rank,), (full,), layers, loss, lambda: weights)
