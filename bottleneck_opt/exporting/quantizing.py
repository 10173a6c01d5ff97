"""The float32 ``.onnx`` file with 8-bit layers, by ONNX Runtime's static quantisation, and what that does to outputs.

Unsigned activations, signed weights with one scale an output channel, ranges from the least to the largest value, as
pairs of quantise and dequantise operations (QDQ), which other runtimes read too. On the digits networks and the
denoiser of tests/benchmarks, signed activations gave the same outputs in up to three times the time; ranges by entropy
or percentile gave the same; one scale a tensor, symmetric ranges, and leaving the activation functions in float were
worse on most.

Weights use 7 of the 8 bits. With all 8, processors without the VNNI instructions add products of unsigned and signed
numbers up in 16 bits, and what does not fit is cut off: a digits ResNet of 97.6 % fell to 94.4 %, at a quarter of its
multiply-adds to 88.7 %. On processors that have them 7 bits were a little worse than 8 on most networks; a file runs
on any.
"""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bottleneck_opt.calibration import float_leaves
from bottleneck_opt.calibration_data import CalibrationData, cut_batch, place_batch, read_examples
from bottleneck_opt.errors import ExportError, InputError, RewriteError
from bottleneck_opt.exporting.capturing import Captured, quiet
from bottleneck_opt.exporting.onnx_file import bind, start_session
from bottleneck_opt.exporting.opening import OnnxModel
from bottleneck_opt.exporting.record import Quantized
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.sources import one_line
from bottleneck_opt.sums import OutputSums, OutputValues
from bottleneck_opt.verification import OutputChange, measure_change

INT8 = "int8"
MOST_TOGETHER = 8
EVERY = 4  # of the parts of the calibration data, one in so many is held out
USELESS = 1.0  # a change of the output as large as its variance: a constant would do as well
_MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSING = (  # what lies between such layers, and loses little or nothing in 8 bits
    "Add", "Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split", "Slice",
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Resize", "Pad",
)  # fmt: skip
_PAIRS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Examples:
    """Calls of the file.

    Attributes:
        ranges: Those that the ranges of the activations are taken from.
        compared: Those that outputs are compared on.
        held_out: Whether these are others.
        notes: What else a careful user should know of them.
    """

    ranges: tuple[Inputs, ...]
    compared: tuple[Inputs, ...]
    held_out: bool
    notes: tuple[str, ...] = ()


def choose_examples(captured: Captured, calibration: Any, limit: int) -> Examples:
    """Calibration data in calls that the file takes, a quarter of them held out where there are enough.

    Args:
        captured: What the file is made from.
        calibration, limit: As for :func:`bottleneck_opt.optimize`.

    Raises:
        InputError: The data cannot be used, or has other sizes than the file takes.
    """
    call = captured.call
    alone = len(call.args) == 1 and not call.kwargs and isinstance(call.args[0], torch.Tensor)
    data = read_examples(calibration, call, given=None if alone else call, limit=limit)
    parts = tuple(_cut(data, captured))
    if not parts:
        raise InputError(
            f"calibration: no batch of it has the {batch_size(call)} examples that the file takes at once; expected as "
            "many. Pass larger batches, or an example call of one."
        )
    _check_sizes(parts, captured)
    held = parts[EVERY - 1 :: EVERY]
    if not held:
        return Examples(parts, parts, held_out=False, notes=data.notes)
    seen = tuple(part for number, part in enumerate(parts, 1) if number % EVERY)
    return Examples(seen, held, held_out=True, notes=data.notes)


