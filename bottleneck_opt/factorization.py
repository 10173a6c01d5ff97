"""Split one weight into two thin ones, so that the network's output changes as little as possible.

Notation, with axes: a layer's weight is ``W (out, offsets, in)``, flattened ``(out, width)`` offset-major; its input
patches have covariance ``S (width, width)``; the network's output has curvature ``G (out, out)`` in the layer's
output. For an approximation ``W~`` the loss is ``tr(G (W - W~) S (W - W~)^T)``: the expected squared change of the
network's output, to first order. All tensors are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.conditioning import cholesky


@dataclass(frozen=True)
class Factors:
    """Two weights in a row: ``first (rank, ...)`` is applied to the input, ``second (out, ...)`` to what it gives."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class ExpandFit:
    """The ranks of ``W ~ second first`` with a 1x1 at the end.

    Attributes:
        losses: Loss at rank 0, 1, ... ``(out + 1,)``.
        left, right: ``(out, ranks)``: the leading columns, ``left right^T``, keep what a rank keeps of the output. Only
            as many as were wanted, because they are kept for every layer.
    """

    losses: Tensor
    left: Tensor
    right: Tensor

    def factors(self, rank: int, weight: Tensor) -> Factors:
        """``first (rank, width)`` and ``second (out, rank)`` for the weight ``(out, width)``, balanced."""
        return balance(Factors(self.right[:, :rank].T @ weight, self.left[:, :rank]))


@dataclass(frozen=True)
class ReduceFit:
    """The ranks of ``W ~ second (I kron first)`` with one 1x1 before all kernel offsets.

    Attributes:
        losses: Loss at rank 0, 1, ... up to the highest one wanted.
        projection: The first factor at that rank ``(rank, in)``; its leading rows are that of the lower ranks.
        explained: ``Z (rank * offsets, out)``: ``Z^T Z`` of its first ``r * offsets`` rows is what rank r keeps.
        total: The loss at rank 0, when nothing is kept.
    """

    losses: Tensor
    projection: Tensor
    explained: Tensor
    total: Tensor


def fit_factors(weight: Tensor, covariance: Tensor, projection: Tensor) -> Factors:
    """The projection ``(rank, in)`` as first factor and the second ``(out, offsets, rank)`` refitted to it, balanced.

    The covariance is asked for again because it is too large to be kept for every layer.
    """
    return balance(Factors(projection, refit_second(weight, covariance, projection)))


def factor_exactly(weight: Tensor) -> Factors:
    """Two factors that lose nothing, for ``weight (out, offsets, in)``: the weight itself, and ones and zeros.

    ``first (rank, in)`` and ``second (out, offsets, rank)``, with the lesser of ``in`` and ``offsets * out`` as rank.
    """
    out, offsets, width = weight.shape
    if width <= offsets * out:
        return Factors(torch.eye(width, dtype=weight.dtype, device="cpu"), weight)
    rank = offsets * out
    places = torch.eye(rank, dtype=weight.dtype, device="cpu").view(offsets, out, rank)
    return Factors(weight.transpose(0, 1).reshape(rank, width), places.transpose(0, 1))


def fit_expand(weight: Tensor, output_covariance: Tensor, curvature: Tensor, *, most: int | None = None) -> ExpandFit:
    """The exact optimum at every rank, from one eigendecomposition (reduced-rank regression, Izenman 1975).

    With ``G = L L^T`` the best first factor is ``E^T L^T W`` and the best second ``L^-T E``, ``E`` the top
    eigenvectors of ``L^T (W S W^T) L``. Where the layer has more outputs than inputs these lie in the range of ``L^T
    W``, and the decomposition is done there.

    Args:
        weight: ``(out, width)``.
        output_covariance: ``W S W^T (out, out)``.
        curvature: ``G (out, out)``, damped.
        most: The highest rank whose factors are wanted; None wants all.
    """
    lower = cholesky(curvature)
    out, width = weight.shape
    span = torch.linalg.qr(lower.T @ weight).Q if width < out else None
    root = lower if span is None else lower @ span
    inner = root.T @ (output_covariance @ root)
    energy, basis = torch.linalg.eigh((inner + inner.T) / 2)
    energy, basis = energy.flip(0).clamp_min(0), basis.flip(1)[:, :most]
    directions = basis if span is None else span @ basis
    left = torch.linalg.solve_triangular(lower.T, directions, upper=True)
    return ExpandFit(_add_up(energy, out), left, root @ basis)


