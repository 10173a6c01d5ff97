"""The weights of many layers as one vector, and the vector space's operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bottleneck_opt.kernels import by_offset, to_module, to_plain
from bottleneck_opt.layers import LayerSpec

Vector = Mapping[str, Tensor]
"""By layer, ``(groups, out / groups, [1 for the bias +] offsets * in / groups)``, float64 on the CPU."""


def add(one: Vector, factor: float, other: Vector) -> dict[str, Tensor]:
    """``one + factor * other``."""
    return {path: each + factor * other[path] for path, each in one.items()}


def dot(one: Vector, other: Vector) -> float:
    """The sum of all products of entries."""
    return float(sum(float((each * other[path]).sum()) for path, each in one.items()))


def parameters_of(module: nn.Module) -> list[Tensor]:
    """A layer's weight, and its bias where it has one."""
    both = module._parameters.get("weight"), module._parameters.get("bias")
    return [each for each in both if each is not None]


def to_matrix(layer: LayerSpec, values: Sequence[Tensor]) -> Tensor:
    """Weight and bias as a module keeps them, as the layer's part of a vector, which shares no memory with them."""
    return arrange(layer, [each.double().cpu() for each in values])


def arrange(layer: LayerSpec, values: Sequence[Tensor]) -> Tensor:
    """The same where and as precise as the values are."""
    kernel = by_offset(to_plain(layer, values[0].detach())).flatten(1)
    whole = kernel.clone() if len(values) == 1 else torch.cat([values[1].detach()[:, None], kernel], 1)
    return whole.view(layer.groups, -1, whole.shape[1])


def to_kernel(layer: LayerSpec, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """The plain kernel and the bias of a layer's part of a vector."""
    whole = matrix.flatten(0, 1)
    width = layer.offsets * layer.in_channels // layer.groups
    flat = whole[:, -width:]
    kernel = flat.reshape(len(whole), layer.offsets, -1).transpose(1, 2).reshape(layer.weight_shape)
    return kernel, whole[:, 0] if whole.shape[1] > width else None


def write_matrix(layer: LayerSpec, matrix: Tensor, module: nn.Module) -> None:
    """Put a layer's part of a vector into its module, which is changed."""
    kernel, bias = to_kernel(layer, matrix)
    values = [to_module(layer, kernel), *([] if bias is None else [bias])]
    with torch.no_grad():
        for parameter, value in zip(parameters_of(module), values, strict=True):
            parameter.copy_(value)
