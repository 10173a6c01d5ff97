"""Split one weight into two thin ones, so that the network's output changes as little as possible.

Notation, with axes: a layer's weight is ``W (out, offsets, in)``, flattened ``(out, width)`` offset-major; its input
patches have covariance ``S (width, width)``; the network's output has curvature ``G (out, out)`` in the layer's
output. For an approximation ``W~`` the loss is ``tr(G (W - W~) S (W - W~)^T)``: the expected squared change of the
network's output, to first order. All tensors are float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP = 1e-10
DAMPING = 1e-3
LEAST_SHRINKAGE = 1e-6
FEW_IMAGES_SHRINKAGE = 3e-3
FEW_IMAGES = 16


@dataclass(frozen=True)
class Factors:
    """Two weights in a row: ``first (rank, ...)`` is applied to the input, ``second (out, ...)`` to what it gives."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class ExpandFit:
    """All ranks of ``W ~ second first`` with a 1x1 at the end.

    Attributes:
        losses: Loss at rank 0, 1, ... ``(out + 1,)``.
    """

    losses: Tensor
    _basis: Tensor
    _lower: Tensor

    def projection(self, rank: int) -> Tensor:
        """``second first = P W``: the matrix ``P (out, out)`` that keeps this rank."""
        basis = self._basis[:, :rank]
        second: Tensor = torch.linalg.solve_triangular(self._lower.T, basis, upper=True)
        return second @ basis.T @ self._lower.T

    def factors(self, rank: int, weight: Tensor) -> Factors:
        """``first (rank, width)`` and ``second (out, rank)`` for the weight ``(out, width)``, balanced."""
        basis = self._basis[:, :rank]
        second = torch.linalg.solve_triangular(self._lower.T, basis, upper=True)
        return balance(Factors(basis.T @ self._lower.T @ weight, second))


@dataclass(frozen=True)
class ReduceFit:
    """All ranks of ``W ~ second (I kron first)`` with one 1x1 before all kernel offsets.

    Attributes:
        losses: Loss at rank 0, 1, ... up to the highest one wanted.
        projection: The first factor at full rank ``(in, in)``; its leading rows are that of the lower ranks.
        explained: ``Z (in * offsets, out)``: ``Z^T Z`` of its first ``r * offsets`` rows is what rank r keeps.
        total: The loss at rank 0, when nothing is kept.
    """

    losses: Tensor
    projection: Tensor
    explained: Tensor
    total: Tensor

    def factors(self, rank: int, weight: Tensor, covariance: Tensor) -> Factors:
        """``first (rank, in)`` and ``second (out, offsets, rank)``, the second refitted to this rank.

        The covariance is asked for again because it is too large to be kept for every layer.
        """
        projection = self.projection[:rank]
        return balance(Factors(projection, refit_second(weight, covariance, projection)))


def choose_shrinkage(examples: int) -> float:
    """How far to pull a covariance towards a multiple of the identity.

    Sixteen examples or fewer get 3e-3, more get less in proportion, never below 1e-6: without any, a channel that was
    silent in calibration is amplified a hundred thousand times when it wakes up.
    """
    return max(LEAST_SHRINKAGE, FEW_IMAGES_SHRINKAGE * min(1.0, FEW_IMAGES / max(examples, 1)))


def shrink(covariance: Tensor, amount: float) -> Tensor:
    """``(1 - a) S + a tr(S)/d I``, symmetric (Ledoit and Wolf 2004)."""
    mean = covariance.diagonal().mean()
    shrunk = (covariance + covariance.T).mul_(0.5 * (1 - amount))
    shrunk.diagonal().add_(amount * mean)
    return shrunk


def damp(curvature: Tensor, amount: float = DAMPING) -> Tensor:
    """``G + 1e-3 tr(G)/out I``, symmetric, so that no output direction counts for nothing."""
    damped = (curvature + curvature.T) / 2
    damped.diagonal().add_(amount * damped.diagonal().mean())
    return damped


def square_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of a symmetric positive matrix and of its inverse; eigenvalues are at least 1e-10 of the largest."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = float(values[-1]) * CLIP
    roots = values.clamp_min(floor if floor > 0 else 1.0).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def fit_expand(weight: Tensor, output_covariance: Tensor, curvature: Tensor) -> ExpandFit:
    """The exact optimum at every rank, from one eigendecomposition (reduced-rank regression, Izenman 1975).

    With ``G = L L^T`` the best first factor is ``E^T L^T W`` and the best second ``L^-T E``, ``E`` the top
    eigenvectors of ``L^T (W S W^T) L``. Where the layer has more outputs than inputs these lie in the range of ``L^T
    W``, and the decomposition is done there.

    Args:
        weight: ``(out, width)``.
        output_covariance: ``W S W^T (out, out)``.
        curvature: ``G (out, out)``, damped.
    """
    lower = cholesky(curvature)
    felt = lower.T @ output_covariance @ lower
    out, width = weight.shape
    span = torch.linalg.qr(lower.T @ weight).Q if width < out else None
    inner = felt if span is None else span.T @ felt @ span
    energy, basis = torch.linalg.eigh((inner + inner.T) / 2)
    energy, basis = energy.flip(0).clamp_min(0), basis.flip(1)
    dropped = energy.flip(0).cumsum(0).flip(0)
    losses = torch.cat([dropped, dropped.new_zeros(1 + out - len(dropped))])
    return ExpandFit(losses, basis if span is None else span @ basis, lower)


