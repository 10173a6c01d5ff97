"""What an export wrote and how it was checked, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quantized:
    """What 8 bits did to a file. Outputs are compared with those of the model in float32.

    Attributes:
        scheme: ``int8``.
        float_size: Bytes of the same file in float32.
        examples: Calibration examples that the ranges of the activations were taken from.
        compared: Examples that outputs were compared on; 0 where that was not wanted.
        held_out: Whether those are others than the ranges were taken from.
        change: Mean squared change of the output relative to its variance; None where it was not compared, or where
            the output has no floating values that vary.
        agreement: Share of examples with the same top class; None unless the output is one ``(batch, classes)`` tensor.
        operators: How many operators of each kind compute in 8 bits.
        left: How many of each kind compute in float32.
    """

    scheme: str
    float_size: int
    examples: int
    compared: int
    held_out: bool
    change: float | None
    agreement: float | None
    operators: Mapping[str, int]
    left: Mapping[str, int]

    def __str__(self) -> str:
        lines = [
            f"{self.scheme}: {_list(self.operators)}; in float32: {_list(self.left)}",
            f"{self.scheme}: ranges from {self.examples} calibration examples; the float32 file has "
            f"{self.float_size / 1e6:.2f} MB",
        ]
        told = [] if self.change is None else [f"the output changed by {self.change:.1e} of its variance"]
        if self.agreement is not None:
            told.append(f"{self.agreement:.1%} keep their top class")
        if told:
            which = "held out" if self.held_out else "the same ones"
            lines.append(f"{self.scheme}: {', '.join(told)} ({self.compared} examples, {which})")
        return "\n".join(lines)


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: The file.
        form: ``onnx`` or ``pt2``.
        dynamic_batch: Whether it takes any number of examples at once.
        inputs: Its input tensors in words, such as ``x: batch x 3 x 8 x 8 float32``.
        opset: Version of the ONNX operators; None for ``.pt2``.
        size: Bytes written.
        difference: Largest difference of its outputs from the model's, relative to the largest output; None where it
            was not checked. Of a quantised file: that of the float32 file it was made from.
        checked: In words, what ran the file again and on what; empty where it was not checked.
        notes: What a careful user should know, such as why the batch is fixed.
        quantized: What 8 bits did; None where nothing was quantised.
    """

    path: Path
    form: str
    dynamic_batch: bool
    inputs: tuple[str, ...]
    opset: int | None
    size: int
    difference: float | None
    checked: str
    notes: tuple[str, ...]
    quantized: Quantized | None = None

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset else ""
        size = f"{self.size / 1e6:.1f} MB" if self.quantized is None else f"{self.size / 1e6:.2f} MB"
        lines = [f"written to {self.path} ({size}{opset})", f"inputs: {'; '.join(self.inputs)}"]
        if self.difference is not None:
            what = "" if self.quantized is None else " in float32"
            lines.append(
                f"checked{what} by {self.checked}: outputs differ by at most {self.difference:.1e} of the largest"
            )
        if self.quantized is not None:
            lines.append(str(self.quantized))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
