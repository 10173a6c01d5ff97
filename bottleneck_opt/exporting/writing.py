"""``export``: capture, translate, run the file's own bytes and compare, and only then write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bottleneck_opt.errors import ExportError, InputError
from bottleneck_opt.exporting.capturing import Captured, capture, describe_axes
from bottleneck_opt.exporting.onnx_file import check_packages, run_onnx, to_onnx, version_of_runtime
from bottleneck_opt.exporting.pt2_file import run_pt2, to_pt2
from bottleneck_opt.exporting.record import Exported
from bottleneck_opt.files import as_path, write_whole
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.tracing import choose_inputs, compare_runs
from bottleneck_opt.working_copy import check_finite_weights, copy_model, unwrap_model

ONNX, PT2 = "onnx", "pt2"
_LARGEST = {torch.float16: 3e-2, torch.bfloat16: 1e-1}
_LARGEST_ELSE = 1e-3


def export(
    model: nn.Module,
    inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: bool = True,
) -> Exported:
    """Write a model as one file: ``.onnx`` by ``torch.onnx``, ``.pt2`` by ``torch.export``.

    The file is read back and run before it is put in its place: by ONNX Runtime, or by torch. It holds no example
    data. ``.onnx`` needs ``pip install 'bottleneck-opt[export]'``.

    Args:
        model: Any module; it is not changed. It is exported in eval mode and in its own precision.
        inputs: One example call: a Tensor, a tuple of arguments or a dict of keyword arguments. None infers it.
        path: The file to write.
        dynamic_batch: Let the file take any number of examples where the model can; where not, it takes as many as
            ``inputs`` has, and the record says why.
        opset: Version of the ONNX operators; None takes torch's.
        check: Run the file and compare its outputs with the model's. Without it a wrong file may be written.

    Returns:
        What was written, with the largest difference of its outputs.

    Raises:
        ExportError: A package is missing, or the model cannot be exported; the message names the operation.
        ModelError, InputError, FileError: See each; all are :class:`BottleneckOptError`.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export(net, torch.randn(1, 3, 8, 8), f"{folder}/net.pt2")
        ...     loaded = torch.export.load(written.path).module()
        >>> loaded(torch.randn(5, 3, 8, 8)).shape, written.inputs
        (torch.Size([5, 8, 6, 6]), ('input: batch x 3 x 8 x 8 float32',))
    """
    target = as_path(path, "export")
    form = _read_form(target, opset)
    if form == ONNX:
        check_packages(run=check)
    original = unwrap_model(model)
    check_finite_weights(original)
    ready = copy_model(original).cpu().eval()
    call, notes = choose_inputs(ready, inputs)
    captured = capture(ready, call, dynamic_batch=dynamic_batch)
    content, version = to_onnx(captured, opset) if form == ONNX else (to_pt2(captured), None)
    difference, checked = None, ""
    if check:
        difference = _compare(ready, captured, run_onnx(content) if form == ONNX else run_pt2(content), target)
        sizes = " and ".join(map(str, sorted({batch_size(each) for each in captured.tries})))
        checked = f"{version_of_runtime() if form == ONNX else 'torch.export.load'} with {sizes} examples"
    write_whole(target, content)
    return Exported(
        path=target,
        form=form,
        dynamic_batch=captured.shapes is not None,
        inputs=_describe_inputs(captured),
        opset=version,
        size=len(content),
        difference=difference,
        checked=checked,
        notes=(*notes, *_tell_batch(captured)),
    )


def _read_form(target: Path, opset: int | None) -> str:
    form = target.suffix.lower().removeprefix(".")
    if form not in (ONNX, PT2):
        raise ExportError(
            f"export: got a '{target.suffix}' file, {target}; expected .onnx (for other programs) or .pt2 (for torch). "
            "Write for instance model.onnx."
        )
    if opset is not None and form == PT2:
        raise InputError(f"opset: got {opset} for a .pt2 file, which has none. Leave it out, or write to .onnx.")
    return form


def _compare(model: nn.Module, captured: Captured, run: Callable[..., Any], target: Path) -> float:
    """Largest difference of the file's outputs on calls that it was not made with."""
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    allowed = _LARGEST.get(dtype, _LARGEST_ELSE)
    with torch.no_grad():
        replays = [compare_runs(model, run, call) for call in captured.tries]
    worst = max(replays, key=lambda each: each.difference)
    if not worst.difference <= allowed:
        raise ExportError(
            f"{target}: what was made does not compute what the model does: {worst.reason}. Nothing was written. "
            "Export in the other format, or pass check=False to look at the file."
        )
    return worst.difference


def _describe_inputs(captured: Captured) -> tuple[str, ...]:
    signature = captured.program.graph_signature
    names = [spec.arg.name for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    tensors = captured.call.tensors()
    dynamic = captured.shapes is not None
    return tuple(
        describe_axes(name, tensor, captured.call, dynamic=dynamic)
        for name, tensor in zip(names, tensors, strict=False)
    )


def _tell_batch(captured: Captured) -> tuple[str, ...]:
    if not captured.why_fixed:
        return ()
    count = batch_size(captured.call)
    return (f"takes {count} example{'s' if count > 1 else ''} a call, no other number: {captured.why_fixed}",)