def fit_reduce(weight: Tensor, covariance: Tensor, curvature: Tensor, *, most: int | None = None) -> ReduceFit:
    """A near-optimal nested basis for every rank, with the loss after the exact refit of the second factor.

    The basis is the top of ``C^1/2 (sum_pq T_pq W_p^T G W_q) C^1/2`` with ``C`` the mean covariance of an offset and
    ``T`` the covariance between offsets; ``S`` is close to ``T kron C`` (Van Loan 2000). One Cholesky factor gives all
    losses.

    Args:
        weight: ``(out, offsets, in)``.
        covariance: ``S (offsets * in, offsets * in)``, shrunk.
        curvature: ``G (out, out)``, damped.
        most: The highest rank below the full one whose loss is wanted; the work grows with its third power.
    """
    projection = find_basis(*weigh_channels(weight, covariance, curvature))
    return fit_to_basis(weight, covariance, curvature, projection, most=most)


def fit_to_basis(
    weight: Tensor, covariance: Tensor, curvature: Tensor, projection: Tensor, *, most: int | None = None
) -> ReduceFit:
    """The loss at every rank of a basis ``(in, in)`` that is given, after the exact refit of the second factor.

    Args:
        weight, covariance, curvature, most: As for :func:`fit_reduce`.
        projection: Its first r rows are the first factor of rank r.
    """
    explained, total = _explain(weight, covariance, curvature, projection[:most])
    kept = explained.square().sum(1).view(-1, weight.shape[1]).sum(1).cumsum(0)
    losses = (total - torch.cat([kept.new_zeros(1), kept])).clamp_min(0)
    return ReduceFit(losses, projection, explained, total)


