"""Compress in steps: look at a half-way model with fresh statistics, then choose again for the whole cut.

Predicted losses add up only for small changes. For a deep cut, a milder plan is made first and carried out on a working
copy, and what flows there and what its output feels is taken anew. The plan for the real budget then starts from the
original weights again, with these statistics. It is kept where it does better on held-out examples, so that
steps never do worse there than one.

The half-way models hold factored layers only: channels that a half-way plan would drop could not be watched.

Measured, two steps over one with three rounds in both, 64 unlabelled inputs, one training each, the second plan taken
whatever the held-out examples said; change of the test outputs, geometric mean over draws. Without the joint fit at
0.25 and 0.15 of the multiply-adds: VGG (3 draws) 0.98 and 0.97, ResNet (2) 1.10 and 1.04, denoiser (1) 0.92 at 0.25;
three steps on the VGG 1.19 and 1.03. With it: VGG 1.09 and 0.91, denoiser 1.03 at 0.25. Single draws went from 0.66 to
1.37. It took two to three times as long, and in one of seven cases with the joint fit did the held-out examples prefer
it. So the default is one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from bottleneck_opt.calibrating import choose_sampling
from bottleneck_opt.calibration import collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.choosing import Choice, Offers, Ties, Wish, choose_among, choose_options, list_offers
from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.graph import Cost
from bottleneck_opt.joint.fitting import HELD_OUT, split_data
from bottleneck_opt.links import Links
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.narrowing import predict_outputs
from bottleneck_opt.outcome import Clocked
from bottleneck_opt.progress import Stages
from bottleneck_opt.sharing import Groups
from bottleneck_opt.sites import Site
from bottleneck_opt.statistics import LayerStatistics, Statistics
from bottleneck_opt.subject import Subject
from bottleneck_opt.verification import measure_change

Build = Callable[[Choice], Callable[[CalibrationData], nn.Module]]
"""Fits a choice's weights; what it gives makes the rewritten working copy, refitted on some data."""


@dataclass(frozen=True)
class Stepping:
    """What taking steps did.

    Attributes:
        choice: The one to carry out.
        one, several: Change of the output on held-out examples after one step and after all, relative to its variance;
            None where there was one step only.
        skipped: Why there was one step only; empty when there were more, or when no more were wanted.
        clocked: What came of timing while choosing; None where nothing was timed.
    """

    choice: Choice
    one: float | None = None
    several: float | None = None
    skipped: str = ""
    clocked: Clocked | None = None

    @property
    def kept(self) -> bool:
        """Whether the choice is that of several steps."""
        return self.one is not None and self.several is not None and self.several < self.one


@dataclass(frozen=True)
class Seen:
    """What to compress and what calibration saw of it.

    Attributes:
        subject: What to compress.
        statistics: Of the original.
        ties: Where layers depend on each other.
        seed: Of the run.
        curvature: Whether to look at what the output feels.
    """

    subject: Subject
    statistics: Statistics
    ties: Ties
    seed: int = 0
    curvature: bool = True


NO_TIES = Ties(Links((), {}), Groups((), {}))


