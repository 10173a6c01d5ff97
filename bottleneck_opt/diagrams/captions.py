"""The words in a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bottleneck_opt.diagrams.heat import MACS, PARAMS, TIME, HeatName, Measure
from bottleneck_opt.diagrams.layout import Box, Group
from bottleneck_opt.diagrams.picture import Change, Part
from bottleneck_opt.diagrams.tags import change_tag, count_rest, fit_words, range_text, step_lines, times_tag
from bottleneck_opt.diagrams.wording import (
    PATH_LIMIT,
    TEXT_LIMIT,
    ascii_text,
    change_text,
    elide_end,
    elide_middle,
    paths_text,
    shapes_text,
    share_text,
    shrink_text,
)

_TITLE_LIMIT = 44
_PATHS_LIMIT = 44
_REASON_LIMIT = 40
_WORTH_A_NOTE = 0.01
_SHOWN: Mapping[HeatName, tuple[Measure, Measure]] = {
    "macs": (MACS, PARAMS), "params": (PARAMS, MACS), "ms": (TIME, MACS),
}  # fmt: skip


@dataclass(frozen=True)
class Caption:
    """The words in a box, empty where there is nothing to say.

    Attributes:
        tag: What changed, in words.
        title: What the box does.
        becomes: What stands in its place, where both share a box.
        name: Where it is in the model.
        shape: ``in -> out`` without the batch axis.
        numbers: Share of the original model, the cost that is measured, and one other cost.
        fit: Rank and predicted loss of what was replaced.
        note: Why the layer was left alone.
        lines: One row of cells for each change in a folded region, at most ten.
        rest: How many more changes there are in it.
        tooltip: Everything in full.
    """

    tag: str
    title: str
    becomes: str
    name: str
    shape: str
    numbers: tuple[str, ...]
    fit: str
    note: str
    lines: tuple[tuple[str, ...], ...]
    rest: str
    tooltip: str


def caption_box(box: Box, *, whole: float, framed: bool = False, measure: Measure = MACS) -> Caption:
    """The words for a box.

    Args:
        box: The box.
        whole: Cost of the original model, by ``measure``.
        framed: It stands in a frame that names the copies.
        measure: What shares are of.
    """
    title, name = _title(box), _name(box, framed=framed)
    shape = _box_shape(box)
    return Caption(
        tag=change_tag(box, measure),
        title=elide_middle(ascii_text(title), _TITLE_LIMIT),
        becomes=elide_end(ascii_text(_becomes(box)), _TITLE_LIMIT),
        name=elide_middle(ascii_text(name), _name_limit(box)),
        shape=elide_end(ascii_text(shape), _TITLE_LIMIT),
        numbers=_numbers(box, whole, measure),
        fit=fit_words(box),
        note=_note(box) if whole and measure.of(box.parts) / whole >= _WORTH_A_NOTE else "",
        lines=step_lines(box),
        rest=count_rest(box),
        tooltip=ascii_text(elide_end(", ".join(filter(None, [paths_text(box.paths), title, shape])), TEXT_LIMIT)),
    )


def before_and_after(box: Box, measure: Measure) -> tuple[float, float]:
    """What a box costs before and after; what is there only once costs nothing on the other side."""
    before = measure.of(part for part in box.parts if part.change is not Change.ADDED)
    return before, measure.of(part for part in box.parts if part.change is not Change.REMOVED)


def _numbers(box: Box, whole: float, measure: Measure) -> tuple[str, ...]:
    texts = [_number(box, each) for each in _SHOWN[measure.name]]
    before, after = _both_sides(box, measure)
    if not any(texts):
        return ()
    share = shrink_text(share_text(before / whole), share_text(after / whole)) if whole and texts[0] else ""
    return (share, *texts)


def _both_sides(box: Box, measure: Measure) -> tuple[float, float]:
    """Before and after; the same number twice where the box is of one of the models only."""
    before, after = before_and_after(box, measure)
    if not box.changes >= {Change.REMOVED, Change.ADDED}:
        return (after, after) if Change.ADDED in box.changes else (before, before)
    return before, after


def _number(box: Box, measure: Measure) -> str:
    before, after = _both_sides(box, measure)
    if not before and not after:
        return "not timed" if measure is TIME and box.costs and sum(cost.macs for cost in box.costs) else ""
    if before != after:
        return measure.change_text(before, after)
    if box.copies > 1:
        return _sum_text([measure.of(copy) for copy in _copies(box)], measure)
    return measure.text(after)


def _copies(box: Box) -> list[tuple[Part, ...]]:
    return [box.parts[start : start + box.size] for start in range(0, len(box.parts), box.size)]


def _sum_text(values: Sequence[float], measure: Measure) -> str:
    """``5 x 51.4 = 257 MMAC``; smallest and largest where copies differ."""
    total = measure.text(sum(values))
    each = range_text([measure.text(min(values)), measure.text(max(values))])
    unit = total.partition(" ")[2]
    return f"{len(values)} x {each.replace(f' {unit}', '')} = {total}"


def group_title(group: Group, measure: Measure = MACS) -> str:
    """The words on the frame around a module, or around equal blocks."""
    parts = [part for box in group.boxes() for part in box.parts]
    before = measure.of(part for part in parts if part.change is not Change.ADDED)
    after = measure.of(part for part in parts if part.change is not Change.REMOVED)
    name = elide_middle(ascii_text(paths_text(group.paths)), 40)
    name += f"   x{len(group.paths)}" if len(group.paths) > 1 else f"   {elide_end(ascii_text(group.region), 30)}"
    if before == after:
        return f"{name}   {measure.text(after)}" if after else name
    return f"{name}   {measure.change_text(before, after)} ({change_text(before, after)})"


def star_path(paths: Sequence[str]) -> str:
    """Several paths as one, with a star where they differ.

    Example:
        >>> star_path(["layer3.1.conv1", "layer3.2.conv1"]), star_path(["a.1", "b"])
        ('layer3.*.conv1', 'a.1 .. b')
    """
    split = [path.split(".") for path in paths]
    if len({len(names) for names in split}) > 1:
        return paths_text(paths)
    return ".".join(names[0] if len(set(names)) == 1 else "*" for names in zip(*split, strict=True))


def _name_limit(box: Box) -> int:
    return PATH_LIMIT if len(box.paths) == 1 and box.region is None else _PATHS_LIMIT


def _title(box: Box) -> str:
    """What the box does; of a region, where it is."""
    return box.first.unit.title if box.region is None else f"{paths_text(box.paths)}{times_tag(box)}"


def _name(box: Box, *, framed: bool) -> str:
    """Where the box is; of a region, what it is and how much is folded into it."""
    if box.region is None:
        return star_path(box.paths) if framed else paths_text(box.paths)
    folded = f"{box.size} layers{' each' if box.copies > 1 else ''} folded"
    words = [box.region] if box.region else []
    return ", ".join(words if box.change is not Change.SAME else [*words, folded])


def _box_shape(box: Box) -> str:
    """``in -> out``; of copies that differ, smallest .. largest on every axis."""
    size = box.size
    starts, ends = box.parts[::size], box.parts[size - 1 :: size]
    made = shapes_text(_spread([part.unit.nodes[-1].output_shapes for part in ends]))
    if box.first.unit.head.kind in ("input", "output"):
        return made
    read = _spread([part.unit.head.input_shapes for part in starts])
    steps = [shapes_text(read if box.region is None else read[:1])]
    if box.change is Change.REPLACED and box.region is None and box.size > 2:
        steps += [shapes_text(_spread([part.unit.nodes[-1].output_shapes for part in box.parts[1 :: box.size]]))]
    return " -> ".join(filter(None, [*steps, made]))


def _spread(copies: Sequence[tuple[tuple[int, ...], ...]]) -> list[tuple[int | str, ...]]:
    """The shapes of several copies as one list of shapes, a differing size as ``16..24``."""
    ranks = {tuple(map(len, shapes)) for shapes in copies}
    if len(ranks) > 1:
        return list(copies[0])
    return [tuple(map(_spread_axis, zip(*column, strict=True))) for column in zip(*copies, strict=True)]


def _spread_axis(sizes: Sequence[int]) -> int | str:
    return sizes[0] if len(set(sizes)) == 1 else f"{min(sizes)}..{max(sizes)}"


def _becomes(box: Box) -> str:
    """``+ conv 1x1 + conv 3x3`` under the crossed-out title of the layer that went."""
    if box.change is not Change.REPLACED or box.region is not None:
        return ""
    return "".join(f" + {part.unit.title}" for part in box.parts[1 : box.size]).strip()


def _note(box: Box) -> str:
    reasons = [part.skipped.reason for part in box.parts if part.skipped is not None]
    if box.region is not None or not reasons:
        return ""
    return f"unchanged: {elide_end(ascii_text(reasons[0]), _REASON_LIMIT)}"
