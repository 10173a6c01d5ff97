"""The facts of an outcome in words, shared by the text and the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bottleneck_opt.diagrams.wording import (
    CHANGE_MEANING,
    change_text,
    count_text,
    elide_middle,
    loss_text,
    macs_text,
    milliseconds_text,
)
from bottleneck_opt.outcome import Outcome, Skipped
from bottleneck_opt.plan import Sharing, Step

_INPUTS_LIMIT = 40
_UNSTEADY = 0.2


@dataclass(frozen=True)
class Number:
    """One headline number.

    Attributes:
        name: What it is.
        before, after: Its value in words; ``before`` is empty for a number that only a pair of models has.
        change: The difference in words, or empty.
        note: Where it comes from, or empty.
        meaning: What it measures, where the name alone does not say, or empty.
    """

    name: str
    before: str
    after: str
    change: str = ""
    note: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One rewritten layer in words."""

    path: str
    form: str
    rank: str
    fraction: float
    macs_before: str
    macs_after: str
    macs_change: str
    params_before: str
    params_after: str
    params_change: str
    loss: str
    pass_name: str
    original: str


@dataclass(frozen=True)
class SkipGroup:
    """Layers that were left alone for the same reason.

    Attributes:
        reason: The reason.
        advice: What to do about it, or empty.
        entries: The layers.
        share: Their share of the original model's MACs.
    """

    reason: str
    advice: str
    entries: tuple[Skipped, ...]
    share: float


def headline(outcome: Outcome) -> str:
    """The outcome in one line."""
    before, after = outcome.before.cost, outcome.after.cost
    words = [
        f"{macs_text(before.macs)} -> {macs_text(after.macs)} ({change_text(before.macs, after.macs)})",
        f"{count_text(before.params)} -> {count_text(after.params)} params "
        f"({change_text(before.params, after.params)})",
        f"output change {_measured(outcome)}",
    ]
    return ", ".join(words)


def list_numbers(outcome: Outcome) -> tuple[Number, ...]:
    """The headline numbers that are known, most important first."""
    before, after = outcome.before.cost, outcome.after.cost
    inputs = f"one call, {elide_middle(outcome.provenance.inputs, _INPUTS_LIMIT)}"
    return (
        Number("MACs", macs_text(before.macs), macs_text(after.macs), change_text(before.macs, after.macs), inputs),
        Number("params", count_text(before.params), count_text(after.params), change_text(before.params, after.params)),
        *_speed_number(outcome),
        *_quality_numbers(outcome),
        *_metric_number(outcome),
        *_recovery_number(outcome),
    )


def layers_changed(outcome: Outcome) -> str:
    """How many of the layers that were looked at were rewritten: ``2 of 7``."""
    changed = len(outcome.plan.steps)
    return f"{changed} of {changed + len(outcome.skipped)}"


def list_layers(outcome: Outcome) -> tuple[LayerRow, ...]:
    """Every rewritten layer, in the plan's order, and the bottlenecks that several of them read."""
    return (*map(_layer_row, outcome.plan.steps), *map(_sharing_row, outcome.plan.sharings))


def group_skipped(skipped: tuple[Skipped, ...]) -> tuple[SkipGroup, ...]:
    """Layers left alone, grouped by reason, largest share first."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for entry in skipped:
        groups.setdefault((entry.reason, entry.advice), []).append(entry)
    made = [
        SkipGroup(reason, advice, tuple(entries), sum(entry.share for entry in entries))
        for (reason, advice), entries in groups.items()
    ]
    return tuple(sorted(made, key=lambda group: (-group.share, group.reason)))


def rank_text(step: Step) -> str:
    """The rank and the rank at which nothing would be lost: ``16 of 64``; the rank alone where there is none."""
    ranks = "x".join(map(str, step.ranks))
    return f"{ranks} of {'x'.join(map(str, step.full_ranks))}" if step.full_ranks else ranks


def _speed_number(outcome: Outcome) -> tuple[Number, ...]:
    speed = outcome.verification.speed
    if speed is None:
        return ()
    note = f"median of {speed.runs} calls, {speed.device}, {speed.threads} thread{'' if speed.threads == 1 else 's'}"
    if speed.spread > _UNSTEADY:
        note = f"unsteady machine, {note}"
    before, after = milliseconds_text(speed.before), milliseconds_text(speed.after)
    return (Number("time a call", before, after, change_text(speed.before, speed.after), note),)


def _quality_numbers(outcome: Outcome) -> tuple[Number, ...]:
    checked = outcome.verification
    note = f"predicted {loss_text(checked.predicted_change)}{_untrained(outcome)}"
    numbers = [Number("output change", "", _measured(outcome), "", note, CHANGE_MEANING)]
    if checked.agreement is not None:
        note = f"on {checked.examples} examples"
        numbers.append(Number("same top class", "", f"{100 * checked.agreement:.1f} %", "", note))
    return tuple(numbers)


def _untrained(outcome: Outcome) -> str:
    return " before recovery" if outcome.recovery is not None and outcome.recovery.accepted else ""


def _recovery_number(outcome: Outcome) -> tuple[Number, ...]:
    found = outcome.recovery
    if found is None:
        return ()
    kept = f"weights of step {found.best_step} of {found.steps}" if found.accepted else "nothing did better, not kept"
    change = change_text(found.before, found.after) if found.accepted and math.isfinite(found.before) else ""
    note = f"{found.held_out} held-out examples, {kept}"
    return (Number("loss by recovery", f"{found.before:.3g}", f"{found.after:.3g}", change, note),)


def _measured(outcome: Outcome) -> str:
    change = outcome.verification.measured_change
    return "not measured" if change is None else loss_text(change)


def _metric_number(outcome: Outcome) -> tuple[Number, ...]:
    before, after = outcome.verification.metric_before, outcome.verification.metric_after
    if before is None or after is None:
        return ()
    return (Number("metric", f"{before:.4g}", f"{after:.4g}", f"{after - before:+.4g}", "what evaluate returned"),)


def _sharing_row(sharing: Sharing) -> LayerRow:
    """A new layer: its predicted loss is told with the layers that read it."""
    return LayerRow(
        path=sharing.path,
        form=f"for {len(sharing.members)} layers",
        rank=f"{sharing.rank} of {sharing.full_rank}",
        fraction=min(1.0, sharing.rank / max(1, sharing.full_rank)),
        macs_before="0",
        macs_after=count_text(sharing.cost.macs),
        macs_change="new",
        params_before="0",
        params_after=count_text(sharing.cost.params),
        params_change="new",
        loss="-",
        pass_name=sharing.pass_name,
        original="-",
    )


def _layer_row(step: Step) -> LayerRow:
    return LayerRow(
        path=step.path,
        form=step.form,
        rank=rank_text(step),
        fraction=min(1.0, sum(step.ranks) / max(1, sum(step.full_ranks or step.ranks))),
        macs_before=count_text(step.before.macs),
        macs_after=count_text(step.after.macs),
        macs_change=change_text(step.before.macs, step.after.macs),
        params_before=count_text(step.before.params),
        params_after=count_text(step.after.params),
        params_change=change_text(step.before.params, step.after.params),
        loss=loss_text(step.predicted_loss),
        pass_name=step.pass_name,
        original=step.original.label,
    )
