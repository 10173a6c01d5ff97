"""Least squares for the last factor of a rewritten layer: from what arrives at it to what the original layer gave.

The samples are multiplied out once. What is fitted to half of the examples, to all but the held-out ones and to all of
them comes from the same growing sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.conditioning import cholesky
from bottleneck_opt.kernels import by_offset, spread_groups
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.sites import Weights

ENOUGH = 5
RIDGE, RIDGE_FEW = 1e-2, 1e-1
HELD_OUT = 5


@dataclass(frozen=True)
class Samples:
    """Patches ``(n, offsets * in)`` and targets ``(n, out)``, example after example, the last of which are mixes."""

    patches: Tensor
    targets: Tensor
    examples: int
    mixes: int = 0

    def first_half(self) -> Samples:
        """Half of the examples that are neither held out nor mixes: two of five."""
        return self._take(lambda example: self._is_real(example) and example % HELD_OUT in (1, 3))

    def second_half(self) -> Samples:
        """The other half of them."""
        return self._take(lambda example: self._is_real(example) and example % HELD_OUT in (2, 4))

    def held_out(self) -> Samples:
        """Every fifth example."""
        return self._take(lambda example: self._is_real(example) and example % HELD_OUT == 0)

    def mixed(self) -> Samples:
        """The mixes."""
        return self._take(lambda example: not self._is_real(example))

    def _is_real(self, example: int) -> bool:
        return example < self.examples - self.mixes

    def _take(self, keep: Callable[[int], bool]) -> Samples:
        numbers = [example for example in range(self.examples) if keep(example)]
        each = len(self.patches) // self.examples
        starts = torch.tensor(numbers, dtype=torch.long, device="cpu")[:, None] * each
        rows = (starts + torch.arange(each, device="cpu")).flatten()
        return Samples(self.patches[rows], self.targets[rows], len(numbers))


@dataclass(frozen=True)
class Refit:
    """A last factor fitted again.

    Attributes:
        weights: Fitted to all examples and mixes; None where that did not help on those held out.
        before, after, halved: Error on the held-out examples of the factor as it was, of one fitted to all others, and
            of one fitted to half of those: tells whether more of them would help.
    """

    weights: Weights | None
    before: float
    after: float
    halved: float


def refit_last(layer: LayerSpec, samples: Samples, old: Weights, metric: Tensor) -> Refit:
    """Fit a last factor again, and say whether that helps.

    ``(Cov(y, z) + l W0)(Cov(z) + l I)^-1``, group by group, and the bias that keeps the mean. A layer without a bias
    can only be fitted to the values themselves: second moments take the covariances' place.

    Args:
        layer: The last factor.
        samples: What arrives at it, and what the original layer gave.
        old: Its weights so far.
        metric: ``G (out, out)``: how much the network's output feels errors of the layer.
    """
    sums = [_Sums(layer, samples, group) for group in range(layer.groups)]
    halved = _fit(layer, sums, samples.first_half(), old=old)
    found = _fit(layer, sums, samples.second_half(), old=old)
    held_out = samples.held_out()
    before, after, fewer = measure_errors(layer, held_out, (old, found, halved), metric)
    weights = _fit(layer, sums, held_out, samples.mixed(), old=old) if after < before else None
    return Refit(weights, before, after, fewer)


def _fit(layer: LayerSpec, sums: Sequence[_Sums], *more: Samples, old: Weights) -> Weights:
    """Fitted to all samples up to these."""
    for each, samples in itertools.product(sums, more):
        each.add(samples)
    rows = layer.out_channels // layer.groups
    found = [each.solve(old.weight[each.group * rows : (each.group + 1) * rows]) for each in sums]
    kernels, biases = zip(*found, strict=True)
    return Weights(torch.cat(kernels), torch.cat(biases) if layer.bias else None)


class _Sums:
    """Second moments of one group while samples are added, around the mean of all samples.

    Products run in the samples' precision, sums in float64.
    """

    def __init__(self, layer: LayerSpec, samples: Samples, group: int) -> None:
        rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        self.group, self._layer = group, layer
        self._rows = slice(group * rows, (group + 1) * rows)
        channels = torch.arange(group * columns, (group + 1) * columns, device="cpu")
        self._entries = (torch.arange(layer.offsets, device="cpu")[:, None] * layer.in_channels + channels).flatten()
        self._center = self._find_center(samples)
        width = len(self._entries)
        self._inner = torch.zeros(width, width, dtype=torch.float64, device="cpu")
        self._crossed = torch.zeros(rows, width, dtype=torch.float64, device="cpu")
        self._totals = [torch.zeros_like(each, dtype=torch.float64) for each in self._center]
        self._count = 0

    def _find_center(self, samples: Samples) -> tuple[Tensor, Tensor]:
        z, y = self._pick(samples)
        if not self._layer.bias:
            return z.new_zeros(z.shape[1]), y.new_zeros(y.shape[1])
        return z.mean(0), y.mean(0)

    def _pick(self, samples: Samples) -> tuple[Tensor, Tensor]:
        z = samples.patches if self._layer.groups == 1 else samples.patches[:, self._entries]
        return z, samples.targets[:, self._rows]

    def add(self, samples: Samples) -> None:
        """Add samples."""
        z, y = (each - center for each, center in zip(self._pick(samples), self._center, strict=True))
        self._inner += z.T @ z
        self._crossed += y.T @ z
        for total, each in zip(self._totals, (z, y), strict=True):
            total.add_(each.sum(0, dtype=torch.float64))
        self._count += len(z)

    def solve(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel and bias fitted to all samples added so far, drawn towards a kernel ``(rows, columns, *kernel)``."""
        count, flat = max(self._count, 1), by_offset(kernel).flatten(1)
        covariance, crossed = self._inner / count, self._crossed / count
        z, y = (total / count if self._layer.bias else torch.zeros_like(total) for total in self._totals)
        covariance.addr_(z, z, alpha=-1)
        crossed.addr_(y, z, alpha=-1)
        ridge = (RIDGE if count >= ENOUGH * len(z) else RIDGE_FEW) * float(covariance.diagonal().mean())
        covariance.diagonal().add_(max(ridge, 1e-12))
        new = torch.cholesky_solve(crossed.add_(flat, alpha=ridge).T, cholesky(covariance)).T
        middle, mean = self._center[0] + z, self._center[1] + y
        shaped = new.view(len(flat), self._layer.offsets, -1).transpose(1, 2).reshape(kernel.shape)
        return shaped, mean - new @ middle


def measure_errors(layer: LayerSpec, samples: Samples, weights: Sequence[Weights], metric: Tensor) -> list[float]:
    """Mean of ``e^T G e`` over samples, relative to that of the targets around their mean, for each of some weights."""
    patches, targets = samples.patches.double(), samples.targets.double()
    whole = max(_feel(targets - targets.mean(0), metric), 1e-300)
    return [_feel(targets - _run(layer, patches, each), metric) / whole for each in weights]


def _run(layer: LayerSpec, patches: Tensor, weights: Weights) -> Tensor:
    made = patches @ by_offset(spread_groups(weights.weight, layer.groups)).flatten(1).T
    return made if weights.bias is None else made.add_(weights.bias)


def _feel(error: Tensor, metric: Tensor) -> float:
    return float(torch.einsum("no,no->", error @ metric, error))
