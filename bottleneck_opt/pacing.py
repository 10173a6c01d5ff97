"""Choose by the clock: leave out what is no faster, and correct the choice until the whole model is within its time.

Times of layers add up to the model's time only roughly: in a model they find their inputs and weights in other caches.
So the whole model of a choice is timed, and what it really saves, over what was predicted, says how much must be
predicted the next time. A handful of models is timed, none of them fitted; nothing but what was timed is promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bottleneck_opt.budget import TIME
from bottleneck_opt.choosing import Choice, Offers, Wish
from bottleneck_opt.clock import Clock
from bottleneck_opt.errors import BudgetError
from bottleneck_opt.graph import Cost
from bottleneck_opt.outcome import Clocked, LeftOut, Timed
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import reprice
from bottleneck_opt.slower import SlowOption
from bottleneck_opt.stepping import Stepping
from bottleneck_opt.timing.pace import Pace

MOST_MODELS, MOST_CHOICES = 8, 16
CLOSE = 0.03
NEAR = 0.2  # within this much of the limit, the same channels stay dropped while the rest is corrected
ROUNDS, PATIENT_ROUNDS = 16, 8
_SAFETY = 0.005
Choose = Callable[[Wish, Offers], Stepping]
MakePlan = Callable[[Choice], Plan]
_ByOption = dict[tuple[str, str, tuple[int, ...]], LeftOut]


@dataclass(frozen=True)
class Pacing:
    """How to choose by the clock.

    Attributes:
        clock: What to time with; None to time nothing while choosing.
        pace: What the settings count, where time is limited.
        strict: Slower replacements are not taken even where the budget cannot be met without them.
        make_plan: The plan of a choice, to be timed.
    """

    clock: Clock | None
    pace: Pace | None
    strict: bool
    make_plan: MakePlan

    def choose(self, wish: Wish, offers: Offers, choose: Choose) -> Stepping:
        """The least predicted loss within the limits, of replacements that are faster.

        Args:
            wish: The limits.
            offers: What there is to choose from.
            choose: Chooses without a clock.

        Raises:
            BudgetError: A limit cannot be met, and it is a contract.
        """
        if self.clock is None:
            return choose(wish, offers)
        if self.pace is None:
            return _choose_faster(self.clock, wish, offers, choose, strict=self.strict)[0]
        return _choose_within(self.clock, self.pace, wish, offers, choose, self.make_plan)


def _choose_faster(
    clock: Clock, wish: Wish, offers: Offers, choose: Choose, *, strict: bool
) -> tuple[Stepping, Wish]:  # fmt: skip
    """Choose, time what was chosen, and choose again without what is no faster, until all of it is.

    Returns:
        The choice, and the wish with what was left out.
    """
    slower: list[SlowOption] = [*wish.slower]
    left_out: _ByOption = {}
    for number in range(ROUNDS):
        try:
            stepping = choose(replace(wish, slower=tuple(slower)), offers)
        except BudgetError as error:
            if strict and slower:
                raise BudgetError(f"{error} {_tell_strict(left_out)}", smallest=error.smallest) from error
            if not slower:
                raise
            return replace(choose(wish, offers), clocked=_list_left_out(clock, left_out, taken=True)), wish
        found = clock.find_slower(stepping.choice)
        left_out |= {(each.path, each.form, each.ranks): each for _, each in found}
        if not found:
            break
        slower += [each if number < PATIENT_ROUNDS else replace(each, ranks=()) for each, _ in found]
    if not strict and slower and not stepping.choice.allocation.met:
        whole = choose(wish, offers)
        if whole.choice.allocation.met:
            return replace(whole, clocked=_list_left_out(clock, left_out, taken=True)), wish
    return (
        replace(stepping, clocked=_list_left_out(clock, left_out, taken=False)), replace(wish, slower=tuple(slower)),
    )  # fmt: skip


def _list_left_out(clock: Clock, left_out: _ByOption, *, taken: bool) -> Clocked:
    return Clocked(
        left_out=tuple(left_out.values()), taken_all_the_same=taken, fault=clock.times.records.fault
    )  # fmt: skip


def _tell_strict(left_out: _ByOption) -> str:
    return f"{len(left_out)} replacements were left out because they are no faster here; allow_slower=True takes them."


@dataclass(frozen=True)
class _Look:
    """A choice whose model was timed, in nanoseconds.

    Attributes:
        stepping: The choice.
        predicted: Of the layers added up.
        expected: The same, with what earlier models taught.
        measured: Of the whole model.
        times: Of the original and the model in each setting.
    """

    stepping: Stepping
    predicted: float
    expected: float
    measured: float
    times: tuple[tuple[float, float], ...]

    @property
    def loss(self) -> float:
        return self.stepping.choice.allocation.loss

    def truth(self, total: float) -> float:
        """How much of the predicted saving came true."""
        hoped = total - self.predicted
        return (total - self.measured) / hoped if hoped > 0 else 1.0


def _choose_within(
    clock: Clock, pace: Pace, wish: Wish, offers: Offers, choose: Choose, make_plan: MakePlan
) -> Stepping:  # fmt: skip
    """Choose for a limit on time, correcting what must be predicted by what was measured."""
    limit, total, aim = wish.limits[TIME], pace.total, float(wish.limits[TIME])
    others = {unit: most for unit, most in wish.limits.items() if unit != TIME}
    first, looks = (wish, offers), list[_Look]()
    left_out: tuple[LeftOut, ...] = ()
    tried: list[tuple[float, float]] = []
    while len(looks) < MOST_MODELS and len(tried) < MOST_CHOICES:
        milder = replace(wish, limits={**others, TIME: max(1, int(aim))}, contract=False)
        stepping, milder = _choose_faster(clock, milder, offers, choose, strict=True)
        found = () if stepping.clocked is None else stepping.clocked.left_out
        left_out = (*left_out, *(each for each in found if each not in left_out))
        look = _time(clock, pace, stepping, make_plan, looks)
        tried.append((aim, look.measured))
        if any(_same(look, other) for other in looks):
            if not wish.hold:
                aim = _go_between(tried, limit=limit, total=total)
            wish = replace(wish, slower=milder.slower, hold=False)  # what is held leaves nothing else to choose
            continue
        looks.append(look)
        if limit * (1 - CLOSE) <= look.measured <= limit or not stepping.choice.changed:
            break
        near = abs(look.measured - limit) <= NEAR * limit
        wish = replace(wish, slower=milder.slower, hold=near)
        clock.times.learn()
        offers = reprice_all(offers)
        aim = _correct(aim, look, limit=limit, total=total)
    within = [look for look in looks if look.measured <= limit and _keeps(look, others)]
    if not within:
        looks.append(_time_smallest(clock, pace, *first, choose, make_plan))
        within = [look for look in looks if look.measured <= limit and _keeps(look, others)]
    if not within and wish.contract:
        raise _impossible(looks, limit=limit, total=total, others=others)
    best = min(within, key=lambda look: look.loss) if within else min(looks, key=lambda look: look.measured)
    timed = _describe(clock, pace, best)
    fault = clock.times.records.fault
    clocked = Clocked(timed, len(looks), left_out, latency=math.ceil(best.measured), fault=fault)
    return _note_time(best, clocked, met=bool(within))


def _note_time(look: _Look, clocked: Clocked, *, met: bool) -> Stepping:
    """The choice with the measured time in the place of the predicted one."""
    choice = look.stepping.choice
    cost = replace(choice.allocation.cost, latency=clocked.latency)
    allocation = replace(choice.allocation, cost=cost, met=met)
    return replace(look.stepping, choice=replace(choice, allocation=allocation), clocked=clocked)


def _time(clock: Clock, pace: Pace, stepping: Stepping, make_plan: MakePlan, before: Sequence[_Look]) -> _Look:
    predicted = float(stepping.choice.allocation.cost.latency)
    expected = pace.total - (pace.total - predicted) * (before[-1].truth(pace.total) if before else 1.0)
    times = tuple(clock.time_whole(make_plan(stepping.choice)))
    shares = [after / before for before, after in times]
    measured = pace.join([share * whole for share, whole in zip(shares, pace.whole, strict=True)])
    return _Look(stepping, predicted, expected, measured, times)


def _correct(aim: float, look: _Look, *, limit: float, total: float) -> float:
    """What must be predicted so that the limit is met, if as much of it comes true as did this time."""
    saved, hoped = total - look.measured, total - look.predicted
    if saved <= 0 or hoped <= 0:
        return aim - 0.25 * (total - aim) - 0.1 * aim
    needed = total - limit * (1 - _SAFETY)
    return total - needed * hoped / saved


def _go_between(tried: Sequence[tuple[float, float]], *, limit: float, total: float) -> float:
    """Where the last aim brought nothing new: half way to the nearest one whose model was on the limit's other side.

    Args:
        tried: Aims and what was measured of the models that they led to, in order.
        limit, total: The time that is asked for, and the original's.

    Example:
        >>> _go_between([(40.0, 30.0), (60.0, 55.0)], limit=50.0, total=100.0)
        50.0
    """
    aim, measured = tried[-1]
    if measured > limit:
        return (aim + max((each for each, found in tried if found <= limit and each < aim), default=0.0)) / 2
    return (aim + min((each for each, found in tried if found > limit and each > aim), default=total)) / 2


def _time_smallest(
    clock: Clock, pace: Pace, wish: Wish, offers: Offers, choose: Choose, make_plan: MakePlan
) -> _Look:  # fmt: skip
    """The fastest choice that is predicted, within the other limits."""
    fastest = replace(wish, limits={**wish.limits, TIME: 1}, contract=False)
    stepping, _ = _choose_faster(clock, fastest, offers, choose, strict=True)
    return _time(clock, pace, stepping, make_plan, ())


def _same(one: _Look, other: _Look) -> bool:
    first, second = one.stepping.choice, other.stepping.choice
    return (first.steps, first.selections, first.sharings) == (second.steps, second.selections, second.sharings)


def _keeps(look: _Look, others: Mapping[str, int]) -> bool:
    cost: Cost = look.stepping.choice.allocation.cost
    return all(getattr(cost, unit) <= most for unit, most in others.items())


def _impossible(looks: Sequence[_Look], *, limit: float, total: float, others: Mapping[str, int]) -> BudgetError:
    smallest = looks[-1]
    if not _keeps(smallest, others):
        return BudgetError(
            f"budget: no model within {' and '.join(f'{unit} of {most:,}' for unit, most in others.items())} is also "
            f"within {limit / 1e6:.3g} ms; expected limits that can be met together. Allow more of one of them."
        )
    ratio = math.ceil(smallest.measured / total * 1e4) / 1e4
    return BudgetError(
        f"budget: {limit / 1e6:.3g} ms of {total / 1e6:.3g} ms cannot be reached: {len(looks)} models were timed, the "
        f"smallest takes {smallest.measured / 1e6:.3g} ms, latency={ratio:.4g}. Ask for that, or allow more layers "
        "with include=, exclude= or passes=.",
        smallest={TIME: ratio},
    )


def _describe(clock: Clock, pace: Pace, look: _Look) -> tuple[Timed, ...]:
    """The chosen model's times; what was predicted of the first setting's share holds for all of them."""
    share = look.expected / pace.total
    return tuple(
        Timed(timing.describe(), before / 1e6, share * before / 1e6, after / 1e6)
        for timing, (before, after) in zip(clock.timings, look.times, strict=True)
    )


def reprice_all(offers: Offers) -> Offers:
    """The same offers with times as they are known now."""
    return replace(offers, proposals=tuple(map(reprice, offers.proposals)))
