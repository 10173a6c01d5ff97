"""The tag row of a box: what changed, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bottleneck_opt.diagrams.layout import Box
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import loss_text, macs_text
from bottleneck_opt.plan import Step


def change_tag(box: Box) -> str:
    """What happened to a box, in words; empty when nothing did."""
    steps = [part.step for part in box.parts if part.step is not None]
    if box.change is Change.SAME:
        return ""
    words = _removed_words(steps) if box.change is Change.REMOVED else _added_words(box, steps)
    sign = "- REMOVED" if box.change is Change.REMOVED else "+ NEW"
    return " | ".join([sign + times_tag(box), *words])


def _removed_words(steps: Sequence[Step]) -> list[str]:
    saved = sum(step.before.macs - step.after.macs for step in steps)
    return [f"saves {macs_text(saved)}"] if saved > 0 else []


def _added_words(box: Box, steps: Sequence[Step]) -> list[str]:
    """Rank on the first of the layers put in, predicted loss on the last."""
    if not steps:
        return []
    last = box.first.path.rpartition(".")[2] == steps[0].layers[-1].name
    if last and len(steps[0].layers) > 1:
        return [f"predicted loss {loss_text(sum(step.predicted_loss for step in steps))}"]
    return [f"rank {rank_range(steps)} of {range_text(_ranks(step.full_ranks) for step in steps)}"]


def rank_range(steps: Sequence[Step]) -> str:
    """The ranks of equal layers: one, or smallest and largest."""
    by_size = sorted(steps, key=lambda step: step.ranks)
    return range_text(_ranks(step.ranks) for step in (by_size[0], by_size[-1]))


def _ranks(ranks: Sequence[int]) -> str:
    return "x".join(map(str, ranks))


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
