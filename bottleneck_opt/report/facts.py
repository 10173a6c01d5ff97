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
from bottleneck_opt.outcome import Outcome

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
    if speed is not None and outcome.plan.steps:  # the difference between two equal models is that of the clock
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
    change = f"the output changed by {_change_words(outcome)}"
    lost = [change if checked.measured_change is not None else "output change not measured"]
    if checked.metric_before is not None and checked.metric_after is not None:
        lost.append(f"metric {checked.metric_before:.4g} -> {checked.metric_after:.4g}")
    elif checked.agreement is not None:
        lost.append(f"same top class on {_percent(checked.agreement)}")
    return lost


def _change_words(outcome: Outcome) -> str:
    """The change on inputs that were not fitted to, where it is known."""
    checked = outcome.verification
    if checked.held_out_change is not None and not outcome.made_up:
        return f"{loss_text(checked.held_out_change)} on {checked.held_out_data}"
    return f"{_measured(outcome)}{' on made-up inputs' if outcome.made_up else ''}"


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


def budget_words(outcome: Outcome) -> str:
    """What was asked for and whether it was reached: ``budget macs=0.5: met``."""
    promise = outcome.promise
    if promise is not None and promise.smallest_wanted:
        return f"{'smallest' if promise.returned else 'only the original is'} within max_drop {promise.max_drop:g}"
    return f"budget {outcome.plan.budget}: {'met' if outcome.budget_met else 'NOT met'}"


def layers_changed(outcome: Outcome) -> str:
    """How many of the layers that were looked at were rewritten: ``2 of 7``."""
    changed = len(outcome.plan.steps)
    return f"{changed} of {changed + len(outcome.skipped)}"


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
    data = "made-up examples" if outcome.made_up else "examples used for fitting"
    value, note, where = _measured(outcome), f"on {checked.examples} {data}", "on these"
    if checked.held_out_change is not None and not outcome.made_up:
        fitted = f"on the {checked.examples} fitted to"
        value, note, where = loss_text(checked.held_out_change), f"on {checked.held_out_data}; {value} {fitted}", fitted
    note = f"{note}; predicted {loss_text(checked.predicted_change)}{_untrained(outcome)}"
    numbers = [Number("output change", "", value, "", note, CHANGE_MEANING, saves=False)]
    if checked.agreement is not None:
        numbers.append(Number("same top class", "", _percent(checked.agreement), "", where, saves=False))
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
    note = f"{found.held_out} {'examples and new mixes' if found.mixed else 'held-out examples'}, {kept}"
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
