"""What a search above a floor says: how long it will take, what came of it and what a careful user should know."""

from __future__ import annotations

from collections.abc import Sequence

from bottleneck_opt.outcome import Promise, Tried
from bottleneck_opt.sites import Skip

FEW_SAMPLES = 30
_MINUTE, _HOUR = 60, 3600


def tell_time_left(seconds: Sequence[float], most: int) -> str:
    """How long the rest of a search takes at most, from how long each model took so far; nothing before the first.

    Example:
        >>> tell_time_left([50.0, 70.0], most=6)
        ', at most 4 min left'
    """
    if not seconds:
        return ""
    left = (most - len(seconds)) * sum(seconds) / len(seconds)
    size, unit = (1, "s") if left < 2 * _MINUTE else (_MINUTE, "min") if left < 2 * _HOUR else (_HOUR, "h")
    return f", at most {max(1, round(left / size))} {unit} left"


def tell_reason(promise: Promise, budget: str, out_of_reach: bool) -> str:
    """Why this model was returned.

    Args:
        promise: The search, but for its reason.
        budget: What was typed.
        out_of_reach: That budget cannot be reached, whatever the metric.
    """
    floor = f"{promise.floor:.6g} (the original's {promise.metric:.6g} less {promise.max_drop:g})"
    tried = promise.tried
    returned = promise.returned
    if not tried:
        return "no smaller model was found to be tried: the result is the original"
    if returned is None:
        nearest = tried[-1] if tried[-1].metric is not None else None
        last = f"; the last, {nearest.budget}, came to {nearest.metric:.6g}" if nearest else ""
        return (
            f"of {_count(tried)} tried none kept the metric at {floor} or above{last}. The result is the original, "
            "unchanged"
        )
    if promise.smallest_wanted:
        return f"the smallest of {_count(tried)} tried that keeps the metric at {floor} or above: {returned.budget}"
    unreached = f"; {budget} is out of reach whatever the metric" if out_of_reach else ""
    if returned.budget == budget:
        return f"the budget {budget} keeps the metric at {floor} or above"
    return (
        f"the nearest to the budget {budget} of {_count(tried)} tried that keeps the metric at {floor} or above: "
        f"{returned.budget}{unreached}"
    )


def list_promise_notes(promise: Promise, *, trained: bool) -> list[str]:
    """What a careful user should know about the search."""
    notes = [f"max_drop={promise.max_drop:g}: {promise.reason}"]
    if promise.returned is not None and promise.returned.metric is not None:
        again = promise.returned.confirmed
        notes.append(
            f"the metric was measured twice on the returned weights: {promise.returned.metric:.6g} and {again:.6g}; "
            f"evaluate was called {promise.evaluations} times in all"
        )
    notes += [f"max_drop: {each.budget} was not taken: {each.reason}" for each in promise.tried if each.reason]
    notes += [
        f"max_drop: {each.budget} was not taken: it held once ({each.metric:.6g}), and not when measured again "
        f"({each.confirmed:.6g})"
        for each in promise.tried
        if each.metric is not None and each.confirmed is not None and not each.held
    ]
    if trained and promise.tried:
        notes.append("max_drop: every model that was tried was trained by recover= before it was measured")
    if 1 < promise.samples < FEW_SAMPLES:
        notes.append(
            f"max_drop: evaluate returned only {promise.samples} scores: how sure the metric is, is itself unsure"
        )
    return notes


def explain_unused(promise: Promise) -> Skip:
    """Why a layer that could be rewritten was not."""
    if promise.returned is None:
        return Skip(
            "rewriting it was tried, and the metric dropped by more than max_drop=",
            "a larger max_drop=, more calibration data or recover= may allow it",
        )
    advice = "a larger max_drop= may reach it" if promise.smallest_wanted else "a smaller budget may reach it"
    return Skip("not needed for this size: others lose less", advice)


def _count(tried: Sequence[Tried]) -> str:
    return f"{len(tried)} model{'' if len(tried) == 1 else 's'}"
