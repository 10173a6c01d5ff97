"""What calibration learns about one layer: sums over samples that can be added up in any order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.spilling import Matrix, open_matrix


@dataclass(frozen=True)
class Moments:
    """Sums over samples of a vector of length ``d``.

    Attributes:
        count: Number of samples.
        total: Sum of the samples ``(d,)``, float64.
        squares: Sum of all squared entries.
        outer: Sum of ``x x^T`` ``(d, d)``, float64, in memory or spilled to a file; None when it was not collected.
    """

    count: int
    total: Tensor
    squares: float
    outer: Matrix | None

    @property
    def mean(self) -> Tensor:
        """Mean sample ``(d,)``."""
        return self.total / max(self.count, 1)

    @property
    def variance(self) -> float:
        """Mean variance of an entry: the trace of the covariance over ``d``."""
        spread = self.squares / max(self.count, 1) - float(self.mean.square().sum())
        return max(spread, 0.0) / max(len(self.total), 1)

    @property
    def power(self) -> float:
        """Mean square of an entry."""
        return self.squares / max(self.count * len(self.total), 1)

    def take(self, entries: Tensor) -> Moments:
        """The sums over some entries of the samples only; ``entries`` holds their numbers."""
        outer = None if self.outer is None else open_matrix(self.outer)[entries[:, None], entries]
        total = self.total[entries]
        share = self.squares * len(entries) / max(len(self.total), 1) if outer is None else float(outer.trace())
        return Moments(self.count, total, share, outer)

    @property
    def is_finite(self) -> bool:
        """Whether no sum is NaN or has overflowed."""
        small = bool(torch.isfinite(self.total).all()) and abs(self.squares) < float("inf")
        if not small or self.outer is None:
            return small
        return all(bool(torch.isfinite(rows).all()) for rows in open_matrix(self.outer).split(256))

    def covariance(self) -> Tensor:
        """Centred covariance ``(d, d)``. Raises ValueError when outer products were not collected."""
        if self.outer is None:
            raise ValueError("outer products were not collected for this layer")
        covariance = open_matrix(self.outer) / max(self.count, 1)
        return covariance.addr_(self.mean, self.mean, alpha=-1)

    def merge(self, other: Moments) -> Moments:
        """The sums over both sets of samples, in memory."""
        outer = None
        if self.outer is not None and other.outer is not None:
            outer = open_matrix(self.outer) + open_matrix(other.outer)
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares, outer)


def empty_moments(width: int, *, outer: bool) -> Moments:
    """The sums over no sample at all."""
    zeros = torch.zeros(width, dtype=torch.float64, device="cpu")
    return Moments(0, zeros, 0.0, torch.zeros(width, width, dtype=torch.float64, device="cpu") if outer else None)


@dataclass(frozen=True)
class LayerStatistics:
    """What flows through one layer and what the network's output feels of it.

    Attributes:
        inputs: Over input patches ``(kernel offsets * in channels,)``, offset-major. Without outer products where a
            patch is very long.
        outputs: Over output pixels ``(out channels,)``.
        curvature: Sum over examples and probes of ``sum_positions g g^T`` ``(out, out)``, float64.
        probes: Number of (example, probe) pairs in that sum; 0 where no gradient arrived.
    """

    inputs: Moments
    outputs: Moments
    curvature: Tensor
    probes: int

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics of both sets of samples."""
        return LayerStatistics(
            self.inputs.merge(other.inputs),
            self.outputs.merge(other.outputs),
            self.curvature + other.curvature,
            self.probes + other.probes,
        )

    def take(self, entries: Tensor, outputs: Tensor) -> LayerStatistics:
        """The statistics of some entries of the patches and some output channels, by their numbers."""
        curvature = self.curvature[outputs[:, None], outputs]
        return LayerStatistics(self.inputs.take(entries), self.outputs.take(outputs), curvature, self.probes)

    @property
    def is_finite(self) -> bool:
        """Whether no sum has overflowed; a curvature that is NaN was never felt and is none."""
        return self.inputs.is_finite and self.outputs.is_finite and not bool(torch.isinf(self.curvature).any())

    def mean_curvature(self) -> Tensor:
        """Curvature of an example ``(out, out)``: the mean of the sum."""
        return self.curvature / max(self.probes, 1)


@dataclass(frozen=True)
class OutputScale:
    """Spread of one floating tensor of the model's output.

    Attributes:
        deviation: Its standard deviation over examples and entries.
        entries: Its entries an example.
        leaves: How many such tensors the output has.
    """

    deviation: float
    entries: float
    leaves: int

    @property
    def weight(self) -> float:
        """Factor that makes squared changes relative: all entries changed by one deviation, in every leaf, sum to 1."""
        return (self.deviation**2 * self.entries * self.leaves) ** -0.5 if self.deviation > 0 else 0.0
