"""The words for one half of a box that holds both what was removed and what was added for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bottleneck_opt.diagrams.layout import Box, add_part_costs
from bottleneck_opt.diagrams.picture import Change, Part
from bottleneck_opt.diagrams.wording import (
    ascii_text,
    count_text,
    elide_middle,
    macs_text,
    paths_text,
    shapes_text,
    share_text,
)
from bottleneck_opt.plan import Step
from bottleneck_opt.report.rows import rank_text

_NAME_LIMIT = 40
_STEP_LIMIT = 28


@dataclass(frozen=True)
class Half:
    """What a box says about one of the two models.

    Attributes:
        change: ``REMOVED`` for the model before, ``ADDED`` for the model after.
        tag: What happened, in words.
        rows: What stands there, where, its shapes and its cost; then one row for each change in a folded region.
        share: Its share of the original model's MACs.
    """

    change: Change
    tag: str
    rows: tuple[str, ...]
    share: float


def split_box(box: Box, *, whole: int) -> tuple[Half, Half]:
    """Both halves of a box, before and after; ``whole`` is the original model's MACs."""
    return _half(box, Change.REMOVED, whole), _half(box, Change.ADDED, whole)


def _half(box: Box, change: Change, whole: int) -> Half:
    parts = [part for part in box.parts if part.change in (Change.SAME, change)]
    first = parts[: len(parts) // box.copies]
    cost = add_part_costs(parts)
    share = cost.macs / whole if whole else 0.0
    words = [f"{macs_text(cost.macs)}", f"{count_text(cost.params)} params", share_text(share)]
    steps = _steps(first, change)
    rows = (
        box.region or " + ".join(part.unit.title for part in first),
        elide_middle(paths_text(box.paths), _NAME_LIMIT),
        f"{shapes_text(first[0].unit.head.input_shapes)} -> {shapes_text(first[-1].unit.nodes[-1].output_shapes)}",
        " | ".join(words),
        *(_lines(steps, box.paths[0]) if box.region is not None and change is Change.ADDED else ()),
    )
    return Half(change, _tag(box, change, steps), tuple(map(ascii_text, rows)), share)


def _steps(parts: list[Part], change: Change) -> list[Step]:
    """The rewritten layers of one copy."""
    return list(
        {part.step.path: part.step for part in parts if part.step is not None and part.change is change}.values()
    )


def _tag(box: Box, change: Change, steps: list[Step]) -> str:
    number = f"{len(steps)} " if box.region is not None else ""
    times = f" x{box.copies}" if box.copies > 1 else ""
    if change is Change.REMOVED:
        return f"- {number}REMOVED{times}"
    rank = f" | {_rank(steps[0])}" if len(steps) == 1 and box.copies == 1 else ""
    return f"+ {number}NEW{times}{rank}"


def _rank(step: Step) -> str:
    return f"{'channels' if step.in_place else 'rank'} {rank_text(step)}"


def _lines(steps: list[Step], region: str) -> Iterator[str]:
    for step in steps:
        name = elide_middle(step.path.removeprefix(f"{region}."), _STEP_LIMIT)
        yield f"{name}: {step.form}, {_rank(step)}, {macs_text(step.after.macs)}"