def fit_expand_by_inputs(
    weight: Tensor, covariance: Tensor, curvature: Tensor, *, most: int | None = None
) -> ExpandFit:
    """The same for a layer with more outputs than inputs, from the covariance of these: the smaller matrix.

    Args:
        weight: ``(out, width)``, ``width`` less than ``out``.
        covariance: ``S (width, width)``, shrunk.
        curvature, most: As for :func:`fit_expand`.
    """
    lower = cholesky(curvature)
    span, read = torch.linalg.qr(lower.T @ weight)
    inner = read @ (covariance @ read.T)
    energy, basis = torch.linalg.eigh((inner + inner.T) / 2)
    directions = span @ basis.flip(1)[:, :most]
    left = torch.linalg.solve_triangular(lower.T, directions, upper=True)
    return ExpandFit(_add_up(energy.flip(0).clamp_min(0), len(weight)), left, lower @ directions)


def _add_up(energy: Tensor, out: int) -> Tensor:
    """The loss at rank 0, 1, ... ``(out + 1,)`` from what each rank keeps, the most first."""
    dropped = energy.flip(0).cumsum(0).flip(0)
    return torch.cat([dropped, dropped.new_zeros(1 + out - len(dropped))])


def fit_reduce(
    weight: Tensor, covariance: Tensor, curvature: Tensor, *, most: int | None = None, crossed: Tensor | None = None
) -> ReduceFit:  # fmt: skip
    """A near-optimal nested basis for every rank, with the loss after the exact refit of the second factor.

    One Cholesky factor gives all losses: rows are rank-major, so its leading blocks belong to the lower ranks.

    Args:
        weight: ``(out, offsets, in)``.
        covariance: ``S (offsets * in, offsets * in)``, shrunk.
        curvature: ``G (out, out)``, damped.
        most: The highest rank whose loss is wanted, None for all; the work grows with its third power.
        crossed: ``S W^T L (offsets * in, out)`` with ``G = L L^T``, where it is known; None computes it.
    """
    projection = find_basis(weight, covariance, curvature, most=most)
    return fit_to_basis(weight, covariance, curvature, projection, crossed=crossed)


def fit_to_basis(
    weight: Tensor, covariance: Tensor, curvature: Tensor, projection: Tensor, *, crossed: Tensor | None = None
) -> ReduceFit:  # fmt: skip
    """The same for first factors that are given.

    Args:
        weight, covariance, curvature, crossed: As for :func:`fit_reduce`.
        projection: ``(rank, in)``; its leading rows are that of the lower ranks.
    """
    out, offsets, width = weight.shape
    felt = weight.reshape(out, -1).T @ cholesky(curvature)
    crossed = covariance @ felt if crossed is None else crossed
    total = torch.einsum("wo,wo->", felt, crossed)
    target = _rank_major(projection, crossed.view(offsets, width, out))
    projected = project_covariance(covariance, projection, offsets)
    del covariance, felt, crossed  # what comes next is the largest: let go of what it does not need
    explained = torch.linalg.solve_triangular(cholesky(projected), target, upper=False)
    kept = explained.square().sum(1).view(-1, offsets).sum(1).cumsum(0)
    losses = (total - torch.cat([kept.new_zeros(1), kept])).clamp_min(0)
    return ReduceFit(losses, projection, explained, total)


def find_basis(weight: Tensor, covariance: Tensor, curvature: Tensor, *, most: int | None = None) -> Tensor:
    """First factors ``(rank, in)`` for :func:`fit_reduce`; the leading rows are that of the lower ranks.

    The top of ``R^T (sum_pq T_pq W_p^T G W_q) R``, times ``R^-1``, with ``R R^T = C`` the mean covariance of an offset
    and ``T`` the covariance between offsets; ``S`` is close to ``T kron C`` (Van Loan 2000). Which root R is taken
    makes no difference to the result.
    """
    return find_common_basis(*weigh_channels(weight, covariance, curvature), most=most)


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
    return weight.reshape(-1, width).T @ mixed.reshape(-1, width), channel


def find_common_basis(inner: Tensor, channel: Tensor, *, most: int | None = None) -> Tensor:
    """First factors ``(rank, in)``, the most important row first, from what :func:`weigh_channels` gives."""
    root = cholesky(channel)
    core = root.T @ ((inner + inner.T) / 2) @ root
    vectors = torch.linalg.eigh(core).eigenvectors.flip(1)[:, :most]
    basis: Tensor = torch.linalg.solve_triangular(root.T, vectors, upper=True).T.contiguous()
    return basis


