"""Three factors: a first one, a narrow core, and a last one. Notation as in :mod:`bottleneck_opt.factorization`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.conditioning import cholesky
from bottleneck_opt.factorization import Factors, ReduceFit, balance, refit_and_cover


@dataclass(frozen=True)
class TuckerFactors:
    """``first (before, in)``, ``core (after, offsets, before)`` and ``last (out, after)``."""

    first: Tensor
    core: Tensor
    last: Tensor


def list_tucker_losses(reduced: ReduceFit, ranks: Sequence[int]) -> dict[int, Tensor]:
    """For each first rank, the loss at second rank 0, 1, ... ``(out + 1,)`` of ``W ~ last core (I kron first)``.

    The first factor is that of :func:`fit_reduce`, the last the optimum for it. Each rank costs the eigenvalues of a
    matrix ``(out, out)``.

    Args:
        reduced: The fit with a first factor only.
        ranks: The first ranks, rising.
    """
    offsets = len(reduced.explained) // max(len(reduced.projection), 1)
    out = reduced.explained.shape[1]
    losses, kept, done = {}, reduced.explained.new_zeros(out, out), 0
    for rank in ranks:
        rows = reduced.explained[done * offsets : rank * offsets]
        kept, done = kept.addmm(rows.T, rows), rank
        energy = torch.linalg.eigvalsh(kept).flip(0).clamp_min(0).cumsum(0)
        losses[rank] = (reduced.total - torch.cat([energy.new_zeros(1), energy])).clamp_min(0)
    return losses


def fit_tucker(weight: Tensor, covariance: Tensor, curvature: Tensor, projection: Tensor, after: int) -> TuckerFactors:
    """The three factors behind :func:`list_tucker_losses` at one pair of ranks, balanced.

    Args:
        weight: ``(out, offsets, in)``.
        covariance: ``S (offsets * in, offsets * in)``, shrunk.
        curvature: ``G (out, out)``, damped.
        projection: ``(before, in)``.
        after: The second rank.
    """
    narrow, last = keep_best(*refit_and_cover(weight, covariance, projection), curvature, after)
    outer = balance(Factors(narrow, last))
    inner_factors = balance(Factors(projection, outer.first))
    return TuckerFactors(inner_factors.first, inner_factors.second, outer.second)


def keep_best(second: Tensor, kept: Tensor, curvature: Tensor, after: int) -> tuple[Tensor, Tensor]:
    """``second (out, offsets, rank)`` as a core ``(after, offsets, rank)`` and a last factor ``(out, after)``.

    Args:
        second: The best second factor.
        kept: The covariance ``(out, out)`` of the output that it makes.
        curvature: ``G (out, out)``, damped.
        after: The width in between.
    """
    lower = cholesky(curvature)
    inner = lower.T @ kept @ lower
    basis = torch.linalg.eigh((inner + inner.T) / 2).eigenvectors.flip(1)[:, :after]
    last: Tensor = torch.linalg.solve_triangular(lower.T, basis, upper=True)
    return torch.einsum("oa,oqr->aqr", lower @ basis, second), last
