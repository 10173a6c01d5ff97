"""Read back what a saved result says of itself in its report.json."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from bottleneck_opt.errors import FileError
from bottleneck_opt.files import as_path, read_bytes
from bottleneck_opt.noise import make_noise
from bottleneck_opt.report.document import FORMAT
from bottleneck_opt.saving import load
from bottleneck_opt.sources import read_shape

REPORT = "report.json"
_TENSOR = re.compile(r"Tensor (\d+(?:x\d+)*) (\w+)")


@dataclass(frozen=True)
class Pair:
    """A number of the model before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class Change:
    """How far the output moved, relative to its variance; None where it could not be measured."""

    measured: float | None


@dataclass(frozen=True)
class Headline:
    """The numbers at the top of a report; None where nothing was recorded.

    ``weights_changed`` says that the last two are of other weights than those in the folder.
    """

    macs: Pair
    params: Pair
    milliseconds: Pair | None
    metric: Pair | None
    output_change: Change
    weights_changed: bool = False


@dataclass(frozen=True)
class Made:
    """The example call in words: ``Tensor 1x3x224x224 float32``."""

    inputs: str


@dataclass(frozen=True)
class Report:
    """What is read of a report.json; it holds more."""

    format: int
    headline: Headline
    provenance: Made

    def example(self) -> Tensor | None:
        """Noise of the shape that the result was recorded with; None where the call was more than one float tensor."""
        match = _TENSOR.fullmatch(self.provenance.inputs)
        dtype = getattr(torch, match[2], None) if match else None
        if match is None or not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            return None
        shape = [int(length) for length in match[1].split("x")]
        return make_noise(shape, torch.Generator().manual_seed(0)).to(dtype)


def read_report(folder: str | Path) -> Report:
    """The report in the folder that ``result.save()`` wrote, or in that file.

    Raises:
        FileError: There is none, or it is not one of this format.

    Example:
        >>> read_report("nowhere")
        Traceback (most recent call last):
        bottleneck_opt.errors.FileError: nowhere/report.json: the report cannot be read: no such file or directory. ...
    """
    path = as_path(folder, "report")
    path = path if path.suffix == ".json" else path / REPORT
    try:
        report = TypeAdapter(Report).validate_json(read_bytes(path, "the report"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the text as a whole"
        raise FileError(
            f"{path}: is not a report: {where}: {first['msg']}. Use the folder that result.save() wrote."
        ) from error
    if report.format != FORMAT:
        raise FileError(
            f"{path}: has format {report.format}; this version reads format {FORMAT}. Save the result again."
        )
    return report


def load_saved(folder: Path, model: nn.Module, shape: str | None) -> tuple[nn.Module, Tensor | None]:
    """The model in a saved folder, in eval mode, and a call of it.

    Args:
        folder: What ``result.save()`` wrote.
        model: A fresh instance of the model that was optimised.
        shape: The call's shape as it is typed; None takes that of the report.

    Raises:
        FileError, RewriteError, InputError: As for :func:`bottleneck_opt.saving.load` and :func:`read_shape`.
    """
    example = read_report(folder).example() if shape is None else read_shape(shape)
    return load(folder if folder.suffix != ".json" else folder.parent, model, example).eval(), example


def find_example(plan: Path) -> Tensor | None:
    """A call like the one that a plan was made with, where a report lies beside it; None where none does."""
    report = (plan if plan.is_dir() else plan.parent) / REPORT
    return read_report(report).example() if report.is_file() else None
