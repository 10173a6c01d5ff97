"""What an export wrote and how it was checked, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
            was not checked.
        checked: In words, what ran the file again and on what; empty where it was not checked.
        notes: What a careful user should know, such as why the batch is fixed.
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

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset else ""
        lines = [f"written to {self.path} ({self.size / 1e6:.1f} MB{opset})", f"inputs: {'; '.join(self.inputs)}"]
        if self.difference is not None:
            lines.append(f"checked by {self.checked}: outputs differ by at most {self.difference:.1e} of the largest")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
