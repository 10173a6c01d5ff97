"""The tool's stages put together in other ways: without one ingredient, or with somebody else's factors.

All that is known about switching ingredients off is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from bottleneck_opt.allocation import allocate
from bottleneck_opt.applying import apply_plan
from bottleneck_opt.errors import BudgetError
from bottleneck_opt.graph import Cost
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import Priced, Proposal, make_step, propose
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.refitting import refit
from bottleneck_opt.registry import find_passes
from bottleneck_opt.sites import Pass, Weights
from bottleneck_opt.statistics import LayerStatistics, Moments, Statistics
from bottleneck_opt.working_copy import undisturbed
from tests.benchmarks.accuracy.problem import Problem

BISECTIONS = 40
STEP = 1e-9
Chosen = Sequence[Priced | None]


@dataclass(frozen=True)
class Mixture:
    """Which ingredients are in; the defaults are the tool's own.

    Attributes:
        passes: Names or objects; None for the built-in ones.
        curvature: Whether to weigh errors by what the output feels, G; without, each layer's squared error counts
            relative to the variance of its outputs.
        data: Whether to use the inputs at all; without, a weight's own squared error counts, relative to its norm.
        allocation: Whether ranks are chosen for all layers together; without, every layer keeps the same share of its
            MACs, in the form that loses least there.
        refit: Whether the last factors are fitted again to the original's outputs.
    """

    passes: tuple[str | Pass, ...] | None = None
    curvature: bool = True
    data: bool = True
    allocation: bool = True
    refit: bool = True


def compose(problem: Problem, mixture: Mixture, budget: float) -> nn.Module:
    """The network compressed by these ingredients.

    Raises:
        BudgetError: The budget cannot be reached.
    """
    with undisturbed():
        torch.manual_seed(problem.draw)
        proposals = _propose(problem, mixture)
        limit, total = problem.limit(budget), problem.subject.traced.cost
        chosen: Chosen
        if mixture.allocation:
            chosen = allocate(proposals, total, {"macs": limit}, contract=True).chosen
        else:
            chosen = allocate_evenly(proposals, total, limit)
        return _apply(problem, mixture, proposals, chosen)


@lru_cache(maxsize=1)
def _propose(problem: Problem, mixture: Mixture) -> list[Proposal]:
    """The options of every layer, which are the same for all budgets."""
    subject = problem.subject
    statistics, rounds = _degrade(problem, mixture), Recipe().rounds
    sites = make_sites(subject.working, subject.traced, subject.candidates, statistics, rounds=rounds)
    passes = [each for each in find_passes(mixture.passes) if isinstance(each, Pass)]
    return propose(sites, passes, ("macs",))


def _degrade(problem: Problem, mixture: Mixture) -> Statistics:
    statistics = problem.statistics
    if not mixture.data:
        subject = problem.subject
        sites = make_sites(subject.working, subject.traced, subject.candidates, statistics)
        flat = {site.path: site.flat_weight for site in sites}
        layers = {path: _without_data(flat[path]) for path in statistics.layers}
        return replace(statistics, layers={path: _without_curvature(layer) for path, layer in layers.items()})
    if not mixture.curvature:
        layers = {path: _without_curvature(layer) for path, layer in statistics.layers.items()}
        return replace(statistics, layers=layers)
    return statistics


def _without_curvature(layer: LayerStatistics) -> LayerStatistics:
    out = len(layer.curvature)
    alike = torch.eye(out, dtype=torch.float64) / max(out * layer.outputs.variance, 1e-300)
    return replace(layer, curvature=alike, probes=1)


def _without_data(weight: torch.Tensor) -> LayerStatistics:
    """What inputs of unit variance and mean zero, unrelated to each other, would give."""
    out, width = weight.shape
    inputs = Moments(1, weight.new_zeros(width), float(width), torch.eye(width, dtype=torch.float64))
    outputs = Moments(1, weight.new_zeros(out), float(weight.square().sum()), weight @ weight.T)
    return LayerStatistics(inputs, outputs, torch.eye(out, dtype=torch.float64), 1)


def allocate_evenly(proposals: Sequence[Proposal], total: Cost, limit: int) -> list[Priced | None]:
    """The same share of its MACs for every layer, as large as the limit allows, found by bisection.

    A layer whose cheapest option is above the share gets that option. What is left of the limit lets the first layers
    take their next larger option.

    Raises:
        BudgetError: Even the cheapest options are too much.
    """

    def choose(share: float) -> list[Priced | None]:
        return [_choose_within(proposal, share) for proposal in proposals]

    share = find_largest(lambda each: _total(proposals, choose(each), total) <= limit)
    if share is None:
        least = _total(proposals, choose(0.0), total) / total.macs
        raise BudgetError(f"budget: the smallest reachable is macs={least:.3f}. Ask for more.")
    chosen = choose(share)
    for index, larger in enumerate(choose(share + STEP)):  # layers of one size step together: what is left goes to some
        candidate = [*chosen[:index], larger, *chosen[index + 1 :]]
        if _total(proposals, candidate, total) <= limit:
            chosen = candidate
    return chosen


def find_largest(fits: Callable[[float], bool], *, bisections: int = BISECTIONS) -> float | None:
    """The largest number in [0, 1] that fits, when all below it fit too; None when 0 does not."""
    if fits(1.0):
        return 1.0
    if not fits(0.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(bisections):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _choose_within(proposal: Proposal, share: float) -> Priced | None:
    if share >= 1 or not proposal.options:
        return None
    room = share * proposal.site.cost.macs
    fitting = [priced for priced in proposal.options if priced.cost.macs <= room]
    if not fitting:
        return min(proposal.options, key=lambda priced: priced.cost.macs)
    return min(fitting, key=lambda priced: (priced.option.predicted_loss, priced.cost.macs))


def _total(proposals: Sequence[Proposal], chosen: Chosen, total: Cost) -> int:
    saved = (p.site.cost.macs - priced.cost.macs for p, priced in zip(proposals, chosen, strict=True) if priced)
    return total.macs - sum(saved)


def _apply(problem: Problem, mixture: Mixture, proposals: Sequence[Proposal], chosen: Chosen) -> nn.Module:
    subject = problem.subject
    pairs = [(p.site, priced) for p, priced in zip(proposals, chosen, strict=True) if priced is not None]
    steps = tuple(make_step(site, priced) for site, priced in pairs)
    cost = subject.traced.cost
    plan = Plan(
        model=type(problem.original).__qualname__, budget="", passes=(), seed=problem.draw, before=cost, after=cost,
        predicted_loss=0.0, optimality_gap=0.0, steps=steps,
    )  # fmt: skip
    weights: Mapping[str, Sequence[Weights]] = {site.path: priced.option.fill() for site, priced in pairs}
    if mixture.refit and mixture.data:
        curvatures = {site.path: site.curvature() for site, _ in pairs}
        weights = refit(subject.working, subject.traced, plan, weights, curvatures, subject.data).weights
    return apply_plan(subject, plan, weights).model
