"""For tests of passes and of exactness: rewrite layers at full rank, where nothing may be lost.

The tool never offers a form that costs more than what it replaces, and at full rank every form does. These functions
are the way round that check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bottleneck_opt.applying import apply_plan
from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.layers import class_name
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import Priced, ask_full_rank, make_step
from bottleneck_opt.registry import find_passes
from bottleneck_opt.sites import Pass, Site, Skip
from bottleneck_opt.statistics import Statistics, unit_statistics
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.working_copy import undisturbed, unwrap_model


@dataclass(frozen=True)
class FullRankRewrite:
    """A model in which every layer that a pass has options for is replaced at full rank.

    Attributes:
        model: The rewritten copy.
        plan: What was replaced.
        traced: The recording of the model before.
        refused: Why each other convolution or Linear was not, by path.
    """

    model: nn.Module
    plan: Plan
    traced: Traced
    refused: Mapping[str, Skip]


def rewrite_everything(
    model: nn.Module, inputs: Any = None, *, passes: Sequence[str | Pass] | None = None,
    include: Sequence[str] | None = None, calibrate: bool = True,
) -> FullRankRewrite:  # fmt: skip
    """Rewrite every layer that can be, at full rank, whatever that costs.

    Args:
        model: Any module; it is not changed.
        inputs: One example call, as in :func:`bottleneck_opt.optimize`; the statistics are taken on noise like it.
        passes: Names and pass objects; the first that has options for a layer rewrites it. None uses the built-in
            ones.
        include: Glob patterns over module paths; None takes every layer.
        calibrate: False runs no data through the model: passes then see layers without outer products.

    Raises:
        PassError: A pass has options for a layer but none at full rank, or they do not fit the layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6))
        >>> done = rewrite_everything(net, torch.randn(1, 4, 8, 8), passes=["reduce"])
        >>> [step.path for step in done.plan.steps], list(done.refused)
        (['0'], ['2'])
    """
    original = unwrap_model(model)
    found = tuple(each for each in find_passes(passes) if isinstance(each, Pass))
    with undisturbed(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = prepare_subject(original, Request(inputs, None, 32 if calibrate else 1, None, 0, include, None))
        sites = make_sites(subject.working, subject.traced, subject.candidates, _collect(subject, calibrate=calibrate))
        offers = ((site, ask_full_rank(site, found)) for site in sites)
        chosen = {site.path: (site, priced) for site, priced in offers if priced is not None}
        plan = _make_plan(original, tuple(each.name for each in found), subject.traced, chosen.values())
        weights = {path: priced.option.fill() for path, (_, priced) in chosen.items()}
        done = apply_plan(subject, plan, weights)
    unasked = {
        name: Skip("no chosen pass has options for it")
        for site in sites
        if site.path not in chosen
        for name in site.names
    }
    return FullRankRewrite(done.model, plan, subject.traced, {**subject.candidates.refused, **unasked})


def _collect(subject: Subject, *, calibrate: bool) -> Statistics:
    layers, names = subject.candidates.layers, subject.candidates.names
    if not calibrate:
        return unit_statistics(layers)
    return collect_statistics(subject.working, layers, subject.data, Sampling(subject.data.examples, 1, 0), names=names)


def _make_plan(
    model: nn.Module, passes: tuple[str, ...], traced: Traced, chosen: Iterable[tuple[Site, Priced]]
) -> Plan:
    steps = tuple(make_step(site, priced) for site, priced in chosen)
    saved = sum((step.before - step.after for step in steps), Cost())
    return Plan(
        model=class_name(model), budget="full rank", passes=passes, seed=0, before=traced.cost,
        after=traced.cost - saved, predicted_loss=sum(step.predicted_loss for step in steps), optimality_gap=0.0,
        steps=steps,
    )  # fmt: skip


def full_rank_plan(
    model: nn.Module, inputs: Any = None, *, passes: Sequence[str | Pass] | None = None,
    include: Sequence[str] | None = None,
) -> Plan:  # fmt: skip
    """A plan that rewrites every layer it can at full rank, whatever that costs.

    Args:
        model: Any module; it is not changed.
        inputs: One example call, as in :func:`bottleneck_opt.optimize`; the statistics are taken on noise like it.
        passes: Names and pass objects; the first that has options for a layer rewrites it. None uses the built-in
            ones.
        include: Glob patterns over module paths; None takes every layer.

    Raises:
        PassError: A pass has options for a layer but none at full rank, or they do not fit the layer.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3))
        >>> [(step.path, step.ranks) for step in full_rank_plan(net, torch.randn(1, 4, 8, 8), passes=["reduce"]).steps]
        [('0', (4,)), ('2', (6,))]
    """
    return rewrite_everything(model, inputs, passes=passes, include=include).plan


def rewrite_at_full_rank(
    model: nn.Module, inputs: Any = None, *, passes: Sequence[str | Pass] | None = None,
    include: Sequence[str] | None = None,
) -> nn.Module:  # fmt: skip
    """A copy of the model rewritten by :func:`full_rank_plan` (same arguments), with the passes' own weights.

    Its output must be the model's, borders included, up to rounding.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1)).double()
        >>> x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
        >>> torch.allclose(rewrite_at_full_rank(net, x, passes=["reduce"])(x), net(x))
        True
    """
    return rewrite_everything(model, inputs, passes=passes, include=include).model
