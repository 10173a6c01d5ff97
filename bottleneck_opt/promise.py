"""The promise: the smallest model whose metric drops by no more than was allowed, or the original.

Models from large to small are made from the same calibration and the same offers of the passes, and measured, few of
them: the way down is walked until a model does not hold, and from there halved. What is returned was measured itself,
twice, on the very weights that are returned: that the metric falls steadily is never relied on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bottleneck_opt.budget import Budget
from bottleneck_opt.carrying import Carried, carry_out
from bottleneck_opt.chooser import Chooser
from bottleneck_opt.choosing import Choice, Offers
from bottleneck_opt.distribution import Ranks
from bottleneck_opt.evaluating import Answer, Evaluate, ask_about_copy, check_answer
from bottleneck_opt.fitting import Fit
from bottleneck_opt.floor import Floor, Verdict
from bottleneck_opt.outcome import Promise, Tried
from bottleneck_opt.plan import Plan
from bottleneck_opt.promise_words import tell_reason, tell_time_left
from bottleneck_opt.recovery import Recovery
from bottleneck_opt.span import Span
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Stepping
from bottleneck_opt.subject import Subject
from bottleneck_opt.walking import Look, Stride, walk

MOST_TRIED = 6
FINEST = 1.02  # models whose limits differ by less than this factor are not worth another measurement
HALF = math.log(2)


@dataclass(frozen=True)
class Search:
    """What to search with.

    Attributes:
        chooser: Chooses at any limits; the budget it fits with is what was typed.
        floor: What a model's metric is held against.
        evaluate: Measures it.
        recovery: How each model is trained before it is measured; None where none is.
        typed: Whether a budget was typed; if not, the smallest model is searched for.
    """

    chooser: Chooser
    floor: Floor
    evaluate: Evaluate
    recovery: Recovery | None
    typed: bool

    @property
    def fit(self) -> Fit:
        """What choices are fitted with."""
        return self.chooser.fit

    @property
    def offers(self) -> Offers:
        """What the passes offer."""
        return self.chooser.offers

    @property
    def statistics(self) -> Statistics:
        """What calibration saw of the original."""
        return self.chooser.seen.statistics


@dataclass(frozen=True)
class _Attempt:
    """A model that was measured: how far along the way, what its plan was, what came of it and how long it took."""

    way: float
    plan: Plan
    verdict: Verdict
    tried: Tried
    seconds: float


@dataclass(frozen=True)
class _Walked:
    """What was measured on the way, the deepest model that held, and the last choice that was looked at."""

    attempts: tuple[_Attempt, ...]
    deepest: Carried | None
    last: Choice


def measure_original(subject: Subject, evaluate: Evaluate, seed: int, ranks: Ranks) -> Answer:
    """The original's scores.

    Raises:
        InputError: ``evaluate`` failed on it, or returned no finite number.
    """
    answer = ranks.run_alone(lambda: _plain(ask_about_copy(evaluate, subject.original, seed=seed), ranks))
    check_answer(answer, "before")
    return answer


def _plain(answer: Answer, ranks: Ranks) -> Answer:
    """The answer as it can be sent to others: an error of the user's own code may be anything."""
    return answer if ranks.count == 1 else replace(answer, error=None)


def keep_promise(search: Search) -> tuple[Carried, Promise]:
    """The smallest model found above the floor, or for a typed budget the nearest to it; the original where none is.

    Raises:
        PassError, RewriteError: As :func:`choose_in_steps` and :func:`carry_out`.
    """
    span, out_of_reach = _plan_way(search)
    search.fit.stages.announce(
        f"max_drop: the original's metric is {search.floor.metric:.6g}; up to {MOST_TRIED} smaller models are made and "
        f"measured, the chosen one twice, for at least {search.floor.lowest:.6g}"
    )
    walked = _walk_down(search, span)
    returned, tried, calls = _confirm(search, span, walked)
    if returned is None:
        whole = replace(search.fit, budget=search.fit.budget if search.typed else Budget(macs=1.0))
        nothing = Stepping(search.offers.leave_all(walked.last))
        returned = carry_out(whole, nothing, search.statistics, None)
    promise = Promise(
        search.floor.max_drop, search.floor.metric, len(search.floor.scores), not search.typed, tried, 1 + calls, ""
    )
    return returned, replace(promise, reason=tell_reason(promise, search.fit.budget.describe(), out_of_reach))


def _plan_way(search: Search) -> tuple[Span, bool]:
    """The way to the typed budget, or to the smallest model; and whether the typed budget is out of reach anyhow."""
    total = search.offers.total
    limits = search.fit.budget.limits(total) if search.typed else {"macs": 0}
    smallest = search.offers.find_smallest(limits)
    reachable = {unit: max(limit, getattr(smallest, unit)) for unit, limit in limits.items()}
    out_of_reach = search.typed and reachable != limits
    return Span.between(
        total, reachable, search.fit.budget if search.typed and not out_of_reach else None
    ), out_of_reach


