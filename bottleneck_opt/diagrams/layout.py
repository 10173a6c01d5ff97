"""What is put on paper: boxes, each standing for one or more parts, groups around them, and the edges between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bottleneck_opt.diagrams.picture import Change, Edge, Part, Picture
from bottleneck_opt.graph import Cost


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        key: Unique in the figure.
        parts: What it stands for: one part, a removed part with what replaces it, or a whole unchanged region; then
            the same for each copy.
        copies: How many equal things it stands for.
        paths: The module path of each copy.
        region: Class name of the region that is folded into it; None for a box of one operation or one rewritten layer.
    """

    key: str
    parts: tuple[Part, ...]
    copies: int
    paths: tuple[str, ...]
    region: str | None = None

    @property
    def first(self) -> Part:
        """The part whose texts stand for all copies."""
        return self.parts[0]

    @property
    def change(self) -> Change:
        """What happened to it."""
        return self.first.change if len(self.changes) == 1 else Change.REPLACED

    @property
    def changes(self) -> frozenset[Change]:
        """What happened to its parts."""
        return frozenset(part.change for part in self.parts)

    @property
    def size(self) -> int:
        """Number of parts in one copy."""
        return len(self.parts) // self.copies

    @property
    def costs(self) -> tuple[Cost, ...]:
        """The cost of each copy; what is left of it where something was replaced."""
        hidden = Change.REMOVED if Change.ADDED in self.changes else None
        return self.costs_without(hidden)

    def costs_without(self, change: Change | None) -> tuple[Cost, ...]:
        """The cost of each copy without the parts of one kind."""
        copies = (self.parts[start : start + self.size] for start in range(0, len(self.parts), self.size))
        return tuple(add_part_costs(part for part in copy if part.change is not change) for copy in copies)


@dataclass(frozen=True)
class Group:
    """Equal blocks in a row, drawn once inside a frame.

    Attributes:
        paths: The module path of each copy.
        region: Class name of the block.
        items: What one copy consists of.
    """

    paths: tuple[str, ...]
    region: str
    items: tuple[Box | Group, ...]

    def boxes(self) -> Iterator[Box]:
        """Every box inside, in order."""
        return all_boxes(self.items)

    def cost(self, without: Change) -> Cost:
        """The cost of all copies, leaving out what is removed (or added)."""
        return add_part_costs(part for box in self.boxes() for part in box.parts if part.change is not without)


@dataclass(frozen=True)
class Line:
    """An edge between two boxes, with how many tensors it stands for in one copy."""

    source: str
    target: str
    change: Change
    tensors: int = 1


@dataclass(frozen=True)
class Layout:
    """A figure before it is written as DOT.

    Attributes:
        picture: What it shows.
        items: Boxes and groups in order.
        lines: Edges between boxes.
    """

    picture: Picture
    items: tuple[Box | Group, ...]
    lines: tuple[Line, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Every box, in order."""
        return tuple(all_boxes(self.items))

    @property
    def operations(self) -> int:
        """How many operations the model has, of those that are ever drawn."""
        return sum(len(part.unit.nodes) for part in self.picture.parts)

    @property
    def shown(self) -> int:
        """How many operations have a place of their own in the figure."""
        shown = (part for box in self.boxes if box.region is None for part in box.parts[: box.size])
        return sum(len(part.unit.nodes) for part in shown)


def all_boxes(items: Iterable[Box | Group]) -> Iterator[Box]:
    """Every box in a list of boxes and groups, in order."""
    for item in items:
        if isinstance(item, Box):
            yield item
        else:
            yield from item.boxes()


def add_part_costs(parts: Iterable[Part]) -> Cost:
    """The costs of several parts added up."""
    return sum((part.unit.cost for part in parts), Cost())


def lay_out(picture: Picture, items: tuple[Box | Group, ...]) -> Layout:
    """The layout of a picture whose boxes are known; edges inside a box and between copies are left out."""
    owner = {part.key: box for box in all_boxes(items) for part in box.parts}
    return Layout(picture, items, tuple(_lines(picture.edges, owner)))


def box_parts(parts: tuple[Part, ...]) -> Box:
    """A box for one part, or for a removed part and those that replace it."""
    return Box(parts[0].key, parts, 1, (parts[0].path,))


def _lines(edges: Iterable[Edge], owner: Mapping[str, Box]) -> Iterator[Line]:
    """One line for all edges between two boxes; backward ones lead from one copy of a block to the next."""
    order = {key: index for index, key in enumerate(dict.fromkeys(box.key for box in owner.values()))}
    sources: dict[tuple[str, str, Change], set[str]] = {}
    for edge in edges:
        start, end = owner[edge.source], owner[edge.target]
        if order[start.key] < order[end.key]:
            change = Change.SAME if Change.REPLACED in (start.change, end.change) else edge.change
            sources.setdefault((start.key, end.key, change), set()).add(edge.source)
    boxes = {box.key: box for box in owner.values()}
    for (source, target, change), keys in sources.items():
        box = boxes[source]
        tensors = 1 if box.change is Change.REPLACED else max(1, len(keys) // box.copies)
        yield Line(source, target, change, tensors)
