"""The union of the model before and the model after: what is in both is drawn once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from bottleneck_opt.diagrams.picture import Change, Edge, Part, Picture, edge_pairs, unique_keys
from bottleneck_opt.diagrams.units import Unit, group_units
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.plan import Step


def picture_outcome(outcome: Outcome, *, split: bool = False) -> Picture:
    """The union of the model before and the model after; parts that are in both are drawn once.

    Args:
        outcome: Both models, and what became of which layer.
        split: Every operation is a part of its own.
    """
    before, after = (group_units(each.structure, split=split) for each in (outcome.before, outcome.after))
    steps = {name: step for step in outcome.plan.steps for name in step.names or (step.path,)}
    same = _match(before, after, removed=set(steps), added=_added_paths(outcome.plan.steps))
    merged = _merge(before, after, same)
    keys = dict(zip((id(unit) for unit, _ in merged), unique_keys(unit.head.name for unit, _ in merged), strict=True))
    skipped = {entry.path: entry for entry in outcome.skipped}
    sharings = {sharing.path: sharing for sharing in outcome.plan.sharings}
    parts = tuple(
        Part(
            keys[id(unit)], unit, change, _step_of(unit, change, steps), skipped.get(unit.head.path),
            sharings.get(unit.head.path),
        )
        for unit, change in merged
    )  # fmt: skip
    names_before = {unit.head.name: keys[id(unit)] for unit in before}
    names_after = {unit.head.name: keys[id(before[same[i]] if i in same else unit)] for i, unit in enumerate(after)}
    edges = _merge_edges(edge_pairs(before, names_before), edge_pairs(after, names_after))
    return Picture(parts, edges, outcome.before.cost, outcome.after.cost)


def _added_paths(steps: Iterable[Step]) -> set[str]:
    return {
        name if step.in_place else f"{name}.{layer.name}"
        for step in steps
        for name in (step.names or (step.path,))
        for layer in step.layers
    }


def _identities(units: Sequence[Unit], changed: set[str]) -> dict[tuple[object, ...], int]:
    """For each unchanged unit, what makes it recognisable in the other model, with its index."""
    seen: Counter[tuple[object, ...]] = Counter()
    found: dict[tuple[object, ...], int] = {}
    for index, unit in enumerate(units):
        head = unit.head
        if head.kind == "module" and head.path in changed:
            continue
        same_so_far = (head.kind, head.path, head.operation, head.call)
        identity = (*same_so_far, seen[same_so_far])
        found[identity] = index
        seen[same_so_far] += 1
    return found


def _match(before: Sequence[Unit], after: Sequence[Unit], *, removed: set[str], added: set[str]) -> dict[int, int]:
    """For each unit of the model after that is also in the model before, its index there."""
    known = _identities(before, removed)
    return {index: known[identity] for identity, index in _identities(after, added).items() if identity in known}


def _merge(before: Sequence[Unit], after: Sequence[Unit], same: dict[int, int]) -> list[tuple[Unit, Change]]:
    """Both models' units in one order, what was removed directly ahead of what was added for it."""
    kept, merged, position = set(same.values()), list[tuple[Unit, Change]](), 0

    def flush(until: int) -> int:
        merged.extend((before[i], Change.SAME if i in kept else Change.REMOVED) for i in range(position, until))
        return max(position, until)

    for index, unit in enumerate(after):
        if index in same:
            position = flush(same[index] + 1)
            continue
        gone = next((i for i in range(position, len(before)) if i in kept), len(before))
        position = flush(gone)
        merged.append((unit, Change.ADDED))
    flush(len(before))
    return merged


def _step_of(unit: Unit, change: Change, steps: dict[str, Step]) -> Step | None:
    if change is Change.SAME:
        return None
    path = unit.head.path
    narrower = path in steps and steps[path].in_place
    return steps.get(path) if change is Change.REMOVED or narrower else steps.get(path.rpartition(".")[0])


def _merge_edges(before: Iterable[tuple[str, str]], after: Iterable[tuple[str, str]]) -> tuple[Edge, ...]:
    old, new = dict.fromkeys(before), dict.fromkeys(after)
    kept = [Edge(*pair, Change.SAME if pair in new else Change.REMOVED) for pair in old]
    return (*kept, *(Edge(*pair, Change.ADDED) for pair in new if pair not in old))
