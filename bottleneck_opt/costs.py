"""Multiply-adds of tensor operations, by fvcore's formulas on the shapes that were really used.

fvcore's own model analysis needs a jit trace and misses what that trace misses. Its formulas
(``fvcore.nn.jit_handles``) need only shapes, so they are applied here to every operation of a recorded run. Operations
that fvcore has no formula for are broken into simpler ones by torch where it can, and listed as uncounted where it
cannot.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bottleneck_opt.graph import Cost
from bottleneck_opt.kernels import to_module
from bottleneck_opt.layers import LINEAR, LayerSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # importing fvcore scripts a function, which torch deprecates
    from fvcore.nn import jit_handles

Formula = Callable[[Sequence[Any], Any], int]


@dataclass(frozen=True)
class Operation:
    """One tensor operation that ran: its ``aten`` name, its cost, and whether a formula counted it."""

    name: str
    cost: Cost
    counted: bool


class _Shape:
    """A value with a known shape, as fvcore's formulas expect to read it from a jit graph."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def isCompleteTensor(self) -> bool:  # noqa: N802  (the name that fvcore calls)
        return isinstance(self._value, Tensor)

    def type(self) -> _Shape:
        return self

    def sizes(self) -> list[int]:
        return list(self._value.shape)

    def toIValue(self) -> Any:  # noqa: N802  (the name that fvcore calls)
        return self._value


def _by_fvcore(handle: Callable[[list[Any], list[Any]], Any], first: int = 0, last: int | None = None) -> Formula:
    def count(args: Sequence[Any], output: Any) -> int:
        outputs = output if isinstance(output, tuple | list) else (output,)
        return int(handle([_Shape(value) for value in args[first:last]], [_Shape(value) for value in outputs]))

    return count


def _convolution(transposed: bool | None) -> Formula:
    def count(args: Sequence[Any], output: Any) -> int:
        x, weight = list(args[0].shape), list(args[1].shape)
        out = list(output.shape)
        if len(x) < len(weight):
            x, out = [1, *x], [1, *out]
        swapped = bool(args[6]) if transposed is None else transposed
        return int(jit_handles.conv_flop_count(x, weight, out, transposed=swapped))

    return count


def _matrix_vector(args: Sequence[Any], output: Any) -> int:
    return int(math.prod(args[0].shape))


def _attention(args: Sequence[Any], output: Any) -> int:
    """Scores and weighted sum: ``queries * keys * (width + value width)`` for every head."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


_MATRIX: Mapping[str, Formula] = {
    **{f"aten::conv{axes}d": _convolution(False) for axes in (1, 2, 3)},
    **{f"aten::conv_transpose{axes}d": _convolution(True) for axes in (1, 2, 3)},
    "aten::convolution": _convolution(None),
    "aten::_convolution": _convolution(None),
    "aten::linear": _by_fvcore(jit_handles.linear_flop_jit),
    "aten::addmm": _by_fvcore(jit_handles.addmm_flop_jit),
    "aten::_addmm_activation": _by_fvcore(jit_handles.addmm_flop_jit),
    "aten::mm": _by_fvcore(jit_handles.matmul_flop_jit),
    "aten::bmm": _by_fvcore(jit_handles.bmm_flop_jit, 0, 2),
    "aten::baddbmm": _by_fvcore(jit_handles.bmm_flop_jit, 1, 3),
    "aten::mv": _matrix_vector,
    "aten::dot": _matrix_vector,
    "aten::vdot": _matrix_vector,
    "aten::addmv": lambda args, output: _matrix_vector(args[1:], output),
    "aten::scaled_dot_product_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
}

_OTHER: Mapping[str, Formula] = {
    "aten::batch_norm": _by_fvcore(jit_handles.batchnorm_flop_jit),
    "aten::native_batch_norm": _by_fvcore(jit_handles.batchnorm_flop_jit),
    "aten::group_norm": _by_fvcore(jit_handles.norm_flop_counter(2)),
    "aten::layer_norm": _by_fvcore(jit_handles.norm_flop_counter(2)),
    "aten::native_layer_norm": _by_fvcore(jit_handles.norm_flop_counter(2)),
    "aten::instance_norm": _by_fvcore(jit_handles.norm_flop_counter(1)),
    "aten::upsample_nearest2d": _by_fvcore(jit_handles.elementwise_flop_counter(0, 1)),
    "aten::upsample_bilinear2d": _by_fvcore(jit_handles.elementwise_flop_counter(0, 4)),
    "aten::adaptive_avg_pool2d": _by_fvcore(jit_handles.elementwise_flop_counter(1, 0)),
    "aten::grid_sampler": _by_fvcore(jit_handles.elementwise_flop_counter(0, 4)),
    "aten::grid_sampler_2d": _by_fvcore(jit_handles.elementwise_flop_counter(0, 4)),
}


class OperationRecorder(TorchDispatchMode):
    """Writes down every tensor operation that runs inside it, with its cost.

    Under ``torch.inference_mode`` whole operations (``aten::batch_norm``) are seen, otherwise their parts.

    Attributes:
        operations: What ran so far, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in _MATRIX and name not in _OTHER and name.startswith("aten::"):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if not func.is_view:
            self.operations.append(price_operation(name, _positional(func, args, kwargs), output))
        return output


