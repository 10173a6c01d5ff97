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

from bottleneck_opt.alternating import affordable_rounds, improve_projection, make_target
from bottleneck_opt.factorization import (
    Factors,
    ReduceFit,
    factor_exactly,
    find_basis,
    fit_factors,
    fit_reduce,
    nest_factors,
)
from bottleneck_opt.grouped_losses import group_covariance, list_losses_of_groups
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
    """A site with the first factors of each of its groups; everything else is computed when an option is chosen.

    Attributes:
        projections: For each group ``(rank, d)`` at the highest rank that can pay.
        losses: The loss at each rank that was asked for, of all groups together: their errors are correlated.
    """

    site: Site
    order: Order
    projections: tuple[Tensor, ...]
    losses: Mapping[int, float]

    def factors(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """First factor ``(groups * rank, d)``, second ``(out, Q, rank)``, and their product, flat as the site's."""
        parts = self.site.split()
        both = [self._factor(part, each, rank) for part, each in zip(parts, self.projections, strict=True)]
        merged = torch.cat([restore_order(each.second @ each.first, self.order) for each in both])
        full = spread_groups(merged.transpose(1, 2), self.site.layer.groups).transpose(1, 2).flatten(1)
        return torch.cat([each.first for each in both]), torch.cat([each.second for each in both]), full

    def _factor(self, part: Site, projection: Tensor, rank: int) -> Factors:
        weight = weight_in_order(part, self.order)
        if rank > len(projection):
            return factor_exactly(weight)
        covariance = covariance_in_order(part, self.order)
        first, rounds = projection[:rank], self._rounds(weight, rank)
        if rounds:
            first = improve_projection(make_target(weight, covariance, part.curvature()), first, rounds=rounds)
        return fit_factors(weight, covariance, first)

    def _rounds(self, weight: Tensor, rank: int) -> int:
        """None for a grouped layer: what is best for each group alone need not be for all, whose errors add up."""
        if self.site.layer.groups > 1:
            return 0
        out, groups, width = weight.shape
        return affordable_rounds(self.site.rounds, out=out, width=groups * width, rank=rank)


def fit_tied(site: Site, order: Order, ranks: Sequence[int]) -> TiedFit:
    """Fit a tied form, group by group for a grouped layer.

    Args:
        site: The layer.
        order: Which axes the first factor spans.
        ranks: Those whose loss is wanted, the last one full: nothing is lost at it.
    """
    most = max(ranks[:-1], default=0)
    if site.layer.groups > 1:
        projections, losses = _fit_groups(site, order, most)
    else:
        fit = _fit_whole(site, order, most)
        projections, losses = (fit.projection,), fit.losses
    found = {rank: float(losses[rank]) for rank in ranks[:-1]}
    return TiedFit(site, order, projections, {**found, ranks[-1]: 0.0})


def _fit_whole(site: Site, order: Order, most: int) -> ReduceFit:
    if not order.lead:
        return site.reduced
    crossed = site.crossed()[order.entries(site.layer.in_channels)]
    weight, covariance = weight_in_order(site, order), covariance_in_order(site, order)
    return fit_reduce(weight, covariance, site.curvature(), most=most, crossed=crossed)


def _fit_groups(site: Site, order: Order, most: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """For each group its first factors; and the losses at all ranks up to ``most``, of all groups together."""
    fitted = [_fit_group(part, order, most) for part in site.split()]
    covariance = group_covariance(site.covariance(), site.layer.offsets, site.layer.groups)
    losses = list_losses_of_groups([factors for _, factors in fitted], order.groups, covariance, site.curvature())
    return tuple(projection for projection, _ in fitted), losses


def _fit_group(part: Site, order: Order, most: int) -> tuple[Tensor, Factors]:
    """First factors ``(most, d)``; and nested factors of the whole weight: what no rank keeps comes last."""
    weight, covariance = weight_in_order(part, order), covariance_in_order(part, order)
    projection = find_basis(weight, covariance, part.curvature(), most=most)
    nested = nest_factors(weight, covariance, projection)
    rest = weight.flatten(1) - nested.second @ nested.first
    first = torch.cat([nested.first, rest]).view(-1, order.groups, weight.shape[2])
    second = torch.cat([nested.second, torch.eye(len(rest), dtype=rest.dtype, device="cpu")], dim=1)
    return projection, Factors(restore_order(first, order).flatten(1), second)


def weight_in_order(site: Site, order: Order) -> Tensor:
    """The weight of a site without groups as ``(out, Q, d)``."""
    return site.offset_weight[:, order.offsets().flatten()].reshape(len(site.weight), order.groups, -1)


def covariance_in_order(site: Site, order: Order) -> Tensor:
    """The covariance of a site without groups, ``(Q d, Q d)``."""
    covariance = site.covariance()
    if not order.lead:
        return covariance
    axes = (*order.rest, *order.lead, len(order.kernel))
    split = (*order.kernel, site.layer.in_channels)
    both = covariance.view(*split, *split).permute(*axes, *(len(split) + axis for axis in axes))
    return both.reshape_as(covariance)


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
