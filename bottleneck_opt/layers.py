"""Descriptions of stock layers, enough to build, price and print them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

LINEAR = "Linear"
_AXES = {
    LINEAR: 0, "Conv1d": 1, "Conv2d": 2, "Conv3d": 3,
    "ConvTranspose1d": 1, "ConvTranspose2d": 2, "ConvTranspose3d": 3,
}  # fmt: skip
PRELU = "PReLU"
_STOCK = {getattr(nn, kind) for kind in _AXES}
_RESERVED = frozenset(dir(nn.Sequential()))
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class LayerSpec:
    """One layer without its weights.

    Attributes:
        name: The layer's name inside the module that holds it (``reduce``, ``conv``, ``expand``).
        kind: ``Conv1d``, ``Conv2d``, ``Conv3d``, ``ConvTranspose1d``, ... or ``Linear`` (the 1x1 it computes: empty
            kernel, features as channels), or ``PReLU``, an activation between two of these (:meth:`activation`).
        padding: One number an axis, or ``same`` / ``valid`` as torch spells them.
        groups: Of a PReLU how many slopes it has: 1, or one for each channel.
        output_padding: One number an axis for transposed convolutions, empty for all others.
        subclass: Qualified name of the class where it is not torch's own: its forward may pad or change its input, so
            sizes cannot be told from the description.
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
    output_padding: tuple[int, ...] = ()
    subclass: str = ""

    @property
    def offsets(self) -> int:
        """Number of kernel offsets, 9 for a 3x3 kernel and 1 for a Linear."""
        return math.prod(self.kernel)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")

    @property
    def is_activation(self) -> bool:
        """Whether it is no matrix product but an activation, whose weight is its slopes."""
        return self.kind == PRELU

    @property
    def is_pointwise(self) -> bool:
        """Whether it works on each position alone: a Linear, a 1x1 that moves and drops nothing, an activation."""
        moves = {*self.stride, *(1 + amount for axis in self.padding_amounts() for amount in axis)}
        return self.offsets == 1 and moves <= {1} and not any(self.output_padding) and not self.subclass

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel has kernels of its own."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as a plain convolution: ``(out, in / groups, *kernel)``, also for transposed ones.

        Of an activation the shape of its slopes ``(groups,)``.
        """
        if self.is_activation:
            return (self.groups,)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def params(self) -> int:
        """Number of parameters, bias included."""
        return math.prod(self.weight_shape) + (self.out_channels if self.bias else 0)

    @property
    def label(self) -> str:
        """Short human name: ``conv 3x3/2``, ``transposed conv 4x4/2``, ``linear``."""
        if self.kind == LINEAR or self.is_activation:
            return self.kind.lower() if self.kind == LINEAR else self.kind
        stride = "" if set(self.stride) == {1} else "/" + "x".join(map(str, dict.fromkeys(self.stride)))
        kernel = "x".join(map(str, self.kernel))
        return f"{'transposed ' if self.transposed else ''}conv {kernel}{stride}"

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output size for a spatial input size (``size`` unchanged for a Linear and an activation)."""
        if self.kind == LINEAR or self.is_activation:
            return tuple(size)
        spans = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        padded = [before + after for before, after in self.padding_amounts()]
        if self.transposed:
            grown = zip(size, self.stride, padded, spans, self.output_padding, strict=True)
            return tuple((n - 1) * s - p + span + extra + 1 for n, s, p, span, extra in grown)
        return tuple(
            (n + p - span - 1) // s + 1 for n, p, span, s in zip(size, padded, spans, self.stride, strict=True)
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
        """A 1x1 layer for the same number of axes and groups, with stride 1 and no padding."""
        ones = tuple(1 for _ in self.kernel)
        zeros = tuple(0 for _ in self.kernel)
        kind = self.kind.replace("Transpose", "")
        return LayerSpec(name, kind, in_channels, out_channels, ones, ones, zeros, ones, self.groups, bias)

    def activation(self, name: str, *, slopes: int = 1) -> LayerSpec:
        """A PReLU for what this layer makes; with slopes of 1 it is the identity, until it is trained.

        Args:
            name: Its name.
            slopes: 1, or one for each channel: then the channels must be axis 1 of what the layer makes, as torch takes
                them to be (:attr:`bottleneck_opt.sites.Site.channels_second`).

        Example:
            >>> LayerSpec("conv", "Linear", 8, 4).activation("act", slopes=4).weight_shape
            (4,)
        """
        return LayerSpec(name, PRELU, self.out_channels, self.out_channels, groups=slopes, bias=False)


def find_fault(spec: LayerSpec) -> str:
    """Why a layer of this description cannot be built, in words; empty when it can."""
    if spec.is_activation:
        return _find_activation_fault(spec)
    axes = _AXES.get(spec.kind)
    if axes is None:
        return f"kind {spec.kind!r} is none of {', '.join(_AXES)}, {PRELU}"
    padding = tuple(0 for _ in spec.kernel) if spec.padding in ("same", "valid") else spec.padding
    lowest = min(spec.in_channels, spec.out_channels, spec.groups, *spec.kernel, *spec.stride, *spec.dilation)
    if lowest < 1:
        return "a width, kernel, stride, dilation or group number is below 1"
    if {len(spec.kernel), len(spec.stride), len(spec.dilation), len(padding)} != {axes}:
        return f"kernel, stride, dilation and padding need {axes} numbers each"
    if isinstance(padding, str) or min(padding, default=0) < 0 or spec.padding_mode not in _PADDING_MODES:
        return f"padding {spec.padding!r} of mode {spec.padding_mode!r} is not known"
    divided = spec.in_channels % spec.groups == spec.out_channels % spec.groups == 0
    return _find_transposed_fault(spec, axes) if divided else f"its channels are no multiples of {spec.groups} groups"


def _find_activation_fault(spec: LayerSpec) -> str:
    plain = LayerSpec(spec.name, PRELU, spec.in_channels, spec.in_channels, groups=spec.groups, bias=False)
    if spec != plain or spec.in_channels < 1:
        return f"a {PRELU} has one width, and neither kernel nor bias"
    return "" if spec.groups in (1, spec.in_channels) else f"a {PRELU} has one slope, or one for each channel"


def find_order_fault(layers: Sequence[LayerSpec]) -> str:
    """Why layers cannot stand in a row in a layer's place, in words; empty when they can.

    Activations stand between others: the last layer is fitted to outputs, and carries the bias.
    """
    ends = [layer for layer in (*layers[:1], *layers[-1:]) if layer.is_activation]
    return (
        f"'{ends[0].name}' is an activation before or after all others, it can only stand between two" if ends else ""
    )


def _find_transposed_fault(spec: LayerSpec, axes: int) -> str:
    if len(spec.output_padding) != (axes if spec.transposed else 0) or min(spec.output_padding, default=0) < 0:
        return f"output padding {spec.output_padding} does not fit a {spec.kind}"
    if spec.transposed and (spec.padding_mode != "zeros" or isinstance(spec.padding, str)):
        return "a transposed convolution pads with zeros, by numbers"
    return ""


def are_child_names(names: Sequence[str]) -> bool:
    """Whether layers may have these names inside a torch.nn.Sequential: distinct, and not names that it uses itself.

    Example:
        >>> are_child_names(["reduce", "conv"]), are_child_names(["forward"]), are_child_names(["a", "a"])
        (True, False, False)
    """
    free = all(name.isidentifier() and name not in _RESERVED for name in names)
    return free and len(set(names)) == len(names)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or a Linear of any kind, torch's own class or one made from it."""
    return isinstance(module, _ConvNd | nn.Linear)


def is_stock(module: nn.Module) -> bool:
    """Whether a module is exactly one of torch's own convolutions or Linears."""
    return type(module) in _STOCK


def class_name(module: nn.Module) -> str:
    """Qualified name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def describe_layer(module: nn.Module, name: str = "conv") -> LayerSpec | None:
    """The description of a convolution or Linear module, or None for any other kind of module.

    Example:
        >>> describe_layer(nn.ConvTranspose1d(8, 4, 4, stride=2)).label
        'transposed conv 4/2'
    """
    subclass = "" if is_stock(module) else class_name(module)
    if isinstance(module, nn.Linear):
        return LayerSpec(
            name, LINEAR, module.in_features, module.out_features, bias=module.bias is not None, subclass=subclass
        )
    if not isinstance(module, _ConvNd):
        return None
    transposed = isinstance(module, _ConvTransposeNd)
    padding = module.padding if isinstance(module.padding, str) else tuple(module.padding)
    return LayerSpec(
        name, f"Conv{'Transpose' if transposed else ''}{len(module.kernel_size)}d", module.in_channels,
        module.out_channels, tuple(module.kernel_size), tuple(module.stride), padding, tuple(module.dilation),
        module.groups, module.bias is not None, module.padding_mode,
        tuple(module.output_padding) if transposed else (), subclass,
    )  # fmt: skip


def build_layer(spec: LayerSpec, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A torch layer for a description, with memory for its weights but no values in it."""
    with torch.device("meta"):
        layer = _build_layer(spec)
    return layer.to(dtype).to_empty(device=device)


def _build_layer(spec: LayerSpec) -> nn.Module:
    if spec.kind == LINEAR:
        return nn.Linear(spec.in_channels, spec.out_channels, bias=spec.bias)
    if spec.is_activation:
        return nn.PReLU(spec.groups)
    options = {"output_padding": spec.output_padding} if spec.transposed else {}
    built: nn.Module = getattr(nn, spec.kind)(
        spec.in_channels, spec.out_channels, spec.kernel, stride=spec.stride, padding=spec.padding,
        dilation=spec.dilation, groups=spec.groups, bias=spec.bias, padding_mode=spec.padding_mode, **options,
    )  # fmt: skip
    return built


def shape_attributes(spec: LayerSpec) -> dict[str, Any]:
    """What a layer of this description answers about its shape, by attribute name."""
    if spec.kind == LINEAR:
        return {"in_features": spec.in_channels, "out_features": spec.out_channels}
    return {
        "in_channels": spec.in_channels, "out_channels": spec.out_channels, "kernel_size": spec.kernel,
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "padding_mode": spec.padding_mode, "transposed": spec.transposed,
        "output_padding": spec.output_padding or tuple(0 for _ in spec.kernel),
    }  # fmt: skip
