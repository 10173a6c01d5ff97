"""Fold a picture until it fits on a page; nothing that changed is ever hidden.

Equal blocks in a row become one block with a count, and regions in which nothing changed become one box. The least
folding that keeps the figure below a number of boxes is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from bottleneck_opt.diagrams.layout import Box, Group, Layout, all_boxes, box_parts, lay_out
from bottleneck_opt.diagrams.levels import AIM, MOST_BOXES, Level, list_levels, named_level
from bottleneck_opt.diagrams.likeness import Likeness
from bottleneck_opt.diagrams.picture import Change, Part, Picture
from bottleneck_opt.diagrams.repeats import Item, fold_repeats, parts_of
from bottleneck_opt.diagrams.wording import paths_text

_FEWEST_STAGES = 3
_LONG = 12
_SHORTEST_RUN = 3
Bundle = tuple[Part, ...]


def fold(picture: Picture, *, aim: int = AIM, most: int = MOST_BOXES, detail: str = "auto") -> Layout:
    """The layout of a picture with as little folding as brings it down to a page.

    Args:
        picture: What to show.
        aim: Equal blocks and unchanged regions are folded until there are at most this many boxes.
        most: If there are still more than this, blocks that differ in numbers are folded too, then a layer and what
            replaces it share a box, then whole blocks become boxes with a line for each change.
        detail: ``auto`` for that; else ``stage`` (the outermost modules that are several), ``block`` (the innermost
            modules), ``layer`` (every layer, equal blocks once) or ``operation`` (nothing is folded).
    """
    likeness = Likeness(picture.edges)
    items: tuple[Item, ...] = ()
    level = Level()
    for level, limit in _choose_levels(picture, detail, aim, most):
        items = _fold_items(_tree(picture, joined=level.joined), level, likeness)
        if _count(items) <= limit:
            break
    return lay_out(picture, tuple(_open_single(items, frames=level.frames)))


def _choose_levels(picture: Picture, detail: str, aim: int, most: int) -> Iterable[tuple[Level, int]]:
    """The levels to try; one alone where the user chose it."""
    tree = _tree(picture, joined=False)
    highest = max(map(_height, tree), default=0)
    framed = all(part.change is Change.SAME for part in picture.parts)
    if detail == "auto":
        return list_levels(highest, aim, most, framed=framed)
    return [(named_level(detail, block=min(1, highest), stage=_stage_height(tree), framed=framed), 0)]


def _stage_height(items: Sequence[Item]) -> int:
    """The height of the outermost modules that are several: one that holds almost everything is looked into."""
    groups = [item for item in items if isinstance(item, Group)]
    inner = max(groups, key=_height, default=None)
    if inner is not None and len(groups) < _FEWEST_STAGES and any(isinstance(item, Group) for item in inner.items):
        return _stage_height(inner.items)
    return max(map(_height, groups), default=0)


def _tree(picture: Picture, *, joined: bool) -> tuple[Item, ...]:
    return nest_parts(join_steps(picture.parts) if joined else [(part,) for part in picture.parts])


def nest_parts(bundles: Sequence[Bundle], depth: int = 0) -> tuple[Item, ...]:
    """Boxes grouped by the modules they are in, outermost first; one module's boxes in a row make one group."""
    items: list[Item] = []
    for entry, run in groupby(
        bundles, key=lambda parts: parts[0].stack[depth] if len(parts[0].stack) > depth else None
    ):
        if entry is None:
            items.extend(map(box_parts, run))
        else:
            path, region = entry
            items.append(Group((path,), region, nest_parts(tuple(run), depth + 1)))
    return tuple(items)


