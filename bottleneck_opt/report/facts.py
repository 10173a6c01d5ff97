"""The facts of an outcome in words, shared by the text and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        saves: It tells what was saved, not what that cost.
    """

    name: str
    before: str
    after: str
    change: str = ""
    note: str = ""
    meaning: str = ""
    saves: bool = True


@dataclass(frozen=True)
class LayerRow:
    """One rewritten layer in words.

    ``loss_share`` is its loss as a share of the largest, ``order`` has the numbers that columns are sorted by.
    """

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
    loss_share: float
    pass_name: str
    original: str
    error: str
    time: str
    time_change: str
    order: Mapping[str, float]


@dataclass(frozen=True)
class DroppedRow:
    """Channels between two layers of which some are no longer made, in words.

    Attributes:
        producer, consumer: The layers.
        kept: How many channels are left; ``fraction`` is their share.
        loss: What dropping them is predicted to cost, on top of the layers' own losses; ``order`` as a number,
            ``loss_share`` as a share of the largest.
    """

    producer: str
    consumer: str
    kept: str
    fraction: float
    loss: str
    order: float
    loss_share: float


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


def visible_text(text: str) -> str:
    r"""A text of the user's with what cannot be seen, or turns writing round, as an escape.

    Example:
        >>> visible_text("r\u00e9seau\u202e" + chr(10))
        'r\xe9seau\\u202e\\n'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def headline(outcome: Outcome) -> str:
    """What was saved and what it cost, in one sentence."""
    before, after, speed = outcome.before.cost, outcome.after.cost, outcome.verification.speed
    saved = [_less(before.macs, after.macs, "MACs"), _less(before.params, after.params, "params")]
    if speed is not None:
        saved.append(_less(speed.before, speed.after, "time a call", few="less", many="more"))
    return f"{', '.join(saved)}; {', '.join(_lost(outcome))}."


def _less(before: float, after: float, name: str, *, few: str = "fewer", many: str = "more") -> str:
    """``25 % fewer MACs``."""
    if not before or before == after:
        return f"same {name}"
    percent = 100 * abs(after - before) / before
    return f"{percent:.{0 if percent >= 10 else 1}f} % {few if after < before else many} {name}"


def _lost(outcome: Outcome) -> list[str]:
    checked = outcome.verification
    change = f"the output changed by {_measured(outcome)}"
    lost = [change if checked.measured_change is not None else "output change not measured"]
    if checked.metric_before is not None and checked.metric_after is not None:
        lost.append(f"metric {checked.metric_before:.4g} -> {checked.metric_after:.4g}")
    elif checked.agreement is not None:
        lost.append(f"same top class on {_percent(checked.agreement)}")
    return lost


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
    errors, times = error_of(outcome), times_of(outcome)
    whole = _largest_loss(outcome)
    rows = (_layer_row(step, whole, errors.get(step.path), times.get(step.path)) for step in outcome.plan.steps)
    return (*rows, *map(_sharing_row, outcome.plan.sharings))


def list_dropped(outcome: Outcome) -> tuple[DroppedRow, ...]:
    """Where channels were dropped between two layers, in the plan's order."""
    whole = _largest_loss(outcome)
    return tuple(
        DroppedRow(
            each.producer, each.consumer, f"{len(each.kept)} of {each.channels}", len(each.kept) / each.channels,
            loss_text(each.predicted_loss), each.predicted_loss, each.predicted_loss / whole,
        )
        for each in outcome.plan.selections
    )  # fmt: skip


def _largest_loss(outcome: Outcome) -> float:
    losses = [step.predicted_loss for step in outcome.plan.steps]
    losses += [each.predicted_loss for each in outcome.plan.selections]
    return max(losses, default=0.0) or 1.0


def error_of(outcome: Outcome) -> dict[str, float]:
    """For each layer that refitting looked at, the error of its output that was measured there, after it."""
    return {each.path: each.after if each.accepted else each.before for each in outcome.corrections}


def times_of(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Milliseconds in each rewritten layer before and after, where that was timed."""
    speed = outcome.verification.speed
    return {} if speed is None else {path: (before, after) for path, before, after in speed.layers}


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
    """The rank and the rank at which nothing would be lost: ``16 of 64``."""
    return f"{'x'.join(map(str, step.ranks))} of {'x'.join(map(str, step.full_ranks))}"


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
    numbers = [Number("output change", "", _measured(outcome), "", note, CHANGE_MEANING, saves=False)]
    if checked.agreement is not None:
        note = f"on {checked.examples} examples"
        numbers.append(Number("same top class", "", _percent(checked.agreement), "", note, saves=False))
    return tuple(numbers)


def _percent(share: float) -> str:
    """A share with one digit, and all of it without: only all of it is 100 %."""
    return "100 %" if share == 1 else f"{min(99.9, 100 * share):.1f} %"


def _untrained(outcome: Outcome) -> str:
    return " before recovery" if outcome.recovery is not None and outcome.recovery.accepted else ""


def _recovery_number(outcome: Outcome) -> tuple[Number, ...]:
    found = outcome.recovery
    if found is None:
        return ()
    kept = f"weights of step {found.best_step} of {found.steps}" if found.accepted else "nothing did better, not kept"
    change = change_text(found.before, found.after) if found.accepted and math.isfinite(found.before) else ""
    note = f"{found.held_out} held-out examples, {kept}"
    return (Number("loss by recovery", f"{found.before:.3g}", f"{found.after:.3g}", change, note, saves=False),)


def _measured(outcome: Outcome) -> str:
    change = outcome.verification.measured_change
    return "not measured" if change is None else loss_text(change)


def _metric_number(outcome: Outcome) -> tuple[Number, ...]:
    before, after = outcome.verification.metric_before, outcome.verification.metric_after
    if before is None or after is None:
        return ()
    change = f"{after - before:+.4g}" if after != before else "no change"
    return (Number("metric", f"{before:.4g}", f"{after:.4g}", change, "what evaluate returned", saves=False),)


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
        loss_share=0.0,
        pass_name=sharing.pass_name,
        original="-",
        error="",
        time="",
        time_change="",
        order={"macs": -sharing.cost.macs, "params": -sharing.cost.params, "loss": 0.0},
    )


def _times(before: float, after: float) -> str:
    """Both with the unit once where it is the same."""
    return f"{milliseconds_text(before).removesuffix(' ms')} -> {milliseconds_text(after)}"


def _layer_row(step: Step, whole: float, error: float | None, time: tuple[float, float] | None) -> LayerRow:
    return LayerRow(
        path=step.path,
        form=step.form,
        rank=rank_text(step),
        fraction=min(1.0, sum(step.ranks) / max(1, sum(step.full_ranks))),
        macs_before=count_text(step.before.macs),
        macs_after=count_text(step.after.macs),
        macs_change=change_text(step.before.macs, step.after.macs),
        params_before=count_text(step.before.params),
        params_after=count_text(step.after.params),
        params_change=change_text(step.before.params, step.after.params),
        loss=loss_text(step.predicted_loss),
        loss_share=step.predicted_loss / whole,
        pass_name=step.pass_name,
        original=step.original.label,
        error="" if error is None else loss_text(error),
        time="" if time is None else _times(*time),
        time_change="" if time is None else change_text(*time),
        order={
            "macs": step.before.macs - step.after.macs,
            "params": step.before.params - step.after.params,
            "loss": step.predicted_loss,
            **({} if error is None else {"error": error}),
            **({} if time is None else {"time": time[0] - time[1]}),
        },
    )
