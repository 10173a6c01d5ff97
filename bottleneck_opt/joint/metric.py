"""What calibration can tell of each layer alone: ``G kron S``, as a metric of the space of all weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.conditioning import cholesky
from bottleneck_opt.joint.vectors import Vector
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.statistics import LayerStatistics, Moments, OutputScale

DAMPING = 1e-3
WIDEST = 2048


@dataclass(frozen=True)
class Metric:
    """Cholesky factors of ``G (groups, out, out)`` and of ``S (groups, width, width)`` of each layer.

    ``S`` is the second moment of the layer's input patches, whose first entry is a constant if it has a bias. Of
    patches with more than 2,048 entries only the diagonal is kept ``(groups, width)``.
    """

    outer: Mapping[str, Tensor]
    inner: Mapping[str, Tensor]

    def apply(self, vector: Vector) -> dict[str, Tensor]:
        """``G D S`` for each layer's part D."""
        found = {}
        for path, each in vector.items():
            outer, inner = self.outer[path], self.inner[path]
            felt = outer @ (outer.mT @ each)
            found[path] = felt * inner[:, None] if inner.dim() == 2 else felt @ inner @ inner.mT
        return found

    def solve(self, vector: Vector) -> dict[str, Tensor]:
        """``G^-1 D S^-1`` for each layer's part D."""
        found = {}
        for path, each in vector.items():
            half, inner = torch.cholesky_solve(each, self.outer[path]), self.inner[path]
            found[path] = half / inner[:, None] if inner.dim() == 2 else torch.cholesky_solve(half.mT, inner).mT
        return found


def measure_metric(
    model: nn.Module, layers: Mapping[str, LayerSpec], data: CalibrationData, scales: Sequence[OutputScale], seed: int
) -> Metric:
    """The metric of a model's layers as they are: one random output direction an example.

    Args:
        model: A working copy.
        layers: Stock layers of it, by path.
        data: What to run on.
        scales: Spread of each output tensor.
        seed: Of positions and directions.
    """
    statistics = collect_statistics(model, layers, data, Sampling(data.examples, 1, seed), scales=tuple(scales))
    outer, inner = {}, {}
    for path, layer in layers.items():
        biased = model.get_submodule(path)._parameters.get("bias") is not None
        outer[path] = _factor_curvature(layer, statistics.layers[path])
        inner[path] = _factor_moment(layer, statistics.layers[path].inputs, biased=biased)
    return Metric(outer, inner)


def _factor_curvature(layer: LayerSpec, statistics: LayerStatistics) -> Tensor:
    curvature, rows = statistics.mean_curvature(), layer.out_channels // layer.groups
    floor = DAMPING * float(curvature.diagonal().mean()) or 1.0
    factors = []
    for group in range(layer.groups):
        own = slice(group * rows, (group + 1) * rows)
        factors.append(cholesky(curvature[own, own] + floor * torch.eye(rows, dtype=curvature.dtype, device="cpu")))
    return torch.stack(factors)


def _factor_moment(layer: LayerSpec, inputs: Moments, *, biased: bool) -> Tensor:
    width = layer.in_channels // layer.groups
    factors = []
    for group in range(layer.groups):
        channels = torch.arange(group * width, (group + 1) * width, device="cpu")
        entries = (torch.arange(layer.offsets, device="cpu")[:, None] * layer.in_channels + channels).flatten()
        factors.append(_factor_part(inputs.take(entries), biased=biased))
    return torch.stack(factors)


def _factor_part(inputs: Moments, *, biased: bool) -> Tensor:
    """The factor of ``E[x x^T]``, damped, with the bias's constant first; of wide patches its diagonal."""
    width, mean = len(inputs.total), inputs.mean
    if inputs.outer is None or width > WIDEST:
        moment = (inputs.variance + mean.square()).clamp_min(1e-12 + DAMPING * float(mean.square().mean()))
        return torch.cat([moment.new_ones(1), moment]) if biased else moment
    covariance = inputs.covariance()
    covariance.diagonal().add_(DAMPING * float(covariance.diagonal().mean() + mean.square().mean()) or 1.0)
    if not biased:
        return cholesky(covariance + torch.outer(mean, mean))
    lower = covariance.new_zeros(width + 1, width + 1)
    lower[0, 0], lower[1:, 0], lower[1:, 1:] = 1.0, mean, cholesky(covariance)
    return lower
