"""Forms in which one small factor is used at several places of the kernel: ``W~ = second (I kron first)``.

The entries of a patch are put into ``Q`` groups of ``d``; the first factor ``(rank, d)`` is the same for all groups. A
1x1 before the kernel has one group an offset; a column before a row has one group a column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.factorization import ReduceFit, fit_reduce, group_covariance, loss_of_groups
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
    """A site with the fit of each of its groups.

    Attributes:
        losses: The loss at each rank that was asked for, of all groups together: their errors are correlated.
    """

    site: Site
    order: Order
    parts: tuple[Site, ...]
    fits: tuple[ReduceFit, ...]
    losses: Mapping[int, float]

    def factors(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """First factor ``(groups * rank, d)``, second ``(out, Q, rank)``, and their product, flat as the site's."""
        covariances = [covariance_in_order(part, self.order) for part in self.parts]
        first, second, merged = _factor(self.parts, self.order, self.fits, covariances, rank)
        full = spread_groups(merged.transpose(1, 2), self.site.layer.groups).transpose(1, 2).flatten(1)
        return first, second, full


def fit_tied(site: Site, order: Order, ranks: Sequence[int], *, most: int | None = None) -> TiedFit:
    """Fit a tied form, group by group for a grouped layer.

    Args:
        site: The layer.
        order: Which axes the first factor spans.
        ranks: Those whose loss is wanted: some up to ``most``, and the full one.
        most: The highest rank below the full one; None when it may be any.
    """
    parts = site.split()
    covariances = [covariance_in_order(part, order) for part in parts]
    fits = tuple(_fit_part(part, order, covariance, most) for part, covariance in zip(parts, covariances, strict=True))
    if len(fits) == 1:
        found = fits[0].losses
        losses = {rank: float(found[rank]) if rank < len(found) else 0.0 for rank in ranks}
        return TiedFit(site, order, parts, fits, losses)
    compact = torch.cat([part.offset_weight for part in parts])
    grouped, curvature = group_covariance(site.covariance(), compact.shape[1], len(parts)), site.curvature()
    losses = {
        rank: loss_of_groups(compact - _factor(parts, order, fits, covariances, rank)[2], grouped, curvature)
        for rank in ranks
    }
    return TiedFit(site, order, parts, fits, losses)


def _fit_part(part: Site, order: Order, covariance: Tensor, most: int | None) -> ReduceFit:
    if not order.lead:
        return part.reduced
    return fit_reduce(weight_in_order(part, order), covariance, part.curvature(), most=most)


def _factor(
    parts: Sequence[Site], order: Order, fits: Sequence[ReduceFit], covariances: Sequence[Tensor], rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """First factors, second factors, and their products ``(out, offsets, in / groups)``, of all groups."""
    both = [
        fit.factors(rank, weight_in_order(part, order), covariance)
        for fit, part, covariance in zip(fits, parts, covariances, strict=True)
    ]
    merged = torch.cat([restore_order(each.second @ each.first, order) for each in both])
    return torch.cat([each.first for each in both]), torch.cat([each.second for each in both]), merged


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
