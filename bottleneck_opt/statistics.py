"""What calibration learns about a layer: sums over samples that can be added up in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.layers import LayerSpec


@dataclass(frozen=True)
class Moments:
    """Sums over samples of a vector of length ``d``.

    Attributes:
        count: Number of samples.
        total: Sum of the samples ``(d,)``, float64.
        squares: Sum of all squared entries.
        outer: Sum of ``x x^T`` ``(d, d)``, float64; None when it was not collected.
    """

    count: int
    total: Tensor
    squares: float
    outer: Tensor | None

    @property
    def mean(self) -> Tensor:
        """Mean sample ``(d,)``."""
        return self.total / max(self.count, 1)

    @property
    def variance(self) -> float:
        """Mean variance of an entry: the trace of the covariance over ``d``."""
        spread = self.squares / max(self.count, 1) - float(self.mean.square().sum())
        return max(spread, 0.0) / max(len(self.total), 1)

    def take(self, entries: Tensor) -> Moments:
        """The sums over some entries of the samples only; ``entries`` holds their numbers."""
        outer = None if self.outer is None else self.outer[entries[:, None], entries]
        total = self.total[entries]
        share = self.squares * len(entries) / max(len(self.total), 1) if outer is None else float(outer.trace())
        return Moments(self.count, total, share, outer)

    @property
    def is_finite(self) -> bool:
        """Whether no sum is NaN or has overflowed."""
        sums = [self.total, torch.tensor(self.squares, device="cpu"), *([] if self.outer is None else [self.outer])]
        return all(bool(torch.isfinite(each).all()) for each in sums)

    def covariance(self) -> Tensor:
        """Centred covariance ``(d, d)``. Raises ValueError when outer products were not collected."""
        if self.outer is None:
            raise ValueError("outer products were not collected for this layer")
        covariance = self.outer / max(self.count, 1)
        covariance -= torch.outer(self.mean, self.mean)
        return covariance

    def merge(self, other: Moments) -> Moments:
        """The sums over both sets of samples."""
        outer = None if self.outer is None or other.outer is None else self.outer + other.outer
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


def unit_statistics(layers: Mapping[str, LayerSpec]) -> Statistics:
    """Statistics of layers that no data ran through: inputs of unit variance, an output that feels all channels alike.

    Outer products are left out, for the memory: passes that need them decline.
    """
    found = {}
    for path, layer in layers.items():
        width, out = layer.offsets * layer.in_channels, layer.out_channels
        inputs = Moments(1, torch.zeros(width, dtype=torch.float64, device="cpu"), float(width), None)
        outputs = Moments(1, torch.zeros(out, dtype=torch.float64, device="cpu"), float(out), None)
        found[path] = LayerStatistics(inputs, outputs, torch.eye(out, dtype=torch.float64, device="cpu"), 1)
    return Statistics(found, 1, ())


@dataclass(frozen=True)
class Statistics:
    """Statistics of every observed layer.

    Attributes:
        layers: By module path.
        examples: Examples seen.
        scales: One for each floating tensor of the output, in order.
    """

    layers: Mapping[str, LayerStatistics]
    examples: int
    scales: tuple[OutputScale, ...]

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both data sets, which must have been collected with the same scales."""
        if self.layers.keys() != other.layers.keys() or self.scales != other.scales:
            raise ValueError("only statistics of the same layers and output scales can be merged")
        layers = {path: mine.merge(other.layers[path]) for path, mine in self.layers.items()}
        return Statistics(layers, self.examples + other.examples, self.scales)
