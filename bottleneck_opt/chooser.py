"""Everything that a choice depends on, put together once; then any number of choices at any limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bottleneck_opt.budget import Budget
from bottleneck_opt.choosing import Offers, Ties, Wish, list_offers
from bottleneck_opt.clock import Clock, start_clock
from bottleneck_opt.distribution import Ranks
from bottleneck_opt.errors import NotAvailableError
from bottleneck_opt.fitting import Fit
from bottleneck_opt.keeping import Cache
from bottleneck_opt.pacing import Pacing
from bottleneck_opt.progress import Stages
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.sites import AnyPass
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Seen, Stepping, choose_in_steps
from bottleneck_opt.subject import Subject
from bottleneck_opt.summary import lacks_data
from bottleneck_opt.timing import Timing


@dataclass(frozen=True)
class Order:
    """What the caller asked for.

    Attributes:
        passes: Whom to ask.
        budget: How small.
        contract: Whether a limit that cannot be reached is an error.
        recipe: Which ingredients to use.
        timings: The settings that matter.
        allow_slower: As for :func:`bottleneck_opt.optimize`.
        seed: Of the run.
        cache: Where what the stages make is kept.
        known: Fingerprint of the statistics.
    """

    passes: tuple[AnyPass, ...]
    budget: Budget
    contract: bool
    recipe: Recipe
    timings: Sequence[Timing]
    allow_slower: bool | None
    seed: int
    cache: Cache
    known: str


@dataclass(frozen=True)
class Chooser:
    """Chooses at any limits.

    Attributes:
        seen: What to compress and what is known of it.
        fit: What choices are fitted with.
        offers: What the passes offer.
        pacing: How to choose by the clock.
    """

    seen: Seen
    fit: Fit
    offers: Offers
    pacing: Pacing

    def choose(self, wish: Wish) -> Stepping:
        """The least predicted loss within the limits.

        Raises:
            BudgetError, PassError: As :meth:`bottleneck_opt.pacing.Pacing.choose`.
        """
        return self.pacing.choose(wish, self.offers, self._choose)

    def _choose(self, wish: Wish, offers: Offers) -> Stepping:
        fit = replace(self.fit, wish=wish)
        steps = 1 if lacks_data(fit.subject, self.seen.statistics) else fit.recipe.steps
        return choose_in_steps(self.seen, wish, steps, fit.prepare, fit.stages, fit.ranks, offers)


def prepare_choice(
    subject: Subject, statistics: Statistics, ties: Ties, order: Order, stages: Stages, ranks: Ranks
) -> Chooser:  # fmt: skip
    """Time the original where time is limited, and ask the passes what they offer.

    Raises:
        NotAvailableError: A setting cannot be timed.
        PassError: As :func:`bottleneck_opt.choosing.list_offers`.
    """
    clock = _find_clock(subject, order, stages, ranks)
    pace = clock.time_original(order.budget) if clock is not None and order.budget.limits_time else None
    wish = Wish(order.passes, {}, order.contract, order.recipe.rounds, pace, 0 if pace is None else pace.total)
    wish = replace(wish, limits=order.budget.limits(wish.total(subject.traced.cost)))
    seen = Seen(subject, statistics, ties, order.seed, curvature=order.recipe.curvature)
    fit = Fit(subject, order.budget, wish, order.recipe, order.seed, stages, ranks, order.cache, order.known)
    offers = list_offers(subject, statistics, ties, wish, stages, ranks)
    return Chooser(seen, fit, offers, Pacing(clock, pace, order.allow_slower is False, fit.make_plan))


def check_alone(budget: Budget, ranks: Ranks) -> None:
    """Raise NotAvailableError when time is limited and several processes share the run."""
    if budget.limits_time and ranks.count > 1:
        raise NotAvailableError(
            f"budget {budget.describe()}: got {ranks.count} processes; expected one, as they would disturb each "
            "other's timings. Run it without torchrun."
        )


def _find_clock(subject: Subject, order: Order, stages: Stages, ranks: Ranks) -> Clock | None:
    """What to time with while choosing; None where time is not limited and slower replacements are allowed."""
    return (
        None
        if order.allow_slower and not order.budget.limits_time
        else start_clock(subject, order.timings, stages, ranks)
    )
