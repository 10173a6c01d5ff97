"""Fold a picture until it fits on a page; nothing that changed is ever hidden.

Equal blocks in a row become one block with a count, and regions in which nothing changed become one box. The least
folding that keeps the figure below a number of boxes is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from bottleneck_opt.diagrams.layout import Box, Group, Layout, all_boxes, box_parts, lay_out
from bottleneck_opt.diagrams.likeness import Likeness
from bottleneck_opt.diagrams.picture import Change, Part, Picture
from bottleneck_opt.diagrams.wording import paths_text
from bottleneck_opt.errors import InputError

AIM = 28
MOST_BOXES = 44
DETAILS = ("auto", "stage", "block", "layer", "operation")
_FEWEST_STAGES = 3
_SHORTEST_RUN = 3
Item = Box | Group
Bundle = tuple[Part, ...]


@dataclass(frozen=True)
class Level:
    """How much is folded.

    Attributes:
        height: Unchanged regions of at most this height become one box; 0 for none. A block of layers has height 1.
        repeats: Equal blocks in a row are drawn once.
        loose: Blocks that differ in numbers only (widths, ranks, costs) count as equal.
        joined: A removed layer and what replaces it share one box.
        blocks: Regions in which something changed become one box too, with a line for each change.
            runs: Neighbours in which nothing changed become one box, whatever they are.
        frames: Modules that are there only once have a frame too.
    """

    height: int = 0
    repeats: bool = True
    loose: bool = False
    joined: bool = False
    blocks: bool = False
    runs: bool = False
    frames: bool = False


def find_detail(name: str) -> str:
    """The name itself, if there is such a level of detail.

    Raises:
        InputError: There is none of that name.
    """
    if name not in DETAILS:
        raise InputError(f"detail: got {name!r}; expected one of {', '.join(map(repr, DETAILS))}.")
    return name


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
    highest = max(map(_height, _tree(picture, joined=False)), default=0)
    items: tuple[Item, ...] = ()
    level = Level()
    for level, limit in _choose_levels(picture, detail, highest, aim, most):
        items = _fold_items(_tree(picture, joined=level.joined), level, likeness)
        if _count(items) <= limit:
            break
    return lay_out(picture, tuple(_open_single(items, frames=level.frames)))


def _choose_levels(
    picture: Picture, detail: str, highest: int, aim: int, most: int
) -> Iterable[tuple[Level, int]]:  # fmt: skip
    """The levels to try; one alone where the user chose it."""
    framed = all(part.change is Change.SAME for part in picture.parts)
    if detail == "auto":
        return _levels(highest, aim, most, framed=framed)
    chosen = {
        "operation": Level(repeats=False, frames=framed),
        "layer": Level(frames=framed),
        "block": Level(min(2, highest), joined=True, blocks=True),
        "stage": Level(_stage_height(_tree(picture, joined=True)), joined=True, blocks=True),
    }
    return [(chosen[detail], 0)]


def _stage_height(items: Sequence[Item]) -> int:
    """The height of the outermost modules that are several: one that holds almost everything is looked into."""
    groups = [item for item in items if isinstance(item, Group)]
    inner = max(groups, key=_height, default=None)
    if inner is not None and len(groups) < _FEWEST_STAGES and any(isinstance(item, Group) for item in inner.items):
        return _stage_height(inner.items)
    return max(map(_height, groups), default=0)


def _levels(highest: int, aim: int, most: int, *, framed: bool) -> Iterator[tuple[Level, int]]:
    """From no folding to all of it, each with the number of boxes at which it is enough."""
    low = min(2, highest)
    yield Level(repeats=False, frames=framed), aim
    yield from ((Level(height, frames=framed), aim) for height in range(low))
    yield Level(low), aim
    yield Level(low, loose=True), aim
    yield Level(low, joined=True), aim
    yield Level(low, joined=True, loose=True), aim
    yield from ((Level(height, joined=True, blocks=True), most) for height in range(low, highest))
    yield Level(max(0, highest - 1), joined=True, blocks=True, runs=True), most


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
    return 0 if isinstance(item, Box) else 1 + max(map(_height, item.items))


def _parts(item: Item) -> tuple[Part, ...]:
    return item.parts if isinstance(item, Box) else tuple(part for box in item.boxes() for part in box.parts)


def _foldable(item: Item) -> bool:
    """Whether nothing in it changed and it is not an end of the model."""
    return all(part.change is Change.SAME for part in _parts(item)) and not _is_end(item)


def _is_end(item: Item) -> bool:
    return any(part.unit.head.kind in ("input", "output") for part in _parts(item))


def _fold_items(items: Sequence[Item], level: Level, likeness: Likeness) -> tuple[Item, ...]:
    folded = [_fold_item(item, level, likeness) for item in items]
    if level.repeats:
        folded = list(_fold_repeats(folded, level, likeness))
    return tuple(_fold_runs(folded)) if level.runs else tuple(folded)


def _fold_item(item: Item, level: Level, likeness: Likeness) -> Item:
    if isinstance(item, Box):
        return item
    whole = _foldable(item) or (level.blocks and not _is_end(item))
    if _height(item) <= level.height and whole and len(_parts(item)) > 1:
        return _one_box(item.paths[0], item.region, _parts(item))
    return replace(item, items=_fold_items(item.items, level, likeness))


def _one_box(path: str, region: str, parts: tuple[Part, ...]) -> Box:
    return Box(parts[0].key, parts, 1, (path,), region)


def _fold_repeats(items: Iterable[Item], level: Level, likeness: Likeness) -> Iterator[Item]:
    """Equal neighbours merged; single operations are never merged."""

    def kind(item: Item) -> object:
        path, parts = _first_path(item), _parts(item)
        whole = isinstance(item, Group) or item.region is not None
        return (type(item), likeness.of(path, parts, loose=level.loose)) if whole else parts[0].key

    for _, run in groupby(items, key=kind):
        copies = list(run)
        yield copies[0] if len(copies) == 1 else _merge(copies, outermost=True)


def _first_path(item: Item) -> str:
    return item.paths[0]


def _merge(copies: Sequence[Item], *, outermost: bool = False) -> Item:
    """One item that stands for several equal ones."""
    first = copies[0]
    if isinstance(first, Box):
        boxes = [copy for copy in copies if isinstance(copy, Box)]
        parts = tuple(part for box in boxes for part in box.parts)
        paths = tuple(path for box in boxes for path in box.paths)
        return replace(first, parts=parts, copies=sum(box.copies for box in boxes), paths=paths)
    groups = [copy for copy in copies if isinstance(copy, Group)]
    inner = tuple(_merge(column) for column in zip(*(group.items for group in groups), strict=True))
    return replace(first, paths=tuple(g.paths[0] for g in groups) if outermost else first.paths, items=inner)


def _fold_runs(items: Iterable[Item]) -> Iterator[Item]:
    for foldable, run in groupby(items, key=_foldable):
        together = list(run)
        parts = tuple(part for item in together for part in _parts(item))
        if not foldable or len(together) < _SHORTEST_RUN:
            yield from together
            continue
        yield _one_box(paths_text([together[0].paths[0], together[-1].paths[-1]]), "", parts)


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
