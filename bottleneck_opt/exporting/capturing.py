"""Capture a model as a ``torch.export`` program, for any number of examples where the model allows it."""

from __future__ import annotations

import inspect
import io
import linecache
import logging
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bottleneck_opt.errors import ExportError
from bottleneck_opt.inputs import Inputs, batch_size, stretch_batch, vary_inputs
from bottleneck_opt.sources import one_line
from bottleneck_opt.tracing import compare_runs

BATCH = "batch"
CAPTURED_WITH, TRIED_WITH = 2, 3  # torch.export takes a batch of 1 for a constant
_NOISE = (  # what torch says about its own code
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"The tensor attributes? self\..*\._flat_weights",  # torch.nn's recurrent layers rewrite a list of their own
    r"No complete tensor found in the group!",  # of weights whose channels lie last; they are complete
    r"# The axis name: batch will not be used, since it shares the same shape constraints",  # with itself: it is used
)
_BY_VALUE = "what runs depends on the values of a tensor"
_ADVICE = 'For more information, run with TORCH_LOGS="+dynamic". '
_TORCH, _PYTHON = Path(torch.__file__).parent, Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class Captured:
    """A program and what it takes.

    Attributes:
        program: The program; it holds no example.
        call: The call it was captured with.
        shapes: For each argument which axes are free, as ``torch.onnx.export`` takes it; None where none is.
        tries: Other calls that it takes.
        why_fixed: Why it takes only as many examples as ``call`` has; empty where it takes any number, and where that
            was not wanted.
    """

    program: ExportedProgram
    call: Inputs
    shapes: Any
    tries: tuple[Inputs, ...]
    why_fixed: str = ""


def capture(model: nn.Module, call: Inputs, *, dynamic_batch: bool) -> Captured:
    """The model's run as a program.

    Args:
        model: A copy in eval mode, on the CPU.
        call: One example call, as the model takes it.
        dynamic_batch: Whether to try for any number of examples.

    Raises:
        ExportError: torch cannot capture it; the message names the line of the model's code.
    """
    if not dynamic_batch:
        return _capture_fixed(model, call, "")
    one = _take_one(call)
    tries = (one, stretch_batch(one, TRIED_WITH), call)
    try:
        captured = _capture(model, stretch_batch(one, CAPTURED_WITH), Dim(BATCH, min=1), tries)
    except Exception as error:  # torch.export and the model's own code raise many kinds
        return _capture_fixed(model, call, describe_failure(error))
    for each in captured.tries:
        with quiet(), torch.no_grad():
            replay = compare_runs(model, captured.program.module(), each)
        if not replay.exact:
            return _capture_fixed(model, call, f"with {batch_size(each)} examples at once {replay.reason}")
    return captured


def _capture_fixed(model: nn.Module, call: Inputs, why: str) -> Captured:
    try:
        captured = _capture(model, call, None, (call,))
    except Exception as error:  # as above
        raise ExportError(
            f"{type(model).__name__}: torch.export cannot capture it: {describe_failure(error)}. "
            "Mend that line, or export the recorded run, bo.to_graph_module(model, inputs)."
        ) from error
    return Captured(captured.program, call, None, captured.tries, why)


def _capture(model: nn.Module, call: Inputs, dim: Any, tries: tuple[Inputs, ...]) -> Captured:
    """Capture with the first axis of every tensor that holds examples free, where ``dim`` is given."""
    given = call.copy()
    kwargs = dict(given.kwargs)
    shapes = None if dim is None else _mark(model, given, dim)
    with quiet(), torch.no_grad(), redirect_stderr(io.StringIO()):  # where it fails, torch prints the whole graph
        program = torch.export.export(model, given.args, kwargs, dynamic_shapes=shapes)
    program.example_inputs = None  # the user's data: nobody expects them in the file
    others = tuple(vary_inputs(each, seed=3 + number) for number, each in enumerate(tries))
    return Captured(program, call, _name_axes(shapes), others)


def _mark(model: nn.Module, call: Inputs, dim: Any) -> dict[str, Any]:
    """For each argument of the model's forward which axes are free, as ``torch.export`` takes it."""
    size = batch_size(call)

    def mark(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {0: dim} if value.dim() and value.shape[0] == size else None
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(mark, value))
        if isinstance(value, list | tuple):
            return type(value)(map(mark, value))
        return {key: mark(item) for key, item in value.items()} if isinstance(value, dict) else None

    bound = inspect.signature(model.forward).bind(*call.args, **call.kwargs)
    return {name: mark(value) for name, value in bound.arguments.items()}


def _name_axes(shapes: Any) -> Any:
    """The same with names in place of torch's own objects."""
    if isinstance(shapes, dict):
        return {key: _name_axes(value) for key, value in shapes.items()}
    if isinstance(shapes, tuple) and hasattr(shapes, "_fields"):
        return type(shapes)(*map(_name_axes, shapes))
    if isinstance(shapes, list | tuple):
        return type(shapes)(map(_name_axes, shapes))
    return None if shapes is None else BATCH


def _take_one(call: Inputs) -> Inputs:
    size = batch_size(call)
    return call.map(lambda tensor: tensor[:1] if tensor.dim() and tensor.shape[0] == size else tensor)


def describe_axes(name: str, tensor: Tensor, call: Inputs, *, dynamic: bool) -> str:
    """An input in words: ``x: batch x 3 x 8 x 8 float32``."""
    axes = list(map(str, tensor.shape))
    if dynamic and axes and tensor.shape[0] == batch_size(call):
        axes[0] = BATCH
    return f"{name}: {' x '.join(axes) or 'a number'} {str(tensor.dtype).removeprefix('torch.')}"


def describe_failure(error: BaseException) -> str:
    """What torch says, and the line of the model's code at which it stopped."""
    name = type(error).__name__
    said = one_line(one_line(error).replace(_ADVICE, ""), width=160).rstrip(" .")
    text = _BY_VALUE if name == "GuardOnDataDependentSymNode" else f"{name}: {said}"
    place = _find_place(error)
    return f"{text}, at {place}" if place else text


def _find_place(error: BaseException) -> str:
    """The innermost line that is neither torch's nor Python's own."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not {_TORCH, _PYTHON, Path(__file__).parent} & set(Path(frame.filename).parents)
        and Path(frame.filename).is_file()
    ]
    if not frames:
        return ""
    last = frames[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{Path(last.filename).name}:{last.lineno}: {line}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that torch's exporters are known to give about themselves.

    Nor with what they log of each attempt that fails: it comes back as an error, and what matters is told from that.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logging.disable(disabled)