def _walk_down(search: Search, span: Span) -> _Walked:
    attempts: list[_Attempt] = []
    models: list[Carried] = []
    choices: list[Choice] = []

    def look(way: float) -> Look:
        started, stepping = time.perf_counter(), _choose(search, span, way)
        choices[:] = [stepping.choice]
        plan = search.fit.make_plan(stepping.choice)
        known = next((each for each in attempts if _same(each.plan, plan)), None)
        if known is not None or not stepping.choice.changed:
            return Look(known is None or known.verdict.held, way, fresh=False)
        attempt, carried = _try(search, span, way, stepping, attempts, started)
        attempts.append(attempt)
        if attempt.verdict.held:
            models[:] = [carried]  # deeper than any before that held; those are let go
        return Look(attempt.verdict.held, span.measure(carried.cost), fresh=True)

    first, finest = HALF / max(span.depth, HALF), math.log(FINEST) / max(span.depth, 1e-9)
    walk(look, Stride(1.0 if search.typed else first, first, finest, MOST_TRIED))
    return _Walked(tuple(attempts), models[0] if models else None, choices[0])


def _choose(search: Search, span: Span, way: float) -> Stepping:
    """The choice so far along the way, the same one whenever it is asked for."""
    torch.manual_seed(search.fit.seed)
    wish = replace(search.fit.wish, limits=span.budget(way).limits(search.offers.total), contract=False)
    return search.chooser.choose(wish)


def _same(one: Plan, other: Plan) -> bool:
    return (one.steps, one.selections, one.sharings) == (other.steps, other.selections, other.sharings)


def _try(
    search: Search, span: Span, way: float, stepping: Stepping, before: Sequence[_Attempt], started: float
) -> tuple[_Attempt, Carried]:
    """Carry a choice out and measure it."""
    budget = span.budget(way)
    left = tell_time_left([each.seconds for each in before], MOST_TRIED)
    search.fit.stages.announce(f"max_drop: model {len(before) + 1} of at most {MOST_TRIED}, {budget.describe()}{left}")
    carried = _carry(search, span, way, stepping)
    verdict = _measure(search, carried, call=1 + len(before))
    cost = carried.cost
    tried = Tried(budget.describe(), cost.macs, cost.params, verdict.metric, verdict.worst, verdict.held, verdict.fault)
    return _Attempt(way, carried.plan, verdict, tried, time.perf_counter() - started), carried


def _carry(search: Search, span: Span, way: float, stepping: Stepping) -> Carried:
    fit = search.fit if search.typed else replace(search.fit, budget=span.budget(way))
    return carry_out(fit, stepping, search.statistics, search.recovery)


def _measure(search: Search, carried: Carried, *, call: int) -> Verdict:
    """What evaluate says of a copy of the very model that may be returned."""
    fit, model = search.fit, carried.rewritten.model
    with fit.stages.stage("evaluate"):
        answer = fit.ranks.run_alone(
            lambda: _plain(ask_about_copy(search.evaluate, model, seed=fit.seed + call), fit.ranks)
        )
    return search.floor.judge(answer)


def _confirm(search: Search, span: Span, walked: _Walked) -> tuple[Carried | None, tuple[Tried, ...], int]:
    """Measure the smallest model that held once more, and the next one where it does not hold again.

    Of several measurements the luckiest tends to be chosen; a second one of the chosen model tells. Models that were
    let go are made again, and what counts is the measurement of the new one.

    Returns:
        The model, or None where none held twice; the attempts with what came of them; how often evaluate was called.
    """
    attempts, model = walked.attempts, walked.deepest
    tried, calls = [each.tried for each in attempts], len(attempts)
    for number in sorted(range(len(attempts)), key=lambda each: -attempts[each].way):
        if not attempts[number].verdict.held:
            continue
        way, calls = attempts[number].way, calls + 1
        search.fit.stages.announce(f"max_drop: {tried[number].budget} once more, to be sure")
        carried = model or _carry(search, span, way, _choose(search, span, way))
        verdict, model = _measure(search, carried, call=calls), None
        tried[number] = _repeat(tried[number], verdict)
        if verdict.held:
            return carried, tuple(tried), calls
    return None, tuple(tried), calls


def _repeat(tried: Tried, again: Verdict) -> Tried:
    """The record of a model that was measured a second time."""
    worst = [each for each in (tried.worst, again.worst) if each is not None]
    return replace(
        tried, held=again.held, returned=again.held, confirmed=again.metric, worst=min(worst, default=None),
        reason=again.fault and f"measured again, {again.fault}",
    )  # fmt: skip