def join_steps(parts: Sequence[Part]) -> list[Bundle]:
    """Each removed part with the parts that replace it, in the place of the first of them; all others alone."""
    added = {_call(part) for part in parts if part.change is Change.ADDED and part.step is not None}
    removed = {_call(part): part for part in parts if part.change is Change.REMOVED and _call(part) in added}
    gone = {part.key for part in removed.values()}
    bundles: dict[object, list[Part]] = {}
    for part in parts:
        if part.key in gone:
            continue
        if part.change is Change.ADDED and _call(part) in removed:
            bundles.setdefault(_call(part), [removed[_call(part)]]).append(part)
        else:
            bundles[part.key] = [part]
    return [tuple(bundle) for bundle in bundles.values()]


def _call(part: Part) -> tuple[str, int]:
    """Which call of which rewritten layer a part belongs to."""
    return (part.step.path if part.step else "", part.unit.head.call)


def _count(items: Iterable[Item]) -> int:
    return sum(1 for _ in all_boxes(items))


def _height(item: Item) -> int:
    """How deep it is nested; modules around a single thing do not count."""
    if isinstance(item, Box):
        return 0
    return _height(item.items[0]) if len(item.items) == 1 else 1 + max(map(_height, item.items))


def _foldable(item: Item) -> bool:
    """Whether nothing in it changed and it is not an end of the model."""
    return all(part.change is Change.SAME for part in parts_of(item)) and not _is_end(item)


def _is_end(item: Item) -> bool:
    return any(part.unit.head.kind in ("input", "output") for part in parts_of(item))


def _fold_items(items: Sequence[Item], level: Level, likeness: Likeness) -> tuple[Item, ...]:
    folded = [_fold_item(item, level, likeness) for item in items]
    if level.repeats:
        folded = list(fold_repeats(folded, likeness, loose=level.loose))
    if level.runs:
        folded = list(_fold_runs(folded))
    return tuple(_fold_chunks(folded, level.chunk)) if level.chunk > 1 else tuple(folded)


def _fold_item(item: Item, level: Level, likeness: Likeness) -> Item:
    if isinstance(item, Box):
        return item
    whole = _foldable(item) or (level.blocks and not _is_end(item))
    if _height(item) <= level.height and whole and len(parts_of(item)) > 1:
        return _one_box(item.paths[0], item.region, parts_of(item))
    return replace(item, items=_fold_items(item.items, level, likeness))


def _one_box(path: str, region: str, parts: tuple[Part, ...]) -> Box:
    return Box(parts[0].key, parts, 1, (path,), region)


def _fold_runs(items: Iterable[Item]) -> Iterator[Item]:
    for foldable, run in groupby(items, key=_foldable):
        together = list(run)
        parts = tuple(part for item in together for part in parts_of(item))
        if not foldable or len(together) < _SHORTEST_RUN:
            yield from together
            continue
        yield _one_box(paths_text([together[0].paths[0], together[-1].paths[-1]]), "", parts)


def _fold_chunks(items: Iterable[Item], size: int) -> Iterator[Item]:
    """So many neighbours in one box, where a row of them is long."""
    for inner, run in groupby(items, key=lambda item: not _is_end(item)):
        row = list(run)
        if not inner or len(row) <= _LONG:
            yield from row
            continue
        for start in range(0, len(row), size):
            chunk = row[start : start + size]
            yield chunk[0] if len(chunk) == 1 else _join_chunk(chunk)


def _join_chunk(chunk: Sequence[Item]) -> Box:
    parts = tuple(part for item in chunk for part in parts_of(item))
    kinds = {item.region for item in chunk}
    kind = kinds.pop() if len(kinds) == 1 else None
    number = sum(len(item.paths) for item in chunk)
    path = paths_text([chunk[0].paths[0], chunk[-1].paths[-1]])
    return _one_box(path, f"{number} x {kind}" if kind else f"{number} modules", parts)


def _open_single(items: Iterable[Item], *, frames: bool) -> Iterator[Item]:
    """The items without frames that say nothing: around one box, or around modules that are there only once."""
    for item in items:
        if isinstance(item, Box):
            yield item
            continue
        inner = tuple(_open_single(item.items, frames=frames))
        if len(item.paths) > 1 or (frames and len(inner) > 1):
            yield replace(item, items=inner)
        else:
            yield from inner
