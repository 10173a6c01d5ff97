"""Descriptions of stock layers, and the module that stands in for a convolution that was split into several."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTION = "Conv2d"
LINEAR = "Linear"
_RESERVED = frozenset(dir(nn.Sequential()))
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class LayerSpec:
    """One stock layer without its weights, enough to build, price and print it.

    Attributes:
        name: The layer's name inside the module that holds it (``reduce``, ``conv``, ``expand``).
        kind: ``Conv2d`` or ``Linear`` (a Linear is the 1x1 it computes: empty kernel, features as channels).
        padding: One number an axis, or ``same`` / ``valid`` as torch spells them.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"

    @property
    def offsets(self) -> int:
        """Number of kernel offsets, 9 for a 3x3 kernel and 1 for a Linear."""
        return math.prod(self.kernel)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight: ``(out, in / groups, *kernel)``."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def params(self) -> int:
        """Number of parameters, bias included."""
        return math.prod(self.weight_shape) + (self.out_channels if self.bias else 0)

    @property
    def label(self) -> str:
        """Short human name: ``conv 3x3/2``, ``linear``."""
        if self.kind == LINEAR:
            return "linear"
        stride = "" if set(self.stride) == {1} else "/" + "x".join(map(str, dict.fromkeys(self.stride)))
        return "conv " + "x".join(map(str, self.kernel)) + stride

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size (``size`` unchanged for a Linear)."""
        if self.kind == LINEAR:
            return tuple(size)
        return tuple(
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, (before, after), k, s, d in zip(
                size, self.padding_amounts(), self.kernel, self.stride, self.dilation, strict=True
            )
        )

    def padding_amounts(self) -> tuple[tuple[int, int], ...]:
        """Padding before and after each spatial axis, as torch applies it ('same' puts the odd one after)."""
        if self.padding == "valid":
            return tuple((0, 0) for _ in self.kernel)
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((p, p) for p in self.padding)

    def named(self, name: str, **changes: Any) -> LayerSpec:
        """The same layer under another name, with other fields changed too.

        Example:
            >>> LayerSpec("conv", "Linear", 8, 4).named("expand", out_channels=2).weight_shape
            (2, 8)
        """
        return replace(self, name=name, **changes)

    def pointwise(self, name: str, in_channels: int, out_channels: int, *, bias: bool) -> LayerSpec:
        """A 1x1 layer of the same kind with stride 1 and no padding."""
        ones = tuple(1 for _ in self.kernel)
        zeros = tuple(0 for _ in self.kernel)
        return LayerSpec(name, self.kind, in_channels, out_channels, ones, ones, zeros, ones, bias=bias)


def find_fault(spec: LayerSpec) -> str:
    """Why a layer of this description cannot be built, in words; empty when it can."""
    axes = {CONVOLUTION: 2, LINEAR: 0}.get(spec.kind)
    if axes is None:
        return f"kind {spec.kind!r} is neither {CONVOLUTION} nor {LINEAR}"
    padding = tuple(0 for _ in spec.kernel) if spec.padding in ("same", "valid") else spec.padding
    lowest = min(spec.in_channels, spec.out_channels, spec.groups, *spec.kernel, *spec.stride, *spec.dilation)
    if lowest < 1:
        return "a width, kernel, stride, dilation or group number is below 1"
    if {len(spec.kernel), len(spec.stride), len(spec.dilation), len(padding)} != {axes}:
        return f"kernel, stride, dilation and padding need {axes} numbers each"
    if isinstance(padding, str) or min(padding, default=0) < 0 or spec.padding_mode not in _PADDING_MODES:
        return f"padding {spec.padding!r} of mode {spec.padding_mode!r} is not known"
    divided = spec.in_channels % spec.groups == spec.out_channels % spec.groups == 0
    return "" if divided else f"its channels are no multiples of {spec.groups} groups"


def are_child_names(names: Sequence[str]) -> bool:
    """Whether layers may have these names inside a torch.nn.Sequential: distinct, and not names that it uses itself.

    Example:
        >>> are_child_names(["reduce", "conv"]), are_child_names(["forward"]), are_child_names(["a", "a"])
        (True, False, False)
    """
    free = all(name.isidentifier() and name not in _RESERVED for name in names)
    return free and len(set(names)) == len(names)


def describe_layer(module: nn.Module, name: str = "conv") -> LayerSpec | None:
    """The description of a Conv2d or Linear module, or None for any other kind of module."""
    if isinstance(module, nn.Linear):
        return LayerSpec(name, LINEAR, module.in_features, module.out_features, bias=module.bias is not None)
    if not isinstance(module, nn.Conv2d):
        return None
    padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
    return LayerSpec(
        name, CONVOLUTION, module.in_channels, module.out_channels, tuple(module.kernel_size), tuple(module.stride),
        padding, tuple(module.dilation), module.groups, module.bias is not None, module.padding_mode,
    )  # fmt: skip


def build_layer(spec: LayerSpec, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A torch layer for a description, with memory for its weights but no values in it."""
    with torch.device("meta"):
        layer = _build_layer(spec)
    return layer.to(dtype).to_empty(device=device)


