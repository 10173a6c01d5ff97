"""From a choice to a plan and its weights: filled in, and fitted again to what the original layers gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from bottleneck_opt.budget import Budget
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.choosing import Choice, Wish
from bottleneck_opt.distribution import Ranks, run_on_ranks
from bottleneck_opt.keeping import Cache
from bottleneck_opt.plan import Plan
from bottleneck_opt.progress import Stages
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.refitting import Refitted, refit
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Site, Weights
from bottleneck_opt.subject import Subject


@dataclass(frozen=True)
class Fit:
    """What a choice is fitted with.

    Attributes:
        subject: The model and its data.
        budget: As it was asked for.
        wish: The passes that were asked.
        recipe: Which ingredients to use.
        seed: Of the run.
        stages: Shows the progress.
        ranks: Who shares the work.
        cache: Where the outcome of the stages is kept.
        known: Fingerprint of the statistics that the choice was made from.
    """

    subject: Subject
    budget: Budget
    wish: Wish
    recipe: Recipe
    seed: int
    stages: Stages
    ranks: Ranks
    cache: Cache = field(default_factory=Cache)
    known: str = ""

    def make_plan(self, choice: Choice) -> Plan:
        """The plan of a choice."""
        return Plan(
            model=self.subject.name,
            budget=self.budget.describe(),
            passes=tuple(each.name for each in self.wish.passes),
            seed=self.seed,
            before=self.wish.total(self.subject.traced.cost),
            after=choice.allocation.cost,
            predicted_loss=choice.allocation.loss,
            optimality_gap=choice.allocation.gap,
            steps=choice.steps,
            selections=choice.selections,
            sharings=choice.sharings,
            arguments=self.subject.arguments,
        )

    def fill(self, choice: Choice) -> dict[str, Sequence[Weights]]:
        """The chosen options' weights, by path; of a layer that only got narrower, its own."""
        fills = [partial(_own_weights, p.site) if each is None else each.option.fill for p, each in choice.changed]
        with self.stages.stage("fit", total=len(fills)) as advance:
            weights = run_on_ranks(fills, self.ranks, advance)
        found = {p.site.path: each for (p, _), each in zip(choice.changed, weights, strict=True)}
        return found | {shared.path: [shared.fill()] for shared in choice.allocation.shared}

    def refit(
        self, plan: Plan, choice: Choice, weights: Mapping[str, Sequence[Weights]], data: CalibrationData
    ) -> Refitted:
        """The same weights with each last factor fitted to what the original layer gives on this data."""
        if not self.recipe.refit:
            return Refitted(weights, (), {step.path: "recipe= leaves it out" for step in plan.steps})
        curvatures = {proposal.site.path: proposal.site.curvature() for proposal, _ in choice.changed}
        with self.stages.stage("refit", total=len(plan.steps)) as advance:
            return refit(self.subject.working, self.subject.traced, plan, weights, curvatures, data, advance)

    def prepare(self, choice: Choice) -> Callable[[CalibrationData], nn.Module]:
        """What makes the rewritten working copy of a choice, fitted to some data, for looking at it."""
        plan, weights = self.make_plan(choice), self.fill(choice)

        def finish(data: CalibrationData) -> nn.Module:
            refitted = self.refit(plan, choice, weights, data)
            return rewrite_model(self.subject.working, plan, refitted.weights)

        return finish


def _own_weights(site: Site) -> Sequence[Weights]:
    return [Weights(site.weight, site.bias)]