def weigh_channels(weight: Tensor, covariance: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """How much the output feels each pair of input channels ``(in, in)``, and the channels' covariance ``(in, in)``.

    Of several layers that read one tensor, both can be added up.

    Args:
        weight, covariance, curvature: As for :func:`fit_reduce`.
    """
    out, offsets, width = weight.shape
    blocks = covariance.view(offsets, width, offsets, width)
    channel = torch.einsum("qiqj->ij", blocks) / offsets
    between = torch.einsum("piqi->pq", blocks) / width
    felt = (curvature @ weight.reshape(out, -1)).view_as(weight)
    mixed = torch.einsum("pq,oqi->opi", between, felt)
    return torch.einsum("opi,opj->ij", weight, mixed), channel


def find_basis(inner: Tensor, channel: Tensor) -> Tensor:
    """The nested first factors ``(in, in)``, most important row first, from what :func:`weigh_channels` gives."""
    half, inverse_half = square_roots(channel)
    core = half @ ((inner + inner.T) / 2) @ half
    vectors: Tensor = torch.linalg.eigh(core).eigenvectors.flip(1)
    return vectors.T @ inverse_half


def _explain(weight: Tensor, covariance: Tensor, curvature: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """``Z (rank * offsets, out)``: ``Z^T Z`` of its first ``r * offsets`` rows is what rank r keeps; and the total.

    One Cholesky factor does for all ranks: rows are rank-major, so its leading blocks belong to the lower ranks.
    """
    out, offsets, width = weight.shape
    flat = weight.reshape(out, -1)
    felt = flat.T @ cholesky(curvature)
    crossed = covariance @ felt
    projected = project_covariance(covariance, projection, offsets)
    target = _rank_major(projection, crossed.view(offsets, width, out))
    explained = torch.linalg.solve_triangular(cholesky(projected), target, upper=False)
    return explained, torch.einsum("wo,wo->", felt, crossed)


@dataclass(frozen=True)
class TuckerFit:
    """``W ~ last core (I kron first)`` on a grid of both ranks.

    Attributes:
        losses: For each first rank, the loss at second rank 0, 1, ... ``(out + 1,)``.
    """

    losses: Mapping[int, Tensor]
    _projection: Tensor
    _bases: Mapping[int, Tensor]
    _lower: Tensor

    def loss(self, before: int, after: int) -> float:
        """The loss at these two ranks."""
        return float(self.losses[before][after])

    def factors(self, before: int, after: int, weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``first (before, in)``, ``core (after, offsets, before)`` and ``last (out, after)``, balanced."""
        projection, basis = self._projection[:before], self._bases[before][:, :after]
        second = refit_second(weight, covariance, projection)
        narrow = torch.einsum("oa,oqr->aqr", self._lower @ basis, second)
        last = torch.linalg.solve_triangular(self._lower.T, basis, upper=True)
        outer = balance(Factors(narrow, last))
        inner = balance(Factors(projection, outer.first))
        return inner.first, inner.second, outer.second


def fit_tucker(reduced: ReduceFit, curvature: Tensor, ranks: Sequence[int]) -> TuckerFit:
    """Both factors around a narrow kernel: the first from :func:`fit_reduce`, the last the optimum for it.

    Args:
        reduced: The fit with a first factor only.
        curvature: ``G (out, out)``, damped.
        ranks: The first ranks to fit; each costs one decomposition ``(out, out)``.
    """
    offsets = len(reduced.explained) // len(reduced.projection)
    losses, bases = {}, {}
    for rank in ranks:
        rows = reduced.explained[: rank * offsets]
        energy, basis = torch.linalg.eigh(rows.T @ rows)
        kept = energy.flip(0).clamp_min(0).cumsum(0)
        losses[rank] = (reduced.total - torch.cat([kept.new_zeros(1), kept])).clamp_min(0)
        bases[rank] = basis.flip(1)
    return TuckerFit(losses, reduced.projection, bases, cholesky(curvature))


def project_covariance(covariance: Tensor, projection: Tensor, offsets: int) -> Tensor:
    """``A S A^T`` for ``A = I kron P``, rows and columns rank-major ``(rank * offsets, rank * offsets)``."""
    rank, width = projection.shape
    left = projection @ covariance.view(offsets, width, offsets * width)
    left = left.view(offsets * rank, offsets, width) @ projection.T
    both = left.view(offsets, rank, offsets, rank).permute(1, 0, 3, 2).reshape(rank * offsets, rank * offsets)
    return (both + both.T).mul_(0.5)


def _rank_major(projection: Tensor, crossed: Tensor) -> Tensor:
    """``A X`` for ``X (offsets, in, n)``, rows rank-major ``(rank * offsets, n)``."""
    projected = projection @ crossed
    return projected.transpose(0, 1).reshape(-1, crossed.shape[2])


def refit_second(weight: Tensor, covariance: Tensor, projection: Tensor) -> Tensor:
    """``W S A^T (A S A^T)^-1 (out, offsets, rank)``: the best second factor for this first one, whatever G is."""
    out, offsets, width = weight.shape
    crossed = (covariance @ weight.reshape(out, -1).T).view(offsets, width, out)
    lower = cholesky(project_covariance(covariance, projection, offsets))
    solved = torch.cholesky_solve(_rank_major(projection, crossed), lower)
    return solved.view(len(projection), offsets, out).permute(2, 1, 0)


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; a matrix that rounding made indefinite gets its diagonal raised until it has one."""
    scale = float(matrix.diagonal().mean()) or 1.0
    for jitter in (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2):
        lifted = (
            matrix
            if jitter == 0
            else matrix + jitter * scale * torch.eye(len(matrix), dtype=matrix.dtype, device="cpu")
        )
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(lifted)
        if not failed:
            return lower
    raise ValueError("the covariance is not positive: it holds NaN or was not shrunk")


def balance(factors: Factors) -> Factors:
    """The same product with each rank's two vectors of equal norm, so that neither leaves half precision's range."""
    first, second = factors.first, factors.second
    rows = first.flatten(1).norm(dim=1).clamp_min(1e-300)
    columns = second.movedim(-1, 0).flatten(1).norm(dim=1).clamp_min(1e-300)
    scale = (columns / rows).sqrt()
    return Factors(first * scale.view(-1, *[1] * (first.dim() - 1)), second / scale)


def group_covariance(covariance: Tensor, offsets: int, groups: int) -> Tensor:
    """``S (offsets * in, offsets * in)``, its columns by group ``(groups, offsets * in, offsets * in / groups)``."""
    entries = len(covariance)
    columns = covariance.view(entries, offsets, groups, -1).permute(2, 0, 1, 3)
    return columns.reshape(groups, entries, entries // groups)


def loss_of_groups(difference: Tensor, grouped: Tensor, curvature: Tensor) -> float:
    """``tr(G D S D^T)`` for a ``D`` that is zero between groups, without ever filling the zeros in.

    Args:
        difference: Of two grouped weights ``(out, offsets, in / groups)``.
        grouped: ``S`` from :func:`group_covariance`.
        curvature: ``G (out, out)``.
    """
    out, offsets, width = difference.shape
    groups = len(grouped)
    mine = difference.reshape(groups, out // groups, offsets * width)
    seen = (grouped @ mine.transpose(1, 2)).view(groups, offsets, groups, width, out // groups)
    felt = mine @ seen.permute(2, 1, 3, 0, 4).reshape(groups, offsets * width, out)
    return max(float((curvature * felt.reshape(out, out)).sum()), 0.0)  # rounding may leave a little less than nothing


def loss_of(weight: Tensor, approximation: Tensor, covariance: Tensor, curvature: Tensor) -> float:
    """``tr(G D S D^T)`` for ``D`` the difference of two weights ``(out, width)``."""
    difference = weight - approximation
    loss = float(torch.einsum("oi,oi->", curvature @ difference, difference @ covariance))
    return max(loss, 0.0)  # rounding may leave a little less than nothing
