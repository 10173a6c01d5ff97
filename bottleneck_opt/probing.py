"""Find out what an unusual layer really computes, by calling it.

Many layers are torch's own class in name only: they standardise, normalise or mask their weight first, pad their input
by a rule of their own, or take further arguments. What such a layer's forward says is not read; it is called on noise,
what reaches the convolution inside is looked at, and every stand-in is compared with the layer itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bottleneck_opt.inputs import map_tensors
from bottleneck_opt.kernels import to_module, to_plain
from bottleneck_opt.layers import LINEAR, LayerSpec, build_layer, describe_layer, find_fault, is_stock

_TOLERANCE = 1e-4
_SCALES = (1.0, 100.0)  # limits on the input or output show on large values only
_PLAIN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_OPERATIONS: Mapping[Callable[..., Any], tuple[str, tuple[str, ...]]] = {
    F.linear: (LINEAR, _PLAIN[:3]),
    **{getattr(F, f"conv{axes}d"): (f"Conv{axes}d", _PLAIN) for axes in (1, 2, 3)},
    **{getattr(F, f"conv_transpose{axes}d"): (f"ConvTranspose{axes}d", _TRANSPOSED) for axes in (1, 2, 3)},
}


@dataclass(frozen=True)
class Arguments:
    """What a layer was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def input(self) -> Tensor:
        """The tensor to convolve: the first argument."""
        found: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return found

    def with_input(self, tensor: Tensor) -> Arguments:
        """The same call with another input."""
        if self.args:
            return Arguments((tensor, *self.args[1:]), self.kwargs)
        return Arguments((), {**self.kwargs, "input": tensor})


@dataclass(frozen=True)
class LayerOperation:
    """The convolution or matrix product that ran inside a layer.

    Attributes:
        layer: Its description, with the hyper-parameters that reached it.
        input, weight, bias, output: Its tensors; the weight as torch's function takes it.
    """

    layer: LayerSpec
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor


@dataclass(frozen=True)
class Probe:
    """What a layer turned out to compute.

    Attributes:
        layer: What passes are told: a stock layer, or the layer's own class where its forward has to be kept.
        kernel: Its weight as a plain kernel.
        bias: ``(out,)`` or None.
        mixable_input, mixable_output: Whether a 1x1 before it, or after it, can be made up for in its weight.
    """

    layer: LayerSpec
    kernel: Tensor
    bias: Tensor | None
    mixable_input: bool = True
    mixable_output: bool = True


def needs_probe(module: nn.Module) -> bool:
    """Whether a layer may compute something else than its class, shape and parameters say."""
    stored = module._parameters.get("weight") is not None
    return not (is_stock(module) and stored and "forward" not in vars(module))


