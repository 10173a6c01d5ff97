"""Draw equal blocks in a row once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from bottleneck_opt.diagrams.layout import Box, Group
from bottleneck_opt.diagrams.likeness import Likeness
from bottleneck_opt.diagrams.picture import Part

Item = Box | Group


def fold_repeats(items: Iterable[Item], likeness: Likeness, *, loose: bool) -> Iterator[Item]:
    """Equal neighbours merged; single operations are never merged.

    Args:
        items: Boxes and groups in order.
        likeness: Which parts are twins.
        loose: Blocks that differ in numbers only count as equal.
    """
    copies: list[Item] = []
    for item in items:
        twin = _align(copies[0], item, likeness, loose=loose) if copies else item
        if twin is None:
            yield _merge(copies, outermost=True)
            copies = []
        copies.append(item if twin is None else twin)
    if copies:
        yield _merge(copies, outermost=True)


def parts_of(item: Item) -> tuple[Part, ...]:
    """Everything in a box or group, in order."""
    return item.parts if isinstance(item, Box) else tuple(part for box in item.boxes() for part in box.parts)


def _align(first: Item, item: Item, likeness: Likeness, *, loose: bool) -> Item | None:
    """The second block with its parts in the order of the first; None where they are not alike."""
    whole = isinstance(item, Group) or item.region is not None
    if not whole or type(first) is not type(item):
        return None
    parts = parts_of(item)
    order = likeness.match(parts_of(first), parts, loose=loose)
    if order is None:
        return None
    if order == tuple(range(len(parts))) and _outline(first) == _outline(item):
        return item
    return replace(_mirror(first, iter([parts[index] for index in order])), paths=item.paths)


def _outline(item: Item) -> object:
    """How parts are spread over boxes and groups."""
    return len(item.parts) if isinstance(item, Box) else tuple(map(_outline, item.items))


def _mirror(item: Item, parts: Iterator[Part]) -> Item:
    """An item built like another one, of other parts."""
    if isinstance(item, Group):
        return replace(item, items=tuple(_mirror(inner, parts) for inner in item.items))
    own = tuple(islice(parts, len(item.parts)))
    return replace(item, key=own[0].key, parts=own, paths=tuple(part.path for part in own[:: item.size]))


def _merge(copies: Sequence[Item], *, outermost: bool = False) -> Item:
    """One item that stands for several equal ones."""
    first = copies[0]
    if len(copies) == 1:
        return first
    if isinstance(first, Box):
        boxes = [copy for copy in copies if isinstance(copy, Box)]
        parts = tuple(part for box in boxes for part in box.parts)
        paths = tuple(path for box in boxes for path in box.paths)
        return replace(first, parts=parts, copies=sum(box.copies for box in boxes), paths=paths)
    groups = [copy for copy in copies if isinstance(copy, Group)]
    inner = tuple(_merge(column) for column in zip(*(group.items for group in groups), strict=True))
    return replace(first, paths=tuple(g.paths[0] for g in groups) if outermost else first.paths, items=inner)
