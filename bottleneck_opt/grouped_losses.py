"""What all groups of a grouped layer lose together: their errors are correlated, so their losses do not add up.

Notation as in :mod:`bottleneck_opt.factorization`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bottleneck_opt.factorization import Factors


def group_covariance(covariance: Tensor, offsets: int, groups: int) -> Tensor:
    """``S (offsets * in, offsets * in)`` with the entries of each group of channels together, group after group."""
    split = (offsets, groups, len(covariance) // (offsets * groups))
    return covariance.view(*split, *split).permute(1, 0, 2, 4, 3, 5).reshape_as(covariance)


def list_losses_of_groups(factors: Sequence[Factors], chunk: int, covariance: Tensor, curvature: Tensor) -> Tensor:
    """``tr(G D S D^T)`` at all ranks of a weight that is zero between groups, with what the groups' errors share.

    Rank r keeps the first ``r * chunk`` columns and rows of each group's factors; D is what it drops, to the last of
    them. With ``U`` and ``V`` all groups' factors, the loss is the sum over what is dropped of the entries of ``U^T G
    U`` times those of ``V S V^T``, so that no rank has to be multiplied out.

    Args:
        factors: For each group ``first (n, width)`` and ``second (out, n)``, whose product is the group's weight.
        chunk: Columns a rank.
        covariance: ``S (groups * width, groups * width)``, group after group, symmetric.
        curvature: ``G (groups * out, groups * out)``, symmetric.

    Returns:
        Losses at rank 0, 1, ... ``(ceil(n / chunk) + 1,)``; the last is zero.
    """
    first, second = torch.stack([each.first for each in factors]), torch.stack([each.second for each in factors])
    groups, terms, width = first.shape
    out = second.shape[1]
    pairs = first.new_zeros(terms, terms)
    for group in range(groups):  # the groups before it were paired with it already
        seen = first[group] @ covariance[group * width : (group + 1) * width, group * width :]
        felt = second[group].T @ curvature[group * out : (group + 1) * out, group * out :]
        shares = seen.view(terms, -1, width).transpose(0, 1) @ first[group:].transpose(1, 2)
        shares *= felt.view(terms, -1, out).transpose(0, 1) @ second[group:]
        pairs += 2 * shares.sum(0) - shares[0]
    pairs = (pairs + pairs.T) / 2
    dropped = pairs.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
    return torch.cat([dropped, dropped.new_zeros(1)])[_starts(terms, chunk)].clamp_min(0)


def _starts(terms: int, chunk: int) -> Tensor:
    """Where the columns start that each rank drops."""
    return torch.tensor([*range(0, terms, chunk), terms], device="cpu")
