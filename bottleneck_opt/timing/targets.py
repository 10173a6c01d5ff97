"""Make a model or layers ready to be called in a setting: in eager PyTorch, compiled, or in ONNX Runtime."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bottleneck_opt.errors import BottleneckOptError, NotAvailableError
from bottleneck_opt.exporting.capturing import capture
from bottleneck_opt.exporting.onnx_file import check_packages, start_session, to_onnx
from bottleneck_opt.inputs import Inputs, batch_size, stretch_batch
from bottleneck_opt.layers import LayerSpec, build_layer
from bottleneck_opt.sources import one_line
from bottleneck_opt.timing.in_turn import Call, Ready, limited_threads
from bottleneck_opt.timing.onnx_layers import to_onnx_chain
from bottleneck_opt.timing.setting import Timing


@dataclass(frozen=True)
class Place:
    """What the model itself decides about how it runs."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    def describe(self) -> str:
        """In words, the same for the same place."""
        layout = ", channels last" if self.channels_last else ""
        return f"{self.device.type}, {str(self.dtype).removeprefix('torch.')}{layout}"


def fit_batch(inputs: Inputs, timing: Timing) -> Inputs:
    """The example call with as many examples as the setting asks for.

    Raises:
        NotAvailableError: The example call has more, or a number that does not go into it.
    """
    if timing.batch is None or timing.batch == batch_size(inputs):
        return inputs
    size = batch_size(inputs)
    if timing.batch % size:
        raise NotAvailableError(
            f"timing: got batch={timing.batch} with {size} examples in the example input; expected a multiple of "
            "them. Pass inputs= with one example."
        )
    return stretch_batch(inputs, timing.batch)


def prepare_model(model: nn.Module, inputs: Inputs, timing: Timing) -> Ready:
    """A model in eval mode with a call of it.

    Raises:
        NotAvailableError: The target cannot run the model, or is not installed.
    """
    given = fit_batch(inputs, timing)
    if timing.target == "onnxruntime":
        run = _open_in_onnxruntime(model, given, timing)
        return lambda: lambda: given.hand_over(run)
    called = _compile(model, given, timing) if timing.target == "compile" else model

    def ready() -> Call:
        own = given.copy()
        return lambda: own.hand_over(called)

    return ready


def _open_in_onnxruntime(model: nn.Module, given: Inputs, timing: Timing) -> Callable[..., object]:
    try:
        check_packages(run=True)
        content, _ = to_onnx(capture(model, given, dynamic_batch=False), None)
        with limited_threads(timing.threads):
            return start_session(content, name="the model", advice="Time target=eager.")
    except BottleneckOptError as error:
        raise NotAvailableError(f"timing: target=onnxruntime cannot be timed: {error}") from error


def _compile(model: nn.Module, given: Inputs, timing: Timing) -> Callable[..., object]:
    torch.compiler.reset()  # it compiles a class's forward only so often, and runs it in eager mode from then on
    compiled: Callable[..., object] = torch.compile(model)
    try:
        with torch.inference_mode(), limited_threads(timing.threads):
            given.call(compiled)
    except Exception as error:  # the compiler and what it calls raise many kinds
        said = one_line(error, width=200).rstrip(" .")
        raise NotAvailableError(
            f"timing: target=compile cannot be timed: torch.compile failed: {type(error).__name__}: {said}. "
            "Install a C++ compiler, or time target=eager."
        ) from error
    return compiled


def prepare_layers(layers: Sequence[LayerSpec], shape: Sequence[int], place: Place, timing: Timing) -> Ready:
    """Layers in a row, with weights of no meaning, and an input of this shape.

    What ``torch.compile`` makes of a single layer calls the same kernels as eager PyTorch, so it is timed as that.
    """
    one = torch.randn(1, *shape[1:], dtype=torch.float32, device="cpu")
    given = one.repeat(shape[0], *(1 for _ in shape[1:]))  # random numbers for many large examples would take seconds
    if timing.target == "onnxruntime":
        with limited_threads(timing.threads):
            run = start_session(to_onnx_chain(layers, shape), name="a layer", advice="Time target=eager.")
        return lambda: lambda: run(given)
    memory = _layout(len(shape)) if place.channels_last else torch.contiguous_format
    built = nn.Sequential(*(build_layer(spec, device=place.device, dtype=place.dtype) for spec in layers))
    with torch.no_grad():
        for values in built.parameters():
            values.normal_(std=0.05)
    module = (built[0] if len(layers) == 1 else built).eval()
    _lay_out(module, memory)
    placed = given.to(place.device, place.dtype).contiguous(memory_format=memory)
    return lambda: lambda: module(placed)


def _lay_out(module: nn.Module, memory: torch.memory_format) -> None:
    for values in module.parameters():
        if _layout(values.dim()) != torch.contiguous_format:
            values.data = values.data.contiguous(memory_format=memory)


def _layout(axes: int) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(axes, torch.contiguous_format)


def name_version(target: str) -> str:
    """The program that runs a target, with its version."""
    if target == "onnxruntime" and importlib.util.find_spec("onnxruntime") is not None:
        return f"onnxruntime {importlib.import_module('onnxruntime').__version__}"
    return f"torch {torch.__version__}"
