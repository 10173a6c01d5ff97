"""A pass of one's own: a Linear as two thin ones, by a plain SVD of its weight.

Run: python examples/my_pass.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

import bottleneck_opt as bo
from bottleneck_opt.sites import Option, Site, Skip, Weights


@dataclass(frozen=True)
class SvdLinear:
    """A Linear as two thin ones, by SVD of its weight."""

    name: ClassVar[str] = "svd-linear"
    smallest: int = 4

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        if site.layer.kind != "Linear":
            return None  # not my kind of layer
        full = min(site.layer.in_channels, site.layer.out_channels)
        if full < self.smallest:
            return Skip(f"rank {full} is below smallest={self.smallest}")  # mine, but no: the reason reaches the report
        return [self.option(site, rank, full) for rank in range(self.smallest, full + 1)]

    def option(self, site: Site, rank: int, full: int) -> Option:
        u, s, v = torch.linalg.svd(site.weight, full_matrices=False)
        first, second = v[:rank], u[:, :rank] * s[:rank]
        layers = (
            site.layer.named("first", out_channels=rank, bias=False),
            site.layer.named("second", in_channels=rank, bias=True),
        )
        weights = Weights(first), Weights(second, site.corrected_bias(second @ first))
        return Option("svd", (rank,), (full,), layers, site.predict_loss(second @ first), lambda: weights)


if __name__ == "__main__":
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    print(bo.optimize(model, torch.randn(1, 64), calibration=torch.randn(64, 64), passes=[SvdLinear()], progress=False))
