"""Weights as plain convolution kernels: one form for plain, transposed and grouped layers, and back.

A transposed convolution spreads its input out with zeros in between and then is a plain convolution of stride 1 with
the kernel turned round (Dumoulin and Visin 2016). So everything that is fitted, is fitted to that plain kernel,
``(out, in / groups, *kernel)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bottleneck_opt.layers import LayerSpec


def to_plain(spec: LayerSpec, weight: Tensor) -> Tensor:
    """A module's weight as the kernel ``(out, in / groups, *kernel)`` of the plain convolution it computes.

    Args:
        spec: The layer.
        weight: As the module keeps it: ``(in, out / groups, *kernel)`` for a transposed convolution.
    """
    return _turn(spec, weight, spec.in_channels) if spec.transposed else weight


def to_module(spec: LayerSpec, kernel: Tensor) -> Tensor:
    """The reverse of :func:`to_plain`."""
    return _turn(spec, kernel, spec.out_channels) if spec.transposed else kernel


def _turn(spec: LayerSpec, weight: Tensor, rows: int) -> Tensor:
    """Exchange inputs and outputs inside each group and turn the kernel round."""
    grouped = weight.reshape(spec.groups, rows // spec.groups, weight.shape[1], *weight.shape[2:])
    turned = grouped.transpose(1, 2).flatten(0, 1)
    return turned.flip(tuple(range(2, turned.dim())))


def spread_groups(kernel: Tensor, groups: int) -> Tensor:
    """A grouped kernel ``(out, in / groups, ...)`` as the full one ``(out, in, ...)``: zero between groups.

    Example:
        >>> spread_groups(torch.ones(2, 1), 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if groups == 1:
        return kernel
    width = kernel.shape[1]
    full = kernel.new_zeros(kernel.shape[0], groups * width, *kernel.shape[2:])
    rows = kernel.shape[0] // groups
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        full[own, group * width : (group + 1) * width] = kernel[own]
    return full


def by_offset(kernel: Tensor) -> Tensor:
    """A kernel ``(out, in, *kernel)`` as ``(out, offsets, in)``, the order of the patches."""
    return kernel.flatten(2).transpose(1, 2) if kernel.dim() > 2 else kernel[:, None]


def merge_kernels(specs: Sequence[LayerSpec], kernels: Sequence[Tensor]) -> Tensor:
    """The plain kernel that layers in a row multiply out to: grouped as they are, or full where their groups differ.

    Args:
        specs: The layers; along each axis at most one of them is longer than 1.
        kernels: Their plain kernels.
    """
    groups = specs[0].groups
    if any(spec.groups != groups for spec in specs):
        kernels = [spread_groups(kernel, spec.groups) for spec, kernel in zip(specs, kernels, strict=True)]
        groups = 1
    merged = kernels[0]
    for kernel in kernels[1:]:
        merged = _merge_two(merged, kernel, groups)
    return merged


def gather_groups(full: Tensor, groups: int) -> Tensor:
    """The reverse of :func:`spread_groups`: what a full kernel ``(out, in, ...)`` holds inside its groups.

    Example:
        >>> gather_groups(torch.eye(2), 2)
        tensor([[1.],
                [1.]])
    """
    rows, width = full.shape[0] // groups, full.shape[1] // groups
    parts = [full[g * rows : (g + 1) * rows, g * width : (g + 1) * width] for g in range(groups)]
    return torch.cat(parts)


def _merge_two(first: Tensor, second: Tensor, groups: int) -> Tensor:
    before = first.reshape(groups, -1, first.shape[1], first.shape[2:].numel())
    after = second.reshape(groups, -1, second.shape[1], second.shape[2:].numel())
    merged = torch.einsum("gora,grib->goiab", after, before).flatten(0, 1)
    pairs = [*zip(second.shape[2:], first.shape[2:], strict=True)]
    axes = len(pairs)
    apart = merged.reshape(*merged.shape[:2], *second.shape[2:], *first.shape[2:])
    together = apart.permute(0, 1, *(place for axis in range(axes) for place in (2 + axis, 2 + axes + axis)))
    return together.reshape(*merged.shape[:2], *(one * other for one, other in pairs))
