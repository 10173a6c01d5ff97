"""What a layer sees and makes at single output positions, as rows of a matrix."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bottleneck_opt.layers import LINEAR, LayerSpec


def count_positions(layer: LayerSpec, y: Tensor) -> int:
    """Output positions an example; a Linear's examples are whatever axis 0 holds."""
    if layer.kind == LINEAR:
        return y.numel() // max(y.shape[-1] * (y.shape[0] if y.dim() > 1 else 1), 1)
    return math.prod(y.shape[-len(layer.kernel) :])


def count_examples(layer: LayerSpec, y: Tensor) -> int:
    """How many examples a layer's output holds, as it sees them: what is before the channels counts as one axis."""
    if layer.kind == LINEAR:
        return y.shape[0] if y.dim() > 1 else 1
    return math.prod(y.shape[: -len(layer.kernel) - 1])


def take_pixels(layer: LayerSpec, y: Tensor, positions: Tensor) -> Tensor:
    """Some pixels ``(batch * positions, channels)`` of ``y (batch, channels, *size)`` or ``(batch, ..., features)``.

    Args:
        layer: A convolution or a Linear.
        y: Its output.
        positions: Flat output positions ``(positions,)``, in order, the same in every example, or ``(batch,
            positions)``, those of each example.
    """
    index = positions.to(y.device)
    if layer.kind == LINEAR:
        rows = y.reshape(y.shape[0] if y.dim() > 1 else 1, -1, y.shape[-1])
        return _select(rows, 1, index).reshape(-1, y.shape[-1])
    axes = len(layer.kernel)
    channels = y.shape[-axes - 1]
    flat = y.reshape(-1, channels, math.prod(y.shape[-axes:]))
    if index.dim() == 2:
        return _select(flat.transpose(1, 2), 1, index).reshape(-1, channels)
    return _select(flat, 2, index).transpose(1, 2).reshape(-1, channels)


def _select(values: Tensor, axis: int, index: Tensor) -> Tensor:
    """The entries of these numbers, which are in order; the values themselves where that is all of them."""
    if index.dim() == 2:
        return values[torch.arange(len(index), device=index.device)[:, None], index]
    return values if len(index) == values.shape[axis] else values.index_select(axis, index)


def take_patches(layer: LayerSpec, x: Tensor, positions: Tensor) -> Tensor:
    """Some input patches ``(batch * positions, offsets * channels)``, offset-major, with the layer's own padding.

    A transposed layer's patches are those of the plain convolution it computes: of its input with zeros in between.

    Args:
        layer: A convolution or a Linear, whose patch is its input row.
        x: Input ``(batch, channels, *size)`` or ``(batch, ..., features)``.
        positions: Flat output positions, as for :func:`take_pixels`.
    """
    if layer.kind == LINEAR:
        return take_pixels(layer, x, positions)
    axes = len(layer.kernel)
    batched = x.reshape(-1, *x.shape[-axes - 1 :])
    padded = _spread(layer, batched) if layer.transposed else pad_input(layer, batched)
    windows = _windows(layer, padded)  # batch, channels, *out size, *kernel
    index = torch.unravel_index(positions.to(x.device), windows.shape[2 : 2 + axes])
    if positions.dim() == 2:
        where = (torch.arange(len(positions), device=x.device)[:, None], *index)
        chosen = windows.movedim(1, -1)[where]  # batch, positions, *kernel, channels
        return chosen.reshape(-1, layer.offsets * layer.in_channels)
    everything = (slice(None), slice(None))
    chosen = windows[everything + index].flatten(3)  # batch, channels, positions, offsets
    return chosen.permute(0, 2, 3, 1).reshape(-1, layer.offsets * layer.in_channels)


def fit_output_size(layer: LayerSpec, x: Tensor, y: Tensor) -> LayerSpec:
    """A transposed layer with the output padding that made ``y`` from ``x``: the call may have asked for a size."""
    axes = len(layer.kernel)
    least = layer.named(layer.name, output_padding=(0,) * axes).output_size(x.shape[-axes:])
    return layer.named(layer.name, output_padding=tuple(n - m for n, m in zip(y.shape[-axes:], least, strict=True)))


def pad_input(layer: LayerSpec, x: Tensor) -> Tensor:
    """The input ``(batch, channels, *size)`` of a plain convolution with the layer's own padding applied."""
    amounts = [amount for axis in reversed(layer.padding_amounts()) for amount in axis]
    if not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def _spread(layer: LayerSpec, x: Tensor) -> Tensor:
    """The input ``(batch, channels, *size)`` of a transposed convolution as its plain convolution takes it."""
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *size)
    stuffed = (slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))
    spread[stuffed] = x
    amounts: list[int] = []
    for axis in reversed(range(len(layer.kernel))):
        before, after = layer.padding_amounts()[axis]
        span = layer.dilation[axis] * (layer.kernel[axis] - 1)
        amounts += [span - before, span - after + layer.output_padding[axis]]
    return F.pad(spread, amounts)


def _windows(layer: LayerSpec, padded: Tensor) -> Tensor:
    """A view of all kernel windows."""
    for axis in range(len(layer.kernel)):
        span = layer.dilation[axis] * (layer.kernel[axis] - 1) + 1
        stride = 1 if layer.transposed else layer.stride[axis]
        padded = padded.unfold(2 + axis, span, stride)[..., :: layer.dilation[axis]]
    return padded
