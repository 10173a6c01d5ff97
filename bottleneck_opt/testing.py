"""For tests of passes and of exactness: rewrite layers at full rank, where nothing may be lost.

The tool never offers a form that costs more than what it replaces, and at full rank every form does. These functions
are the way round that check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.calibration_data import read_calibration
from bottleneck_opt.eligibility import find_candidates
from bottleneck_opt.graph import Cost
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import Priced, ask_full_rank, make_sites, make_step
from bottleneck_opt.registry import find_passes
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Pass, Site
from bottleneck_opt.tracing import choose_inputs, runs_on, trace_working
from bottleneck_opt.working_copy import undisturbed, unwrap_model, working_copy


@dataclass(frozen=True)
class _FullRank:
    """Every layer that a pass has options for, with its option at full rank, and the model's cost before."""

    chosen: Mapping[str, tuple[Site, Priced]]
    passes: tuple[str, ...]
    before: Cost

    def plan(self, model: nn.Module) -> Plan:
        kind = type(model)
        steps = tuple(make_step(site, priced) for site, priced in self.chosen.values())
        saved = sum((step.before - step.after for step in steps), Cost())
        return Plan(
            model=f"{kind.__module__}.{kind.__qualname__}", budget="full rank", passes=self.passes, seed=0,
            before=self.before, after=self.before - saved, predicted_loss=sum(step.predicted_loss for step in steps),
            optimality_gap=0.0, steps=steps,
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
    original = unwrap_model(model)
    return _offer(original, inputs, passes, include).plan(original)


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
    original = unwrap_model(model)
    offered = _offer(original, inputs, passes, include)
    weights = {path: priced.option.fill() for path, (_, priced) in offered.chosen.items()}
    return rewrite_model(original, offered.plan(original), weights)


def _offer(
    original: nn.Module, inputs: Any, passes: Sequence[str | Pass] | None, include: Sequence[str] | None
) -> _FullRank:
    found = find_passes(passes)
    with undisturbed(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        working = working_copy(original)
        example, _ = choose_inputs(working, inputs)
        traced = trace_working(working, example)
        candidates = find_candidates(working, traced, include=include)
        data = read_calibration(None, example, given=inputs, limit=32, seed=0, runs=lambda call: runs_on(working, call))
        statistics = collect_statistics(working, candidates.layers, data, Sampling(data.examples, 1, 0))
        sites = make_sites(working, traced, candidates, statistics)
        offers = ((site, ask_full_rank(site, found)) for site in sites)
        chosen = {site.path: (site, priced) for site, priced in offers if priced is not None}
    return _FullRank(chosen, tuple(each.name for each in found), traced.cost)
