"""CP factors of a kernel, in the metric of its inputs and of the network's output.

A kernel ``W (out, in, *kernel)`` is approximated by a sum of ``rank`` outer products. What is to be small is
``tr(G D S D^T)``, ``D`` the error, ``S`` the covariance of the input patches and ``G`` the curvature of the output.
Where ``S`` is a Kronecker product of channels and kernel axes, that is the plain squared error of the kernel with the
roots of all of them multiplied in; a real ``S`` is nearly one. So tensorly decomposes the weighed kernel, the roots are
taken out again, and the factor of the output channels is fitted once more to the true ``S``, in closed form.

The start is the truncated SVD of every kernel offset by itself, of which the strongest are taken: it is deterministic,
and with all of them nothing is lost.

Source: Lebedev et al. 2015 for the shape; Van Loan 2000 for the metric; the solver is tensorly's alternating least
squares (Kossaifi et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorly
import torch
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac
from torch import Tensor

TOLERANCE = 1e-7
RIDGE = 1e-9
_SMALLEST = 1e-6


@dataclass(frozen=True)
class CpFactors:
    """A sum of outer products.

    Attributes:
        out: ``(out, rank)``.
        inner: ``(in, rank)``.
        axes: For each axis of the kernel ``(length, rank)``.
    """

    out: Tensor
    inner: Tensor
    axes: tuple[Tensor, ...]

    def patterns(self) -> Tensor:
        """What each component looks for in a patch ``(rank, offsets * in)``, offset-major."""
        rank = self.inner.shape[1]
        pattern = torch.ones(1, rank, dtype=self.inner.dtype, device="cpu")
        for factor in (*self.axes, self.inner):
            pattern = (pattern[:, None] * factor[None]).flatten(0, 1)
        return pattern.T

    def with_out(self, out: Tensor) -> CpFactors:
        """The same with another factor of the output channels."""
        return CpFactors(out, self.inner, self.axes)


def largest_rank(shape: Sequence[int]) -> int:
    """A rank at which every kernel of this shape ``(out, in, *kernel)`` is exact: one SVD for each offset.

    Example:
        >>> largest_rank((8, 12, 3, 3))
        72
    """
    return min(shape[0], shape[1]) * math.prod(shape[2:])


def decompose_exactly(kernel: Tensor) -> CpFactors:
    """The factors at :func:`largest_rank`, without iterations."""
    return _start(kernel, largest_rank(kernel.shape))


def decompose(kernel: Tensor, covariance: Tensor, curvature: Tensor, rank: int, *, iterations: int) -> CpFactors:
    """CP factors of a kernel at a rank.

    Args:
        kernel: ``(out, in, *kernel)``, float64.
        covariance: ``S (offsets * in, offsets * in)``, offset-major.
        curvature: ``G (out, out)``.
        rank: How many components.
        iterations: Of alternating least squares, at most.
    """
    metrics = [curvature, *_split_covariance(covariance, kernel.shape)]
    roots = [_root(metric) for metric in metrics]
    weighed = _multiply(kernel, [root for root, _ in roots])
    found = _solve(weighed, _start(weighed, rank), iterations)
    out, inner, *axes = (
        back @ factor for (_, back), factor in zip(roots, (found.out, found.inner, *found.axes), strict=True)
    )
    factors = _balance(CpFactors(out, inner, tuple(axes)))
    return factors.with_out(_fit_out(kernel, covariance, factors.patterns()))


def _split_covariance(covariance: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Covariances of channels and of each kernel axis, of whose product ``S`` is nearly made: its partial traces."""
    _, width, *axes = shape
    sizes = [*axes, width]
    split = covariance.reshape(*sizes, *sizes)
    letters = "abcdefgh"[: len(sizes)]
    parts = []
    for place in (len(sizes) - 1, *range(len(axes))):
        right = letters[:place] + "z" + letters[place + 1 :]
        part = torch.einsum(f"{letters}{right}->{letters[place]}z", split)
        parts.append(part / part.diagonal().mean())
    return parts


def _root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a metric and its inverse."""
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    roots = values.clamp_min(_SMALLEST * float(values.max())).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _multiply(kernel: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A matrix multiplied to each axis of a tensor."""
    for axis, matrix in enumerate(matrices):
        kernel = torch.tensordot(matrix, kernel.movedim(axis, 0), dims=1).movedim(0, axis)
    return kernel


def _start(kernel: Tensor, rank: int) -> CpFactors:
    """The strongest singular vectors of all offsets, each a component that sees one offset alone."""
    shape = kernel.shape[2:]
    slices = kernel.flatten(2).movedim(2, 0)
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    each = values.shape[1]
    chosen = values.flatten().argsort(descending=True, stable=True)[:rank]
    offset, number = chosen // each, chosen % each
    places = torch.unravel_index(offset, shape)
    axes = tuple(
        torch.nn.functional.one_hot(place, length).T.to(kernel.dtype)
        for place, length in zip(places, shape, strict=True)
    )
    return CpFactors((left[offset, :, number] * values[offset, number, None]).T, right[offset, number].T, axes)


def _solve(kernel: Tensor, start: CpFactors, iterations: int) -> CpFactors:
    """Alternating least squares from a start, by tensorly; its backend is switched for this thread and back."""
    factors = [each.contiguous() for each in (start.out, start.inner, *start.axes)]
    ones = torch.ones(start.out.shape[1], dtype=kernel.dtype, device="cpu")
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        found = parafac(
            kernel, len(ones), n_iter_max=iterations, init=CPTensor((ones, factors)), tol=TOLERANCE, l2_reg=RIDGE,
            normalize_factors=False,
        )  # fmt: skip
    out, inner, *axes = found.factors
    return CpFactors(out * found.weights, inner, tuple(axes))


def _balance(factors: CpFactors) -> CpFactors:
    """The same sum with columns of length 1 in all factors but the first, so that float32 holds all of them."""
    scaled = [(each, each.norm(dim=0).clamp_min(1e-300)) for each in (factors.inner, *factors.axes)]
    lengths = torch.stack([length for _, length in scaled]).prod(0)
    inner, *axes = (each / length for each, length in scaled)
    return CpFactors(factors.out * lengths, inner, tuple(axes))


def _fit_out(kernel: Tensor, covariance: Tensor, patterns: Tensor) -> Tensor:
    """The factor of the output channels that loses least for given patterns, whatever ``G`` is ``(out, rank)``."""
    flat = kernel.flatten(2).transpose(1, 2).flatten(1)
    seen = patterns @ covariance
    gram = seen @ patterns.T
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
    solved: Tensor = torch.linalg.solve(gram, seen @ flat.T)
    return solved.T