def _build_layer(spec: LayerSpec) -> nn.Module:
    if spec.kind == LINEAR:
        return nn.Linear(spec.in_channels, spec.out_channels, bias=spec.bias)
    return nn.Conv2d(
        spec.in_channels, spec.out_channels, _pair(spec.kernel), stride=_pair(spec.stride),
        padding=spec.padding if isinstance(spec.padding, str) else _pair(spec.padding), dilation=_pair(spec.dilation),
        groups=spec.groups, bias=spec.bias, padding_mode=spec.padding_mode,  # type: ignore[arg-type]  # read from a module or checked on reading
    )  # fmt: skip


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width


def pad_input(spec: LayerSpec, x: Tensor) -> Tensor:
    """The input ``(batch, channels, height, width)`` with the layer's own padding applied."""
    amounts = [amount for axis in reversed(spec.padding_amounts()) for amount in axis]
    if not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if spec.padding_mode == "zeros" else spec.padding_mode)


class Factored(nn.Sequential):
    """Stock layers in a row that stand where one convolution or Linear stood.

    Code that asked the old layer for its stride or its weight finds them here too: everything the old layer would
    have answered about its shape is answered, and ``weight`` is the kernel that the factors multiply out to.

    Example:
        >>> spec = LayerSpec("conv", "Linear", 4, 6)
        >>> parts = [spec.pointwise("conv", 4, 2, bias=False), spec.pointwise("expand", 2, 6, bias=True)]
        >>> layer = Factored(spec, OrderedDict((p.name, nn.Linear(p.in_channels, p.out_channels)) for p in parts))
        >>> tuple(layer.weight.shape), layer.out_features
        ((6, 4), 6)
    """

    def __init__(self, replaced: LayerSpec, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        self._replaced = replaced
        for name, value in _shape_attributes(replaced).items():
            setattr(self, name, value)

    @property
    def weight(self) -> Tensor:
        """The merged kernel ``(out, in, *kernel)``: computed anew at each reading, so it follows the factors."""
        kernels: list[Tensor] = [layer.get_parameter("weight") for layer in self.children()]
        return functools.reduce(_merge_kernels, kernels)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last factor; the others have none."""
        return self[-1].bias  # type: ignore[return-value]  # torch types every attribute as Tensor | Module

    def extra_repr(self) -> str:
        """What it stands for, shown when the model is printed."""
        return f"in place of {self._replaced.label}, {self._replaced.in_channels} -> {self._replaced.out_channels}"


def _merge_kernels(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of two layers in a row of which at least one is 1x1 (or a Linear)."""
    if math.prod(second.shape[2:]) == 1:
        return torch.einsum("or,ri...->oi...", second.flatten(1), first)
    return torch.einsum("or...,ri->oi...", second, first.flatten(1))


def _shape_attributes(spec: LayerSpec) -> dict[str, Any]:
    if spec.kind == LINEAR:
        return {"in_features": spec.in_channels, "out_features": spec.out_channels}
    return {
        "in_channels": spec.in_channels, "out_channels": spec.out_channels, "kernel_size": spec.kernel,
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "padding_mode": spec.padding_mode, "transposed": False, "output_padding": tuple(0 for _ in spec.kernel),
    }  # fmt: skip
