"""The words in a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bottleneck_opt.diagrams.layout import Box, Group
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.tags import change_tag, range_text, step_lines, times_tag
from bottleneck_opt.diagrams.wording import (
    PATH_LIMIT,
    TEXT_LIMIT,
    ascii_text,
    change_text,
    count_text,
    elide_end,
    elide_middle,
    macs_text,
    paths_text,
    shapes_text,
    share_text,
)
from bottleneck_opt.graph import Cost

_TITLE_LIMIT = 44
_PATHS_LIMIT = 40
_REASON_LIMIT = 40
_WORTH_A_NOTE = 0.01


@dataclass(frozen=True)
class Caption:
    """The rows of a box, empty where there is nothing to say.

    Attributes:
        tag: What changed, in words.
        title: What the box does.
        becomes: What stands in its place, where both share a box.
        name: Where it is in the model.
        shape: ``in -> out`` without the batch axis.
        cost: MACs and parameters.
        share: Share of the original model's MACs.
        note: Why the layer was left alone.
        lines: One line for each change in a folded region.
        tooltip: Everything in full.
    """

    tag: str
    title: str
    becomes: str
    name: str
    shape: str
    cost: str
    share: str
    note: str
    lines: tuple[str, ...]
    tooltip: str


def caption_box(box: Box, *, whole: int, framed: bool = False) -> Caption:
    """The words for a box.

    Args:
        box: The box.
        whole: MACs of the original model.
        framed: It stands in a frame that names the copies.
    """
    macs = sum(cost.macs for cost in box.costs)
    title = box.first.unit.title if box.region is None else _region_title(box)
    shape = _box_shape(box)
    share = macs / whole if whole else 0.0
    return Caption(
        tag=change_tag(box),
        title=elide_middle(ascii_text(title), _TITLE_LIMIT),
        becomes=elide_end(ascii_text(_becomes(box)), _TITLE_LIMIT),
        name=elide_middle(ascii_text(star_path(box.paths) if framed else paths_text(box.paths)), _name_limit(box)),
        shape=elide_end(ascii_text(shape), _TITLE_LIMIT),
        cost=_cost(box),
        share=share_text(share) if macs else "",
        note=_note(box) if share >= _WORTH_A_NOTE else "",
        lines=step_lines(box),
        tooltip=ascii_text(elide_end(", ".join(filter(None, [paths_text(box.paths), title, shape])), TEXT_LIMIT)),
    )


def group_title(group: Group) -> str:
    """The words on the frame around equal blocks."""
    before, after = group.cost(Change.ADDED).macs, group.cost(Change.REMOVED).macs
    name = f"{elide_middle(ascii_text(paths_text(group.paths)), 40)}   x{len(group.paths)}"
    if before == after:
        return f"{name}   {macs_text(after)}"
    return f"{name}   {macs_text(before)} -> {macs_text(after)} ({change_text(before, after)})"


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
    return PATH_LIMIT if len(box.paths) == 1 else _PATHS_LIMIT


def _region_title(box: Box) -> str:
    name = f"{box.region or 'Layers'}{times_tag(box)}"
    if box.change is not Change.SAME:
        return name
    return f"{name}, {box.size} units{' each' if box.copies > 1 else ''} folded"


def _box_shape(box: Box) -> str:
    """``in -> out``; of copies that differ, smallest .. largest on every axis."""
    size = box.size
    starts, ends = box.parts[::size], box.parts[size - 1 :: size]
    made = shapes_text(_spread([part.unit.nodes[-1].output_shapes for part in ends]))
    if box.first.unit.head.kind in ("input", "output"):
        return made
    read = _spread([part.unit.head.input_shapes for part in starts])
    if box.change is Change.REPLACED and box.region is None:
        thin = _spread([part.unit.nodes[-1].output_shapes for part in box.parts[1::size]])
        return f"{shapes_text(read)} -> {shapes_text(thin)} -> {made}"
    return f"{shapes_text(read if box.region is None else read[:1])} -> {made}"


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


def _cost(box: Box) -> str:
    both = {Change.REMOVED, Change.ADDED} <= box.changes
    return _cost_left(box) if both else _cost_whole(box)


def _cost_left(box: Box) -> str:
    before, after = sum(box.costs_without(Change.ADDED), Cost()), sum(box.costs, Cost())
    return (
        f"{macs_text(before.macs)} -> {macs_text(after.macs)} | "
        f"{count_text(before.params)} -> {count_text(after.params)} params"
    )


def _cost_whole(box: Box) -> str:
    macs, params = [cost.macs for cost in box.costs], sum(cost.params for cost in box.costs)
    words = [_sum_text(macs)] if sum(macs) else []
    return " | ".join([*words, *([f"{count_text(params)} params"] if params else [])])


def _sum_text(macs: Sequence[int]) -> str:
    """``5 x 51.4 = 257 MMAC``; smallest and largest where copies differ."""
    total = macs_text(sum(macs))
    if len(macs) == 1:
        return total
    each = range_text([macs_text(min(macs)), macs_text(max(macs))])
    unit = total.partition(" ")[2]
    return f"{len(macs)} x {each.replace(f' {unit}', '')} = {total}"


def _note(box: Box) -> str:
    reasons = [part.skipped.reason for part in box.parts if part.skipped is not None]
    if box.region is not None or not reasons:
        return ""
    return f"unchanged: {elide_end(ascii_text(reasons[0]), _REASON_LIMIT)}"
