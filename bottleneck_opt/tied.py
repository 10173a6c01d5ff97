"""Forms in which one small factor is used at several places of the kernel: ``W~ = second (I kron first)``.

The entries of a patch are put into ``Q`` groups of ``d``; the first factor ``(rank, d)`` is the same for all groups. A
1x1 before the kernel has one group an offset; a column before a row has one group a column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.factorization import ReduceFit, fit_reduce
from bottleneck_opt.kernels import spread_groups
from bottleneck_opt.sites import Site, Skip


@dataclass(frozen=True)
class Order:
    """Which kernel axes the first factor spans; the others number its groups.

    Attributes:
        kernel: The layer's kernel.
        lead: The axes of the first factor; none for a 1x1.
    """

    kernel: tuple[int, ...]
    lead: tuple[int, ...] = ()

    @property
    def rest(self) -> tuple[int, ...]:
        """The axes of the second factor."""
        return tuple(axis for axis in range(len(self.kernel)) if axis not in self.lead)

    @property
    def groups(self) -> int:
        """``Q``."""
        return math.prod(self.kernel[axis] for axis in self.rest)

    def offsets(self) -> Tensor:
        """The numbers of the kernel's offsets, group by group ``(Q, offsets of a group)``."""
        numbers = torch.arange(math.prod(self.kernel), device="cpu").reshape(self.kernel)
        return numbers.permute(*self.rest, *self.lead).reshape(self.groups, -1)

    def entries(self, channels: int) -> Tensor:
        """The numbers of a patch's entries, which are offset-major, in this order ``(offsets * channels,)``."""
        return (self.offsets().flatten()[:, None] * channels + torch.arange(channels, device="cpu")).flatten()


@dataclass(frozen=True)
class TiedFit:
    """A site with the fit of each of its groups."""

    site: Site
    order: Order
    parts: tuple[Site, ...]
    fits: tuple[ReduceFit, ...]

    def loss(self, rank: int) -> float:
        """With several groups, the errors of different groups are correlated: the loss is taken of all together."""
        if len(self.fits) == 1:
            losses = self.fits[0].losses
            return float(losses[rank]) if rank < len(losses) else 0.0  # only the full rank is beyond the wanted ones
        return self.site.predict_loss(self.factors(rank)[2])

    def factors(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """First factor ``(groups * rank, d)``, second ``(out, Q, rank)``, and their product, flat as the site's."""
        both = [
            fit.factors(rank, weight_in_order(part, self.order), covariance_in_order(part, self.order))
            for fit, part in zip(self.fits, self.parts, strict=True)
        ]
        merged = torch.cat([restore_order(each.second @ each.first, self.order) for each in both])
        full = spread_groups(merged.transpose(1, 2), self.site.layer.groups).transpose(1, 2).flatten(1)
        return torch.cat([each.first for each in both]), torch.cat([each.second for each in both]), full


def fit_tied(site: Site, order: Order, *, most: int | None = None) -> TiedFit:
    """Fit a tied form at every rank up to ``most`` and at the full one, group by group for a grouped layer."""
    parts = site.split()
    return TiedFit(site, order, parts, tuple(_fit_part(part, order, most) for part in parts))


def _fit_part(part: Site, order: Order, most: int | None) -> ReduceFit:
    if not order.lead:
        return part.reduced
    weight, covariance = weight_in_order(part, order), covariance_in_order(part, order)
    return fit_reduce(weight, covariance, part.curvature(), most=most)


def weight_in_order(site: Site, order: Order) -> Tensor:
    """The weight of a site without groups as ``(out, Q, d)``."""
    return site.offset_weight[:, order.offsets().flatten()].reshape(len(site.weight), order.groups, -1)


def covariance_in_order(site: Site, order: Order) -> Tensor:
    """The covariance of a site without groups, ``(Q d, Q d)``."""
    covariance = site.covariance()
    if not order.lead:
        return covariance
    entries = order.entries(site.layer.in_channels)
    return covariance[entries[:, None], entries]


def restore_order(weight: Tensor, order: Order) -> Tensor:
    """``(out, Q, d)`` as ``(out, offsets, in)``, offsets in their own order."""
    offsets = order.offsets().flatten()
    taken = weight.reshape(len(weight), len(offsets), -1)
    restored = torch.empty_like(taken)
    restored[:, offsets] = taken
    return restored


def kernel_along(axes: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """A kernel that spans these axes only: ``(3, 1)`` for axis 0 of ``(3, 3)``."""
    return tuple(length if axis in axes else 1 for axis, length in enumerate(kernel))


def find_tied_obstacle(site: Site) -> Skip | None:
    """Why no smaller factor can stand before a layer's kernel."""
    if site.layer.in_channels == site.layer.groups:
        return Skip("one input channel a kernel: there is nothing to reduce")
    if not site.mixable_input:
        return Skip("its own forward does more with its input than a convolution: no 1x1 can stand before it")
    if site.statistics.inputs.outer is None:
        width = len(site.statistics.inputs.total)
        return Skip(f"its patches have {width} entries: the {width} x {width} covariance is too large to fit")
    return None
