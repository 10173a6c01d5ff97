"""What a picture shows: units and the edges between them, each the same, removed or added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bottleneck_opt.diagrams.units import Unit, group_units
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.outcome import Skipped
from bottleneck_opt.plan import Sharing, Step


class Change(Enum):
    """What happened to an element between the model before and the model after.

    A part is never ``REPLACED``: that is a box that holds what was removed together with what was added for it.
    """

    SAME = "same"
    REMOVED = "removed"
    ADDED = "added"
    REPLACED = "replaced"


@dataclass(frozen=True)
class Part:
    """One unit in a picture.

    Attributes:
        key: Unique in the picture.
        unit: Its operations.
        change: What happened to it.
        step: The step that removed or added it, if one did.
        skipped: Why it was left alone, if that is known.
        sharing: The bottleneck that it is, if it is one that several layers read.
        milliseconds: What its modules take in one call of the model; None where they were not timed.
    """

    key: str
    unit: Unit
    change: Change = Change.SAME
    step: Step | None = None
    skipped: Skipped | None = None
    sharing: Sharing | None = None
    milliseconds: float | None = None

    @property
    def path(self) -> str:
        """Module path of its head."""
        return self.unit.head.path

    @property
    def inserted(self) -> bool:
        """Whether it is a bottleneck put beside what is left of the layer: a 1x1 that was not there before."""
        layer = self.unit.head.layer
        if self.sharing is not None:
            return True
        if self.change is not Change.ADDED or self.step is None or layer is None or layer.offsets > 1:
            return False
        return self.step.original.offsets > 1 or layer.name != self.step.layers[-1].name

    @property
    def stack(self) -> tuple[tuple[str, str], ...]:
        """The modules around it, without the model itself and without the stand-in for a rewritten layer."""
        hidden = {"", *(self.step.names if self.step else ())}
        return tuple(entry for entry in self.unit.head.stack if entry[0] not in hidden)


@dataclass(frozen=True)
class Edge:
    """A tensor that flows from one part to another."""

    source: str
    target: str
    change: Change = Change.SAME


@dataclass(frozen=True)
class Picture:
    """Parts in the order they run, the edges between them, and the costs the shares refer to.

    Attributes:
        before: Cost of the original model, the whole of all shares.
        after: Cost of the rewritten model; equal to ``before`` in the picture of one model.
    """

    parts: tuple[Part, ...]
    edges: tuple[Edge, ...]
    before: Cost
    after: Cost

    def without(self, change: Change) -> Picture:
        """The picture with all parts and edges of that kind left out."""
        parts = tuple(part for part in self.parts if part.change is not change)
        edges = tuple(edge for edge in self.edges if edge.change is not change)
        return replace(self, parts=parts, edges=edges)


def picture_model(traced: Traced, *, split: bool = False) -> Picture:
    """The picture of one model; ``split`` gives every operation a part of its own."""
    units = group_units(traced.structure, split=split)
    keys = unique_keys(unit.head.name for unit in units)
    names = dict(zip((unit.head.name for unit in units), keys, strict=True))
    parts = tuple(Part(names[unit.head.name], unit) for unit in units)
    edges = tuple(Edge(source, target) for source, target in edge_pairs(units, names))
    return Picture(parts, edges, traced.cost, traced.cost)


def unique_keys(names: Iterable[str]) -> list[str]:
    """The names as plain identifiers, numbered where two would be equal."""
    keys: list[str] = []
    used: set[str] = set()
    for name in names:
        plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in name) or "_"
        key, number = plain, 1
        while key in used:
            number += 1
            key = f"{plain}__{number}"
        used.add(key)
        keys.append(key)
    return keys


def edge_pairs(units: Sequence[Unit], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """For each unit and each unit it reads, the key of the other and its own, by the names of their heads."""
    for unit in units:
        for source in unit.inputs:
            yield names[source], names[unit.head.name]