def price_operation(name: str, args: Sequence[Any], output: Any) -> Operation:
    """The cost of one operation.

    Args:
        name: Its ``aten`` name, such as ``aten::conv2d``.
        args: Its arguments in the order of its schema.
        output: What it returned; only shapes are read.

    Example:
        >>> import torch
        >>> x, w = torch.zeros(1, 3, 6, 6), torch.zeros(2, 3, 3, 3)
        >>> price_operation("aten::conv2d", (x, w), torch.zeros(1, 2, 4, 4)).cost.macs
        864
    """
    formula = _MATRIX.get(name) or _OTHER.get(name)
    if formula is None:
        return Operation(name, Cost(), counted=False)
    try:
        count = formula(args, output)
    except AssertionError:  # how fvcore's formulas refuse a shape
        return Operation(name, Cost(), counted=False)
    return Operation(name, Cost(macs=count) if name in _MATRIX else Cost(other=count), counted=True)


def _positional(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """All arguments in the order of the schema; those that the call left out have their defaults."""
    rest = func._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest)]


def price_layers(
    layers: Sequence[LayerSpec], input_shapes: Sequence[Sequence[int]],
    output_shapes: Sequence[Sequence[int]] | None = None,
) -> Cost:  # fmt: skip
    """The cost of layers in a row over several calls.

    Args:
        layers: First to last.
        input_shapes: Input shape of each call, ``(batch, channels, *size)`` or ``(..., features)``.
        output_shapes: Output shape of each call, for layers whose description does not tell it: those that pad their
            input themselves, and transposed ones that are told their output's size. None computes it.

    Example:
        >>> price_layers([LayerSpec("linear", "Linear", 3, 4)], [(2, 3)])
        Cost(macs=24, params=16, other=0, latency=0)
    """
    outputs: Sequence[Sequence[int] | None] = output_shapes or [None] * len(input_shapes)
    macs = sum(_layer_macs(layers, shape, output) for shape, output in zip(input_shapes, outputs, strict=True))
    return Cost(macs=macs, params=sum(layer.params for layer in layers))


def _layer_macs(layers: Sequence[LayerSpec], shape: Sequence[int], output: Sequence[int] | None) -> int:
    if layers[0].kind == LINEAR:
        products = (layer for layer in layers if not layer.is_activation)
        return sum(math.prod(shape[:-1]) * layer.in_channels * layer.out_channels for layer in products)
    axes = len(layers[0].kernel)
    batch, size = math.prod(shape[: -axes - 1]), tuple(shape[-axes:])
    carriers = [layer for layer in layers if not layer.is_pointwise]
    macs = 0
    for layer in layers:
        if layer.is_activation:
            continue
        known = output is not None and carriers == [layer]
        out = tuple(output[-axes:]) if output is not None and known else layer.output_size(size)
        macs += _convolution_macs(layer, batch, size, out)
        size = out
    return macs


def _convolution_macs(layer: LayerSpec, batch: int, size: Sequence[int], out: Sequence[int]) -> int:
    weight = to_module(layer, torch.empty(layer.weight_shape, device="meta")).shape
    return int(
        jit_handles.conv_flop_count(
            [batch, layer.in_channels, *size], list(weight), [batch, layer.out_channels, *out], layer.transposed
        )
    )


def add_costs(operations: Sequence[Operation]) -> Cost:
    """The costs of several operations added up."""
    return sum((operation.cost for operation in operations), Cost())


def list_uncounted(operations: Sequence[Operation]) -> dict[str, int]:
    """Names of the operations that no formula counted, with how often each ran."""
    return dict(sorted(Counter(operation.name for operation in operations if not operation.counted).items()))
