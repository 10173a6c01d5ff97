"""A pass that changes nothing but the form: every layer at full rank, by a random orthogonal 1x1."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bottleneck_opt.sites import Option, Site, Skip, Weights


@dataclass(frozen=True)
class Orthogonal:
    """A 1x1 of the full width before a kernel, or at the narrower side of a 1x1 or Linear; group by group if grouped.

    It needs no statistics, so it costs next to nothing and its result must be the model's own, up to rounding.
    """

    name: ClassVar[str] = "orthogonal"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """The full rank, nothing else."""
        layer = site.layer
        if not layer.is_pointwise or layer.in_channels < layer.out_channels:
            return [_before(site)]
        return [_after(site)]


def _before(site: Site) -> Option:
    layer, width = site.layer, site.layer.in_channels
    layers = layer.pointwise("reduce", width, width, bias=False), layer.named("conv")
    return Option("reduce", (width,), (width,), layers, 0.0, partial(_fill_before, site))


def _fill_before(site: Site) -> Sequence[Weights]:
    turn = _choose_turn(site, site.layer.in_channels)
    kernels = site.weight.unflatten(0, (site.layer.groups, -1)).movedim(2, -1)
    kernel = turn.apply(kernels).movedim(-1, 2).flatten(0, 1)
    return Weights(turn.one_by_one(site)), Weights(kernel, site.bias)


def _after(site: Site) -> Option:
    layer, width = site.layer, site.layer.out_channels
    layers = layer.named("conv", bias=False), layer.pointwise("expand", width, width, bias=layer.bias)
    return Option("expand", (width,), (width,), layers, 0.0, partial(_fill_after, site))


def _fill_after(site: Site) -> Sequence[Weights]:
    turn = _choose_turn(site, site.layer.out_channels)
    kernels = site.weight.unflatten(0, (site.layer.groups, -1)).movedim(1, -1)
    kernel = turn.apply(kernels).movedim(-1, 1).flatten(0, 1)
    return Weights(kernel), Weights(turn.transposed().one_by_one(site), site.bias)


@dataclass(frozen=True)
class _Turn:
    """An exactly orthogonal matrix for each group: ``matrices (groups, width, width)``."""

    normals: Tensor
    order: Tensor
    flipped: bool = False

    def apply(self, x: Tensor) -> Tensor:
        """``x Q^T`` over the last axis of ``x (groups, ..., width)``, without forming Q."""
        normals = self.normals.view(len(x), *(1 for _ in x.shape[1:-1]), -1)
        reflected = x - 2 * (x * normals).sum(-1, keepdim=True) * normals
        return reflected[..., self.order]

    def transposed(self) -> _Turn:
        return _Turn(self.normals, self.order, not self.flipped)

    def one_by_one(self, site: Site) -> Tensor:
        """Q as the weight of a 1x1 layer."""
        groups, width = self.normals.shape
        eye = torch.eye(width, dtype=self.normals.dtype).expand(groups, width, width)
        transposed = self.apply(eye)  # its rows are the images of the axes: that is the transpose
        matrices = transposed if self.flipped else transposed.transpose(1, 2)
        return matrices.flatten(0, 1).reshape(groups * width, width, *(1 for _ in site.layer.kernel))


def _choose_turn(site: Site, width: int) -> _Turn:
    """A reflection with its rows in random order, the same for the same layer."""
    groups = site.layer.groups
    generator = torch.Generator().manual_seed(zlib.crc32(site.path.encode()))
    normals = torch.randn(groups, width // groups, generator=generator, dtype=torch.float64)
    order = torch.randperm(width // groups, generator=generator)
    return _Turn(normals / normals.norm(dim=1, keepdim=True), order)
