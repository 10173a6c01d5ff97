"""A pass of one's own: a Linear as two thin ones, by a plain SVD of its weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bottleneck_opt.sites import Option, Site, Skip, Weights, paying_ranks
from bottleneck_opt.testing import check_pass


@dataclass(frozen=True)
class SvdLinear:
    """A Linear as two thin ones, by SVD of its weight."""

    name: ClassVar[str] = "svd-linear"
    smallest: int = 4

    def propose(self, site: Site) -> list[Option] | Skip | None:
        if site.layer.kind != "Linear":
            return None  # not my kind of layer
        *ranks, full = paying_ranks(before=site.layer.in_channels, after=site.layer.out_channels)
        if full < self.smallest:
            return Skip(f"rank {full} is below smallest={self.smallest}")  # mine, but no: the report says why
        return [self.option(site, rank, full) for rank in (*ranks, full) if rank >= self.smallest]

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
    print(check_pass(SvdLinear()))
