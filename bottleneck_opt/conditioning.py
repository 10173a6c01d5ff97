"""Make covariances and curvatures safe to divide by: shrinkage, damping, and factors that always exist.

All matrices are symmetric and float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIP = 1e-10
DAMPING = 1e-3
LEAST_SHRINKAGE = 1e-6
FEW_IMAGES_SHRINKAGE = 3e-3
FEW_IMAGES = 16
_TILE = 256


def choose_shrinkage(examples: int) -> float:
    """How far to pull a covariance towards a multiple of the identity.

    Sixteen examples or fewer get 3e-3, more get less in proportion, never below 1e-6: without any, a channel that was
    silent in calibration is amplified a hundred thousand times when it wakes up.
    """
    return max(LEAST_SHRINKAGE, FEW_IMAGES_SHRINKAGE * min(1.0, FEW_IMAGES / max(examples, 1)))


def shrink(covariance: Tensor, amount: float) -> Tensor:
    """``(1 - a) S + a tr(S)/d I``, symmetric (Ledoit and Wolf 2004)."""
    return shrink_in_place(covariance.clone(), amount)


def shrink_in_place(covariance: Tensor, amount: float) -> Tensor:
    """The same in the memory of ``covariance``, which may be too large to be held twice."""
    mean = covariance.diagonal().mean()
    for start in range(0, len(covariance), _TILE):
        rows, rest = slice(start, start + _TILE), slice(start, None)
        both = (covariance[rows, rest] + covariance[rest, rows].T).mul_(0.5 * (1 - amount))
        covariance[rows, rest] = both
        covariance[rest, rows] = both.T
    covariance.diagonal().add_(amount * mean)
    return covariance


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
