"""The tag row of a box: what changed, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bottleneck_opt.diagrams.layout import Box
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import ascii_text, elide_middle, loss_text, macs_text
from bottleneck_opt.plan import SHARED, Step

_SIGNS = {Change.REMOVED: "- REMOVED", Change.ADDED: "+ NEW", Change.REPLACED: "-/+ REPLACED"}


def change_tag(box: Box) -> str:
    """What happened to a box, in words; empty when nothing did."""
    if box.change is Change.SAME:
        return ""
    steps = steps_of(box)
    if box.region is not None:
        return f"{_region_sign(box, len(steps) // box.copies)}{times_tag(box)} | {_loss(steps)}"
    return " | ".join([_SIGNS[box.change] + times_tag(box), *(_words(box, steps) if steps else _sharing_words(box))])


def _region_sign(box: Box, count: int) -> str:
    if Change.ADDED not in box.changes:
        return f"- {count} REMOVED"
    return f"-/+ {count} REPLACED" if Change.REMOVED in box.changes else f"+ {count} NEW"


def steps_of(box: Box) -> list[Step]:
    """The steps behind a box, one for each call of a rewritten layer however many parts it has."""
    found = {(part.step.path, part.unit.head.call): part.step for part in box.parts if part.step is not None}
    return list(found.values())


def step_lines(box: Box) -> tuple[str, ...]:
    """One line for each change in a folded region: ``conv2: conv 3x3, rank 16 of 64, 116 MMAC -> 52.2 MMAC``."""
    if box.region is None or box.change is not Change.REPLACED:
        return ()
    return tuple(_step_line(step, box.paths[0]) for step in steps_of(box)[: len(steps_of(box)) // box.copies])


def _step_line(step: Step, region: str) -> str:
    name = step.path.removeprefix(f"{region}.")
    cost = f"{macs_text(step.before.macs)} -> {macs_text(step.after.macs)}"
    return f"{elide_middle(ascii_text(name))}: {step.original.label}, {step.form}, {_rank([step])}, {cost}"


def _sharing_words(box: Box) -> list[str]:
    """Rank and number of readers of a bottleneck that several layers share."""
    shared = [part.sharing for part in box.parts if part.sharing is not None]
    if not shared:
        return []
    ranks, full = rank_range([(s.rank,) for s in shared]), rank_range([(s.full_rank,) for s in shared])
    return [f"rank {ranks} of {full}", f"for {range_text(str(len(s.members)) for s in shared)} layers"]


def _words(box: Box, steps: Sequence[Step]) -> list[str]:
    """Savings on what went; rank on the first of the layers put in, predicted loss on the last."""
    if box.change is Change.REMOVED:
        return _savings(steps)
    if box.change is Change.REPLACED:
        return [_rank(steps), _loss(steps)]
    if steps[0].form == SHARED:
        return [_loss(steps)]
    last = box.first.path.rpartition(".")[2] == steps[0].layers[-1].name
    return [_loss(steps)] if last and len(steps[0].layers) > 1 else [_rank(steps)]


def _savings(steps: Sequence[Step]) -> list[str]:
    saved = sum(step.before.macs - step.after.macs for step in steps)
    return [f"saves {macs_text(saved)}"] if saved > 0 else []


def _loss(steps: Sequence[Step]) -> str:
    return f"predicted loss {loss_text(sum(step.predicted_loss for step in steps))}"


def _rank(steps: Sequence[Step]) -> str:
    what = "channels" if all(step.in_place for step in steps) else "rank"
    ranks = f"{what} {rank_range([s.ranks for s in steps])}"
    exact = all(step.full_ranks for step in steps)
    return f"{ranks} of {rank_range([s.full_ranks for s in steps])}" if exact else ranks


def rank_range(ranks: Sequence[tuple[int, ...]]) -> str:
    """The ranks of equal layers: one, or smallest and largest.

    Example:
        >>> rank_range([(8, 16), (8, 16)]), rank_range([(128,), (32,), (64,)])
        ('8x16', '32 .. 128')
    """
    return range_text("x".join(map(str, each)) for each in (min(ranks), max(ranks)))


def times_tag(box: Box) -> str:
    """`` x5`` for a box that stands for five copies, nothing for a single one."""
    return f" x{box.copies}" if box.copies > 1 else ""


def range_text(texts: Iterable[str]) -> str:
    """The texts, equal ones once; first and last when they differ.

    Example:
        >>> range_text(["16", "16"]), range_text(["16", "20", "24"])
        ('16', '16 .. 24')
    """
    different = list(dict.fromkeys(texts))
    return different[0] if len(different) == 1 else f"{different[0]} .. {different[-1]}"