def choose_in_steps(
    seen: Seen, wish: Wish, steps: int, build: Build, stages: Stages, ranks: Ranks = ALONE,
    offers: Offers | None = None,
) -> Stepping:  # fmt: skip
    """The choice for the budget, by way of milder ones.

    Args:
        seen: What to compress and what is known of it.
        wish: Passes and limits.
        steps: How many plans to make one after the other, each with the statistics of the one before; 1 makes one.
        build: Makes a rewritten working copy.
        stages: Shows the progress.
        ranks: Who shares the work of choosing.
        offers: What the passes offer for the original, where that is known already.

    Raises:
        BudgetError, PassError: As :func:`choose_options`.
    """
    if offers is None:
        offers = list_offers(seen.subject, seen.statistics, seen.ties, wish, stages, ranks)
    choice = choose_among(offers, wish, stages, ranks)
    if steps == 1 or not choice.changed:
        return Stepping(choice)
    obstacle = _find_obstacle(seen)
    if obstacle:
        return Stepping(choice, skipped=obstacle)
    fresh = seen.statistics
    for number in range(1, steps):
        limits = _milder(wish.limits, wish.total(seen.subject.traced.cost), number / steps)
        milder = replace(wish, passes=wish.site_passes, limits=limits, contract=False)
        halfway = build(choose_options(seen.subject, fresh, NO_TIES, milder, stages, ranks))(seen.subject.fitting)
        fresh = _look_again(seen, halfway, stages)
    return _keep_better(seen, (choice, choose_options(seen.subject, fresh, seen.ties, wish, stages, ranks)), build)


def _find_obstacle(seen: Seen) -> str:
    if seen.subject.data.examples < HELD_OUT:
        return f"there are fewer than {HELD_OUT} examples"
    if not any(scale.weight for scale in seen.statistics.scales):
        return "the output has no floating values that vary"
    return "" if _watched(seen.subject) else "all layers have a forward of their own"


def _milder(limits: Mapping[str, int], total: Cost, share: float) -> dict[str, int]:
    """Limits this share of the way, the same factor a step."""
    whole = {unit: max(getattr(total, unit), 1) for unit in limits}
    return {unit: int(whole[unit] * min(limit / whole[unit], 1.0) ** share) for unit, limit in limits.items()}


def _watched(subject: Subject) -> list[str]:
    """The layers whose replacement can be watched in their place: not those with a forward of their own."""
    candidates = subject.candidates
    return [path for path, layer in candidates.layers.items() if path not in candidates.probes and not layer.subclass]


def _look_again(seen: Seen, halfway: nn.Module, stages: Stages) -> Statistics:
    """Statistics of the half-way model, as if the original's weights were in it.

    Where a layer cannot be watched they are those of the original.
    """
    subject, before = seen.subject, seen.statistics
    layers = {path: subject.candidates.layers[path] for path in _watched(subject)}
    sampling = choose_sampling(subject, seen.seed)
    with stages.stage("calibrate again", total=2 * len(subject.fitting.batches)) as advance:
        found = collect_statistics(
            halfway, layers, subject.fitting, sampling, names=subject.candidates.names, scales=before.scales,
            advance=advance,
        )  # fmt: skip
    sites = {site.path: site for site in make_sites(subject.working, subject.traced, subject.candidates, before)}
    renewed = {path: _renew(sites[path], layer) for path, layer in found.layers.items()}
    fresh = replace(before, layers={**before.layers, **renewed})
    return fresh if seen.curvature else fresh.without_curvature()


def _renew(site: Site, seen: LayerStatistics) -> LayerStatistics:
    """What the site's own weight would make of the inputs that now arrive."""
    if seen.inputs.outer is None or not seen.inputs.count:
        return site.statistics
    mean = site.flat_weight @ seen.inputs.mean
    mean = mean if site.bias is None else mean + site.bias
    return replace(seen, outputs=predict_outputs(site.flat_weight, seen.inputs, mean))


def _keep_better(seen: Seen, choices: tuple[Choice, Choice], build: Build) -> Stepping:
    one, several = (_judge(seen, build(choice)) for choice in choices)
    return Stepping(choices[several < one], one, several)


def _judge(seen: Seen, finish: Callable[[CalibrationData], nn.Module]) -> float:
    """Change of the output on held-out examples: every fifth of them in turn, refitted on the others."""
    total = 0.0
    for fold in range(HELD_OUT):
        fitting, held_out = split_data(seen.subject.data, fold)
        change = measure_change(seen.subject.working, finish(fitting), held_out, seen.statistics.scales).relative
        total += held_out.examples * (math.inf if change is None else change)
    return total / seen.subject.data.examples
