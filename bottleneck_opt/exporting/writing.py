"""``export``: capture, translate, run the file's own bytes and compare, and only then write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bottleneck_opt.errors import ExportError, InputError
from bottleneck_opt.exporting.capturing import Captured, capture, describe_axes
from bottleneck_opt.exporting.onnx_file import check_packages, start_session, to_onnx, version_of_runtime
from bottleneck_opt.exporting.pt2_file import run_pt2, to_pt2
from bottleneck_opt.exporting.quantizing import INT8, Examples, choose_examples, compare, describe, quantize_file
from bottleneck_opt.exporting.record import Exported, Quantized
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
    quantize: Literal["int8"] | None = None,
    calibration: Any = None,
    calibration_limit: int = 256,
) -> Exported:
    """Write a model as one file: ``.onnx`` by ``torch.onnx``, ``.pt2`` by ``torch.export``.

    The file is read back and run before it is put in its place: by ONNX Runtime, or by torch. It holds no example
    data. ``.onnx`` needs ``pip install 'bottleneck-opt[export]'``.

    With ``quantize="int8"`` the layers compute with 8-bit integers: a quarter of the size, and faster where the
    processor has instructions for it. The outputs are then compared in the mean, on calibration examples that were held
    out. x86 processors without VNNI (AVX2 alone) may clip large sums and be less exact than what was measured here.

    Args:
        model: Any module; it is not changed. It is exported in eval mode and in its own precision.
        inputs: One example call: a Tensor, a tuple of arguments or a dict of keyword arguments. None infers it.
        path: The file to write.
        dynamic_batch: Let the file take any number of examples where the model can; where not, it takes as many as
            ``inputs`` has, and the record says why.
        opset: Version of the ONNX operators; None takes torch's.
        check: Run the file and compare its outputs with the model's. Without it a wrong file may be written.
        quantize: ``int8`` for an ``.onnx`` file with 8-bit layers. None leaves them as they are.
        calibration: For ``quantize``: unlabelled data, as for :func:`optimize`; the ranges of the activations are taken
            from them, so noise would not do.
        calibration_limit: Examples read at most.

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
    _check_quantize(form, quantize, calibration)
    if form == ONNX:
        check_packages(run=check or quantize is not None)
    original = unwrap_model(model)
    check_finite_weights(original)
    ready = copy_model(original).cpu().eval()
    if quantize is not None:
        _check_precision(ready)
    call, notes = choose_inputs(ready, inputs)
    captured = capture(ready, call, dynamic_batch=dynamic_batch)
    examples = None if quantize is None else choose_examples(captured, calibration, calibration_limit)
    content, version = to_onnx(captured, opset) if form == ONNX else (to_pt2(captured), None)
    difference, checked = None, ""
    if check:
        difference = _compare(ready, captured, start_session(content) if form == ONNX else run_pt2(content), target)
        sizes = " and ".join(map(str, sorted({batch_size(each) for each in captured.tries})))
        checked = f"{version_of_runtime() if form == ONNX else 'torch.export.load'} with {sizes} examples"
    quantized = None
    if examples is not None:
        content, quantized = _quantize(ready, content, examples, check=check)
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
        notes=(
            *notes,
            *_tell_batch(captured),
            *(examples.notes if examples else ()),
            *_tell_size(len(content), quantized),
        ),
        quantized=quantized,
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


def _check_quantize(form: str, quantize: object, calibration: object) -> None:
    if quantize is None:
        if calibration is not None:
            raise InputError('calibration: is for quantize="int8", which was not asked for. Leave it out, or add it.')
        return
    if quantize != INT8:
        raise InputError(f"quantize: got {quantize!r}; expected 'int8', or None. Write quantize='int8'.")
    if form != ONNX:
        raise InputError("quantize: got 'int8' for a .pt2 file; only .onnx files are quantised. Write model.onnx.")
    if calibration is None:
        raise InputError(
            "quantize: got 'int8' without calibration=; expected unlabelled data, which the ranges of the activations "
            "are taken from: of noise they would be wrong. Pass the data that the model was optimised with."
        )


def _check_precision(model: nn.Module) -> None:
    other = {each.dtype for each in model.parameters() if each.is_floating_point()} - {torch.float32}
    if other:
        raise ExportError(
            f"quantize: the model is in {', '.join(sorted(str(each).removeprefix('torch.') for each in other))}; "
            "expected float32, which the other operations stay in. Export model.float()."
        )


def _quantize(model: nn.Module, content: bytes, examples: Examples, *, check: bool) -> tuple[bytes, Quantized]:
    made = quantize_file(content, examples)
    change = compare(model, made, examples) if check else None
    return made, describe(made, len(content), examples, change)


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


def _tell_size(size: int, quantized: Quantized | None) -> tuple[str, ...]:
    if quantized is None or size < quantized.float_size:
        return ()
    return ("the 8-bit file is no smaller than in float32: the weights are few, and every scale takes room",)
