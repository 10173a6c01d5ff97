"""Outcomes whose pages show everything: what else was possible, how long layers take, what is measured."""

from __future__ import annotations

from dataclasses import replace

from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.graph import Cost
from bottleneck_opt.outcome import Correction, Curve, Outcome, Tradeoff
from bottleneck_opt.plan import Step
from tests.samples import residual_outcome


def full_outcome(blocks: int = 3, ranks: dict[str, int] | None = None) -> Outcome:
    """The residual net with a frontier, curves, times and errors of every rewritten layer."""
    outcome = residual_outcome(ranks, blocks=blocks)
    steps, speed = outcome.plan.steps, outcome.verification.speed
    assert speed is not None
    timed = replace(speed, layers=tuple((step.path, 0.4, 0.3) for step in steps))
    return replace(
        outcome,
        verification=replace(outcome.verification, speed=timed),
        corrections=tuple(Correction(step.path, 0.03, 0.02, accepted=True) for step in steps),
        frontier=_frontier(outcome.before.cost),
        curves=tuple(map(_curve, steps)),
    )


def many_changes(blocks: int = 12) -> Outcome:
    """A net in which so much changed that a layer and what replaces it share a box, or whole blocks."""
    numbers = ((1,), (2,), (1, 2))  # neighbours are never alike
    names = [f"blocks.{block}.conv{number}" for block in range(blocks) for number in numbers[block % 3]]
    return full_outcome(blocks, {name: 2 + index % 11 for index, name in enumerate(names)})


def joined_changes() -> Outcome:
    """A net with just so many changes that a layer and what replaces it share a box, and no whole block does."""
    for blocks in range(5, 20):
        outcome = many_changes(blocks)
        boxes = fold(picture_outcome(outcome)).boxes
        if {(box.change, box.region) for box in boxes} == {(Change.SAME, None), (Change.REPLACED, None)}:
            return outcome
    raise AssertionError("no number of blocks is folded to that")


def _frontier(whole: Cost) -> tuple[Tradeoff, ...]:
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    return tuple(Tradeoff(Cost(round(whole.macs * each), whole.params), 0.3 * (1 - each) ** 2) for each in shares)


def _curve(step: Step) -> Curve:
    ranks = sorted({(2,), (8,), (12,), step.ranks})
    costs = tuple(Cost(step.before.macs * rank // 16) for (rank,) in ranks)
    return Curve(step.path, tuple(ranks), costs, tuple(step.predicted_loss * step.ranks[0] / rank for (rank,) in ranks))