def _cut(data: CalibrationData, captured: Captured) -> Iterator[Inputs]:
    """Parts of the batches: small ones where the file takes any number of examples, else of just that number."""
    dynamic = captured.shapes is not None
    size = max(1, min(MOST_TOGETHER, data.examples // EVERY)) if dynamic else batch_size(captured.call)
    for batch in data.batches:
        placed = place_batch(batch, device=torch.device("cpu"), dtype=torch.float32)
        for part in cut_batch(placed, size) or [placed]:
            if dynamic or batch_size(part) == size:
                yield part


def _check_sizes(parts: Sequence[Inputs], captured: Captured) -> None:
    for part in parts:
        for got, expected in zip(part.tensors(), captured.call.tensors(), strict=True):
            if got.shape[1:] != expected.shape[1:]:
                raise InputError(
                    f"calibration: got {part.describe()}; the file takes {captured.call.describe()}, and no other size "
                    "but for the number of examples. Pass data of that size, or an example call of the data's."
                )


def quantize_file(content: bytes, examples: Examples) -> bytes:
    """The file with 8-bit layers.

    Args:
        content: The float32 file.
        examples: What the ranges of the activations are taken from.

    Raises:
        ExportError: ONNX Runtime cannot quantise it.
    """
    names = [each.name for each in _parse(content).graph.input]
    feeds = (bind(names, part.args, part.kwargs) for part in examples.ranges)
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            return _quantize(content, feeds, Path(folder))
    except Exception as error:  # its exceptions share no base class of their own
        said = one_line(error, width=200).rstrip(" .")
        raise ExportError(
            f".onnx: ONNX Runtime cannot quantise the file: {type(error).__name__}: {said}. Leave quantize= out."
        ) from error


def _quantize(content: bytes, feeds: Iterator[dict[str, Any]], folder: Path) -> bytes:
    given, prepared, made = (folder / name for name in ("given.onnx", "prepared.onnx", "made.onnx"))
    given.write_bytes(content)
    tools = importlib.import_module("onnxruntime.quantization")
    preparing = importlib.import_module("onnxruntime.quantization.shape_inference")
    preparing.quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)  # torch wrote the shapes down
    tools.quantize_static(
        str(prepared), str(made), _Feeder(feeds), quant_format=tools.QuantFormat.QDQ,
        op_types_to_quantize=[*_MULTIPLYING, *_PASSING], per_channel=True, reduce_range=True,
        activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
        calibrate_method=tools.CalibrationMethod.MinMax,
    )  # fmt: skip
    return made.read_bytes()


class _Feeder:
    """Hands over one call after the other, as ONNX Runtime asks for them."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def compare(model: nn.Module, content: bytes, examples: Examples) -> OutputChange:
    """How far the file's outputs are from the model's.

    Raises:
        ExportError: ONNX Runtime cannot run it, or its outputs tell nothing of the model's.
    """
    data = CalibrationData(examples.compared, _count(examples.compared), "")
    spreads: list[OutputSums] = []
    for part in examples.compared:
        with torch.no_grad():
            leaves = float_leaves(part.call(model))
        spreads.extend(OutputSums() for _ in leaves[len(spreads) :])
        for spread, leaf in zip(spreads, leaves, strict=True):
            spread.add(OutputValues.of(leaf, batch_size(part)))
    scales = [spread.scale(len(spreads)) for spread in spreads]
    try:
        change = measure_change(model, OnnxModel(start_session(content), "the file"), data, scales)
    except RewriteError as error:
        raise ExportError(
            ".onnx: the 8-bit file's output is NaN or infinite, the model's is not. Leave quantize= out."
        ) from error
    if change.relative is not None and not change.relative < USELESS:
        raise ExportError(
            f".onnx: the 8-bit file's output differs from the model's by {change.relative:.2g} of its variance, as "
            "much as a constant would. Pass calibration= that is like the model's real inputs, or leave quantize= out."
        )
    return change


def describe(content: bytes, float_size: int, examples: Examples, change: OutputChange | None) -> Quantized:
    """What was done, for the record; ``change`` is None where outputs were not compared."""
    operators, left = _count_operators(content)
    return Quantized(
        scheme=INT8,
        float_size=float_size,
        examples=_count(examples.ranges),
        compared=0 if change is None else _count(examples.compared),
        held_out=examples.held_out,
        change=None if change is None else change.relative,
        agreement=None if change is None else change.agreement,
        operators=operators,
        left=left,
    )


def _count_operators(content: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """How many operators of each kind read what was dequantised, and how many do not; the commonest first."""
    nodes = _parse(content).graph.node
    made = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    eight, left = Counter[str](), Counter[str]()
    for node in nodes:
        if node.op_type not in _PAIRS:
            (eight if _is_quantized(node, made) else left)[node.op_type] += 1
    return dict(eight.most_common()), dict(left.most_common())


def _is_quantized(node: Any, dequantized: Collection[str]) -> bool:
    needed = node.input[:2] if node.op_type in _MULTIPLYING else node.input[:1]
    return node.op_type in (*_MULTIPLYING, *_PASSING) and all(name in dequantized for name in needed)


def _parse(content: bytes) -> Any:
    return importlib.import_module("onnx").load_model_from_string(content)


def _count(parts: Sequence[Inputs]) -> int:
    return sum(map(batch_size, parts))
