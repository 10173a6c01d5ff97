"""The directions along which recovery moves the weights of a layer.

Adam divides each entry of a gradient by its usual size, which tells the steep from the flat only where they lie along
the entries. In a trained network they do not: a layer's inputs vary along the axes of their covariance, and its outputs
matter along those of their curvature. So Adam's moments are kept, and its steps are taken, in those axes, found once
before training.

Source: SOAP (Vyas et al. 2024) with the Kronecker factors of K-FAC (Martens and Grosse 2015) as fixed axes, much like
EK-FAC (George et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.joint.fitting import find_layers
from bottleneck_opt.joint.metric import measure_metric
from bottleneck_opt.joint.vectors import arrange, parameters_of, write_matrix
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.statistics import OutputScale


@dataclass(frozen=True)
class Axes:
    """Of one layer: orthogonal matrices, a column for each axis.

    Attributes:
        module: The layer.
        layer: What it is.
        outer: ``(groups, out / groups, out / groups)``, of the curvature at its outputs.
        inner: ``(groups, width, width)``, of the second moment of its input patches, whose first entry is a constant
            where the layer has a bias; None where patches are too wide, and their own entries are the axes.
    """

    module: nn.Module
    layer: LayerSpec
    outer: Tensor
    inner: Tensor | None

    @property
    def parameters(self) -> list[Tensor]:
        """The layer's weight, and its bias where it has one."""
        return parameters_of(self.module)

    def turn(self, matrix: Tensor) -> Tensor:
        """The coordinates of a change of the weights in these axes."""
        half = self.outer.mT @ matrix
        return half if self.inner is None else half @ self.inner

    def turn_back(self, turned: Tensor) -> Tensor:
        """The change of the weights with these coordinates."""
        half = self.outer @ turned
        return half if self.inner is None else half @ self.inner.mT


def find_axes(student: nn.Module, data: CalibrationData, scales: Sequence[OutputScale], seed: int) -> tuple[Axes, ...]:
    """The axes of torch's own convolutions and Linears, whose weights nothing else holds.

    Args:
        student: A working copy.
        data: What to measure on.
        scales: Spread of each output tensor.
        seed: Of sampled positions and directions.
    """
    layers = find_layers(student, [path for path, _ in student.named_modules()])
    metric = measure_metric(student, layers, data, scales, seed)
    found = []
    for path, layer in layers.items():
        module, inner = student.get_submodule(path), metric.inner[path]
        like = parameters_of(module)[0]
        outer, wide = _find_directions(metric.outer[path], like), inner.dim() == 2
        found.append(Axes(module, layer, outer, None if wide else _find_directions(inner, like)))
    return tuple(found)


def _find_directions(factors: Tensor, like: Tensor) -> Tensor:
    """Eigenvectors of ``L L^T`` of each group, where and as precise as a parameter is."""
    vectors: Tensor = torch.linalg.eigh(factors @ factors.mT)[1]
    return vectors.to(device=like.device, dtype=like.dtype)


def step_along(adam: torch.optim.Adam, axes: Sequence[Axes]) -> None:
    """One step of Adam: in the axes of the layers that have some, along the entries of all other parameters.

    The optimiser sees a layer's gradient in the layer's axes, and takes its step from zero; the step is turned back
    and added to the weights. What it remembers of the layer is in the axes too.

    Args:
        adam: The optimiser; the parameters' gradients are there, and may be changed.
        axes: Of layers whose parameters the optimiser has.
    """
    with torch.no_grad():
        weights = [_show_turned(each) for each in axes]
        adam.step()
        for each, values in zip(axes, weights, strict=True):
            step = each.turn_back(arrange(each.layer, each.parameters))
            write_matrix(each.layer, step, each.module)
            for parameter, value in zip(each.parameters, values, strict=True):
                parameter.add_(value)


def _show_turned(axes: Axes) -> list[Tensor]:
    """Put gradients in the axes, and zero, into a layer's parameters; their values until now."""
    parameters = axes.parameters
    values = [each.clone() for each in parameters]
    for each in parameters:
        each.copy_(torch.zeros_like(each) if each.grad is None else each.grad)
    write_matrix(axes.layer, axes.turn(arrange(axes.layer, parameters)), axes.module)
    for each in parameters:
        each.grad = each.clone()
        each.zero_()
    return values