def nest_factors(weight: Tensor, covariance: Tensor, projection: Tensor) -> Factors:
    """``W ~ second first`` such that the leading ``r * offsets`` columns and rows are the best there is at rank r.

    Args:
        weight: ``(out, offsets, in)``.
        covariance: ``S (offsets * in, offsets * in)``, shrunk.
        projection: ``(rank, in)``; its leading rows are that of the lower ranks.

    Returns:
        ``first (rank * offsets, offsets * in)`` and ``second (out, rank * offsets)``.
    """
    out, offsets, width = weight.shape
    crossed = (covariance @ weight.reshape(out, -1).T).view(offsets, width, out)
    spread = torch.kron(torch.eye(offsets, dtype=weight.dtype, device="cpu"), projection)
    ordered = spread.view(offsets, len(projection), -1).transpose(0, 1).reshape(len(spread), -1)
    lower = cholesky(project_covariance(covariance, projection, offsets))
    both = torch.cat([ordered, _rank_major(projection, crossed)], dim=1)
    solved = torch.linalg.solve_triangular(lower, both, upper=False)
    return Factors(solved[:, : offsets * width], solved[:, offsets * width :].T)


def project_covariance(covariance: Tensor, projection: Tensor, offsets: int) -> Tensor:
    """``A S A^T`` for ``A = I kron P``, rows and columns rank-major ``(rank * offsets, rank * offsets)``.

    ``S`` must be symmetric: only its lower blocks are read.
    """
    rank, width = projection.shape
    both = covariance.new_empty(rank, offsets, rank, offsets)
    for p in range(offsets):
        left = projection @ covariance[p * width : (p + 1) * width, : (p + 1) * width]
        blocks = (left.view(-1, width) @ projection.T).view(rank, p + 1, rank)
        both[:, p, :, :p] = blocks[:, :p].transpose(1, 2)
        both[:, :p, :, p] = blocks[:, :p].permute(2, 1, 0)
        both[:, p, :, p] = (blocks[:, p] + blocks[:, p].T) / 2
    return both.view(rank * offsets, rank * offsets)


def _rank_major(projection: Tensor, crossed: Tensor) -> Tensor:
    """``A X`` for ``X (offsets, in, n)``, rows rank-major ``(rank * offsets, n)``."""
    projected = projection @ crossed
    return projected.transpose(0, 1).reshape(-1, crossed.shape[2])


def refit_second(weight: Tensor, covariance: Tensor, projection: Tensor) -> Tensor:
    """``W S A^T (A S A^T)^-1 (out, offsets, rank)``: the best second factor for this first one, whatever G is."""
    return refit_and_cover(weight, covariance, projection)[0]


def refit_and_cover(weight: Tensor, covariance: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """The second factor, and the covariance ``(out, out)`` of the output that it makes."""
    out, offsets, width = weight.shape
    return solve_second((covariance @ weight.reshape(out, -1).T).view(offsets, width, out), covariance, projection)


def solve_second(crossed: Tensor, covariance: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """The best second factor ``(out, offsets, rank)``, and the covariance ``(out, out)`` of the output that it makes.

    Args:
        crossed: ``S W^T (offsets, in, out)``.
        covariance: ``S (offsets * in, offsets * in)``.
        projection: The first factor ``(rank, in)``.
    """
    offsets, _, out = crossed.shape
    target = _rank_major(projection, crossed)
    solved = torch.cholesky_solve(target, cholesky(project_covariance(covariance, projection, offsets)))
    return solved.view(len(projection), offsets, out).permute(2, 1, 0), solved.T @ target


def balance(factors: Factors) -> Factors:
    """The same product with each rank's two vectors of equal norm, so that neither leaves half precision's range."""
    first, second = factors.first, factors.second
    rows = first.flatten(1).norm(dim=1).clamp_min(1e-300)
    columns = second.movedim(-1, 0).flatten(1).norm(dim=1).clamp_min(1e-300)
    scale = columns.sqrt() / rows.sqrt()  # their quotient may overflow where one of them is zero
    return Factors(first * scale.view(-1, *[1] * (first.dim() - 1)), second / scale)


def loss_of(weight: Tensor, approximation: Tensor, covariance: Tensor, curvature: Tensor) -> float:
    """``tr(G D S D^T)`` for ``D`` the difference of two weights ``(out, width)``."""
    difference = weight - approximation
    loss = float(torch.einsum("oi,oi->", curvature @ difference, difference @ covariance))
    return max(loss, 0.0)  # rounding may leave a little less than nothing
