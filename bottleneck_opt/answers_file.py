"""The file that passes' answers are kept in: JSON, after a line with the format and the hash of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from bottleneck_opt.elimination import Elimination
from bottleneck_opt.errors import FileError
from bottleneck_opt.files import write_whole
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.sites import Option, Skip

FORMAT = 1


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PlainOption:
    """An :class:`Option` without its ``fill``."""

    form: str
    ranks: tuple[int, ...]
    full_ranks: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    predicted_loss: float


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PlainOrder:
    """An :class:`Elimination`."""

    order: tuple[int, ...]
    losses: tuple[float, ...]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PlainAnswer:
    """What a pass said: options or an order, or no and why, or nothing where it is none of its business."""

    options: tuple[PlainOption, ...] | None = None
    order: PlainOrder | None = None
    skip: Skip | None = None


_ANSWERS = TypeAdapter(dict[str, PlainAnswer])


def list_options(answer: object) -> list[Option]:
    """The options in an answer; none where it is something else."""
    return list(answer) if isinstance(answer, list | tuple) else []


def describe_answer(answer: object) -> PlainAnswer | None:
    """An answer in the form it is kept in; None where that would not be all of it."""
    if answer is None or isinstance(answer, Skip):
        return _check_whole(PlainAnswer(skip=answer))
    options = list_options(answer)
    if not isinstance(answer, list | tuple) or any(type(each) is not Option for each in options):
        return None
    return _check_whole(PlainAnswer(options=tuple(map(describe_option, options))))


def describe_option(option: Option) -> PlainOption:
    """The option without its ``fill``."""
    return PlainOption(option.form, option.ranks, option.full_ranks, option.layers, option.predicted_loss)


def describe_order(answer: object) -> PlainAnswer | None:
    """The same for an answer of a pass that drops channels."""
    if answer is None or isinstance(answer, Skip):
        return _check_whole(PlainAnswer(skip=answer))
    if type(answer) is not Elimination or (answer.order.dtype, answer.losses.dtype) != (torch.int64, torch.float64):
        return None
    return _check_whole(PlainAnswer(order=PlainOrder(tuple(answer.order.tolist()), tuple(answer.losses.tolist()))))


def _check_whole(answer: PlainAnswer) -> PlainAnswer | None:
    """The answer, where it is the same after it was written and read; passes may answer with anything."""
    try:
        text = _ANSWERS.dump_json({"": answer}, warnings=False)
        return answer if repr(_ANSWERS.validate_json(text)[""]) == repr(answer) else None  # 3.0 is not written as 3
    except (ValueError, TypeError):  # pydantic's own errors are ValueErrors
        return None


def write_answers(path: Path, answers: dict[str, PlainAnswer]) -> None:
    """Write the file, whole or not at all. Raises FileError where it cannot be written."""
    body = _ANSWERS.dump_json(answers)
    header = {"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest()}
    write_whole(path, json.dumps(header).encode() + b"\n" + body)


def read_answers(path: Path) -> dict[str, PlainAnswer]:
    """The answers in a file. Raises FileError where it is not whole, or of another format."""
    try:
        header, _, body = path.read_bytes().partition(b"\n")
        facts: Any = json.loads(header)
        whole = facts == {"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest()}
        found = _ANSWERS.validate_json(body) if whole else {}
    except (OSError, ValueError, ValidationError) as error:
        raise FileError(f"{path}: is no whole file of answers ({type(error).__name__}). It is made again.") from error
    if not whole:
        raise FileError(f"{path}: was changed since it was written. It is made again.")
    return found
