"""The tag row of a box: what changed, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bottleneck_opt.diagrams.heat import MACS, Measure
from bottleneck_opt.diagrams.layout import Box
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import ascii_text, change_text, elide_start, loss_text, macs_text, shrink_text
from bottleneck_opt.plan import IN_PLACE, SHARED, Step

MOST_LINES = 10
_SIGNS = {Change.REMOVED: "- REMOVED", Change.ADDED: "+ NEW", Change.REPLACED: "-/+ REPLACED"}


def shown_change(box: Box) -> Change:
    """How a box is drawn: a region of one of the models only is removed or added, not replaced."""
    changes = box.changes - {Change.SAME}
    return next(iter(changes)) if len(changes) == 1 else box.change


def change_tag(box: Box, measure: Measure = MACS) -> str:
    """What happened to a box, in words, and what it saves; empty when nothing did."""
    if box.change is Change.SAME:
        return ""
    words = _SIGNS[box.change] if box.region is None else _region_sign(box, len(steps_of(box)) // box.copies)
    return " | ".join(filter(None, [words + times_tag(box), *_tag_words(box, measure)]))


def _tag_words(box: Box, measure: Measure) -> list[str]:
    if Change.REMOVED in box.changes and Change.ADDED in box.changes:
        return [_saved_share(box, measure)]
    steps = steps_of(box)
    if box.region is not None:
        return _savings(steps) if Change.ADDED not in box.changes else []
    return _words(box, steps) if steps else _sharing_words(box)


def _saved_share(box: Box, measure: Measure) -> str:
    before = measure.of(part for part in box.parts if part.change is not Change.ADDED)
    after = measure.of(part for part in box.parts if part.change is not Change.REMOVED)
    return f"{change_text(before, after)} {measure.short}" if before else ""


def _region_sign(box: Box, count: int) -> str:
    what = f"{count} layer{'' if count == 1 else 's'}"
    if Change.ADDED not in box.changes:
        return f"- {what} REMOVED"
    return f"-/+ {what} REPLACED" if Change.REMOVED in box.changes else f"+ {what} NEW"


def fit_words(box: Box) -> str:
    """Rank and predicted loss of what was replaced, where a box holds both sides; the loss alone for a region."""
    steps = steps_of(box)
    if not steps:
        return ""
    if box.region is not None:
        return _loss(steps)
    return f"{rank_words(steps)} | {_loss(steps)}" if box.change is Change.REPLACED else ""


def steps_of(box: Box) -> list[Step]:
    """The steps behind a box, one for each call of a rewritten layer however many parts it has."""
    found = {(part.step.path, part.unit.head.call): part.step for part in box.parts if part.step is not None}
    return list(found.values())


def step_lines(box: Box) -> tuple[tuple[str, ...], ...]:
    """Cells for each change in a folded region: name, operation, form, rank, MACs before and after, how much less."""
    if box.region is None:
        return ()
    steps = steps_of(box)[: len(steps_of(box)) // box.copies]
    most = sorted(steps, key=lambda step: step.after.macs - step.before.macs)[:MOST_LINES]
    return tuple(_step_line(step, box.paths[0]) for step in steps if step in most)


def count_rest(box: Box) -> str:
    """What a folded region says of the changes that have no line of their own: those that save least."""
    rest = len(steps_of(box)) // box.copies - len(step_lines(box))
    return f"and {rest} more that save less; detail='layer' shows all" if box.region is not None and rest > 0 else ""


def _step_line(step: Step, region: str) -> tuple[str, ...]:
    name = elide_start(ascii_text(step.path.removeprefix(f"{region}.")))
    cost = shrink_text(macs_text(step.before.macs), macs_text(step.after.macs))
    return (name, step.original.label, f"{step.form}, {rank_words([step])}", cost,
            change_text(step.before.macs, step.after.macs))  # fmt: skip


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
    if steps[0].form == SHARED:
        return [_loss(steps)]
    last = box.first.path.rpartition(".")[2] == steps[0].layers[-1].name
    return [_loss(steps)] if last and len(steps[0].layers) > 1 else [rank_words(steps)]


def _savings(steps: Sequence[Step]) -> list[str]:
    saved = sum(step.before.macs - step.after.macs for step in steps)
    return [f"saves {macs_text(saved)}"] if saved > 0 else []


def _loss(steps: Sequence[Step]) -> str:
    return f"predicted loss {loss_text(sum(step.predicted_loss for step in steps))}"


def rank_words(steps: Sequence[Step]) -> str:
    """``rank 16 of 64``, or which channels a layer that got narrower keeps; smallest and largest of several."""
    if len(steps) == 1 and steps[0].form == IN_PLACE:
        return _kept_channels(steps[0])
    what = "channels" if all(step.in_place for step in steps) else "rank"
    ranks = f"{what} {rank_range([s.ranks for s in steps])}"
    exact = all(step.full_ranks for step in steps)
    return f"{ranks} of {rank_range([s.full_ranks for s in steps])}" if exact else ranks


def _kept_channels(step: Step) -> str:
    """``keeps 48 of 64 inputs, 60 of 64 outputs``, without the side that keeps all."""
    before, after = step.original, step.narrowed
    sides = [(after.in_channels, before.in_channels, "inputs"), (after.out_channels, before.out_channels, "outputs")]
    return f"keeps {', '.join(f'{left} of {full} {name}' for left, full, name in sides if left < full)}"


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