@contextmanager
def recorded_arguments(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Arguments]]]:
    """Inside, every call of these modules is written down with its arguments, by path."""
    calls: dict[str, list[Arguments]] = {path: [] for path in paths}

    def note(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: calls[path].append(Arguments(args, kwargs))

    handles = [model.get_submodule(p).register_forward_pre_hook(note(p), with_kwargs=True) for p in paths]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def probe_layer(module: nn.Module, calls: Sequence[Arguments]) -> Probe | str:
    """What a layer computes, or why it cannot be told.

    Args:
        module: The layer, in eval mode; it is called, but not changed.
        calls: What it was called with in a run of its model.
    """
    if any(not call.args and "input" not in call.kwargs for call in calls):
        return "its input is handed over under a name of its own"
    if any(not isinstance(call.input, Tensor) or not call.input.is_floating_point() for call in calls):
        return "its input is not a tensor of floating numbers"
    module = copy.deepcopy(module, {id(each): each for each in module.parameters()})  # some layers count their calls
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        distinct = _distinct(calls)
        trials = [call.with_input(scale * torch.randn_like(call.input)) for scale in _SCALES for call in distinct]
        try:
            return _probe_stock(module, trials) or _probe_kept(module, trials)
        except Exception as error:  # the layer's own forward; whatever it raises is its reason
            return f"{type(module).__name__} cannot be called by itself: {type(error).__name__}: {error}"


def _distinct(calls: Sequence[Arguments], limit: int = 3) -> list[Arguments]:
    """One call for each input shape."""
    by_shape = {tuple(call.input.shape): call for call in reversed(calls)}
    return list(by_shape.values())[-limit:]


def _probe_stock(module: nn.Module, trials: Sequence[Arguments]) -> Probe | None:
    """The stock layer that gives the same outputs, with the weight that reached the operation."""
    operations = [capture_operation(module, trial) for trial in trials]
    first = operations[0]
    if first is None or any(each is None or each.layer != first.layer for each in operations):
        return None
    if any(len(trial.args) > 1 or trial.kwargs.keys() - {"input"} for trial in trials):
        return None
    for layer in _stock_layers(module, first.layer):
        stand_in = build_layer(layer, device=first.weight.device, dtype=first.weight.dtype)
        _set_weights(stand_in, first.weight, first.bias)
        if _same(module, trials, partial(_run_stand_in, stand_in)):
            return Probe(layer, to_plain(layer, first.weight), first.bias)
    return None


def _run_stand_in(stand_in: nn.Module, trial: Arguments) -> Any:
    return stand_in(trial.input)


def _stock_layers(module: nn.Module, reached: LayerSpec) -> list[LayerSpec]:
    """What the layer may be: what reached the operation, or that with the layer's own padding before it."""
    own = describe_layer(module)
    if own is None or own.padding_mode == "zeros":
        return [reached]
    padded = reached.named("conv", padding=own.padding, padding_mode=own.padding_mode)
    return [reached, padded] if find_fault(padded) == "" else [reached]


def _probe_kept(module: nn.Module, trials: Sequence[Arguments]) -> Probe | str:
    """The layer's own class with other weights, where its forward does with them what a convolution does."""
    layer = describe_layer(module)
    operation = capture_operation(module, trials[0])
    weight = module._parameters.get("weight")
    name = type(module).__name__
    if layer is None or operation is None:
        return f"{name} does not run exactly one convolution or matrix product"
    if weight is None or operation.weight is not weight:
        return f"{name} computes its weight and also changes its input or output in its own forward"
    kernel, bias = to_plain(layer, weight.detach()), module._parameters.get("bias")
    before, after = _mixes_input(module, layer, trials), _mixes_output(module, layer, trials)
    if not before and not after:
        return f"{name}: its forward does more with its input and output than its weight says"
    return Probe(layer, kernel, None if bias is None else bias.detach(), before, after)


def _mixes_input(module: nn.Module, layer: LayerSpec, trials: Sequence[Arguments]) -> bool:
    """Whether turning the input's channels can be made up for in the weight."""
    turn = _rotation(layer, layer.in_channels, module)
    kernel = to_plain(layer, module.get_parameter("weight").detach())
    turned = torch.einsum("gij,goj...->goi...", turn, _by_group(kernel, layer.groups)).flatten(0, 1)
    changed = rebuild_kept(module, layer, turned, module._parameters.get("bias"))

    def run(trial: Arguments) -> Any:
        return _call(changed, trial.with_input(_turn_channels(layer, trial.input, turn)))

    return _same(module, trials, run)


def _mixes_output(module: nn.Module, layer: LayerSpec, trials: Sequence[Arguments]) -> bool:
    """Whether turning the weight's output channels turns the output, and the bias can be added afterwards."""
    turn = _rotation(layer, layer.out_channels, module)
    kernel = to_plain(layer, module.get_parameter("weight").detach())
    turned = torch.einsum("gop,gpi...->goi...", turn, _by_group(kernel, layer.groups)).flatten(0, 1)
    changed = rebuild_kept(module, layer.named(layer.name, bias=False), turned, None)
    bias = module._parameters.get("bias")

    def run(trial: Arguments) -> Tensor:
        back = _turn_channels(layer, _call(changed, trial), turn.transpose(1, 2))
        shape = (-1,) if layer.kind == LINEAR else (-1, *(1 for _ in layer.kernel))
        return back if bias is None else back + bias.view(shape)

    return _same(module, trials, run)


def _same(module: nn.Module, trials: Sequence[Arguments], run: Callable[[Arguments], Any]) -> bool:
    try:
        return all(_agree(run(trial), _call(module, trial)) for trial in trials)
    except Exception:  # a forward that cannot take other weights is one that nothing may be mixed into
        return False


def _rotation(layer: LayerSpec, channels: int, module: nn.Module) -> Tensor:
    """A random orthogonal matrix for each group ``(groups, channels / groups, channels / groups)``."""
    weight = module.get_parameter("weight")
    width = channels // layer.groups
    turns: Tensor = torch.linalg.qr(torch.randn(layer.groups, width, width, dtype=torch.float64, device="cpu")).Q
    return turns.to(weight)


def _by_group(kernel: Tensor, groups: int) -> Tensor:
    return kernel.reshape(groups, -1, *kernel.shape[1:])


def _turn_channels(layer: LayerSpec, x: Tensor, turn: Tensor) -> Tensor:
    """Multiply the channels of ``x (..., channels, *size)`` by a matrix, group by group."""
    axis = -1 if layer.kind == LINEAR else -len(layer.kernel) - 1
    last = x.movedim(axis, -1)
    grouped = last.reshape(*last.shape[:-1], layer.groups, -1)
    return torch.einsum("gij,...gj->...gi", turn, grouped).reshape(last.shape).movedim(-1, axis)


def _agree(got: Any, expected: Any) -> bool:
    if not isinstance(got, Tensor) or not isinstance(expected, Tensor) or got.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp_min(1e-30)
    return bool((got - expected).abs().max() <= _TOLERANCE * scale) if got.numel() else True


def _call(module: nn.Module, trial: Arguments) -> Any:
    """The layer's own forward, without the hooks around it, on copies of the tensors."""
    return module.forward(*map_tensors(trial.args, torch.clone), **map_tensors(dict(trial.kwargs), torch.clone))


def rebuild_kept(module: nn.Module, layer: LayerSpec, kernel: Tensor, bias: Tensor | None) -> nn.Module:
    """A copy of a layer, of its own class, with other channel numbers and weights and without hooks.

    Args:
        module: The layer; it is not changed.
        layer: Its description with the new channel numbers.
        kernel: The new weight as a plain kernel.
        bias: ``(out,)`` or None.
    """
    memo = {id(each): nn.Parameter(each.detach(), each.requires_grad) for each in module.parameters()}
    made = copy.deepcopy(module, memo)
    for hooks in (made._forward_hooks, made._forward_pre_hooks, made._backward_hooks, made._backward_pre_hooks):
        hooks.clear()
    names = ("in_features", "out_features") if layer.kind == LINEAR else ("in_channels", "out_channels")
    for name, channels in zip(names, (layer.in_channels, layer.out_channels), strict=True):
        setattr(made, name, channels)
    _set_weights(made, to_module(layer, kernel), bias)
    return made


def _set_weights(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    kept = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    module.register_parameter("bias", kept)


def capture_operation(module: nn.Module, call: Arguments) -> LayerOperation | None:
    """The one convolution or matrix product that runs inside a layer's forward; None when it runs none or several."""
    with _Capture() as capture:
        _call(module, call)
    return capture.operations[0] if len(capture.operations) == 1 else None


@dataclass
class _Capture(TorchFunctionMode):
    operations: list[LayerOperation] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        known = name_arguments(func, args, kwargs or {})
        if known is not None:
            kind, given = known
            layer = describe_call(kind, given)
            self.operations.append(LayerOperation(layer, given["input"], given["weight"], given.get("bias"), output))
        return output


def name_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """For a convolution or linear function, the kind of layer it is and its arguments by name; None for others."""
    known = _OPERATIONS.get(func)
    return None if known is None else (known[0], {**dict(zip(known[1], args, strict=False)), **kwargs})


def describe_call(kind: str, given: Mapping[str, Any]) -> LayerSpec:
    """The layer that a function call computes, with the hyper-parameters it was given."""
    weight, bias = given["weight"], given.get("bias")
    layer = LayerSpec("conv", kind, 0, 0, bias=bias is not None)
    if kind == LINEAR:
        return layer.named("conv", in_channels=weight.shape[1], out_channels=weight.shape[0])
    kernel, groups = tuple(weight.shape[2:]), given.get("groups", 1)
    padding = given.get("padding", 0)
    narrow, wide = weight.shape[1] * groups, weight.shape[0]
    inner, out = (wide, narrow) if layer.transposed else (narrow, wide)
    return layer.named(
        "conv",
        in_channels=inner,
        out_channels=out,
        kernel=kernel,
        stride=_each_axis(given.get("stride", 1), kernel),
        padding=padding if isinstance(padding, str) else _each_axis(padding, kernel),
        dilation=_each_axis(given.get("dilation", 1), kernel),
        groups=groups,
        output_padding=_each_axis(given.get("output_padding", 0), kernel) if layer.transposed else (),
    )


def _each_axis(value: int | Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """A hyper-parameter as one number an axis."""
    if isinstance(value, int):
        return tuple(value for _ in kernel)
    numbers = tuple(int(each) for each in value)
    return numbers * len(kernel) if len(numbers) == 1 else numbers
