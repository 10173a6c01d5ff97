"""Apply a plan to the subject: rewrite, check that the new layers are used, record again, and offer the graph view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.fx
from torch import nn

from bottleneck_opt.errors import InputError, RewriteError
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import vary_inputs
from bottleneck_opt.plan import Plan
from bottleneck_opt.rewriting import rewrite_graph, rewrite_model
from bottleneck_opt.sites import Weights
from bottleneck_opt.subject import Subject
from bottleneck_opt.tracing import build_graph_module, compare_runs, trace_working
from bottleneck_opt.verification import check_calls
from bottleneck_opt.working_copy import model_device, run_on_example, working_copy


@dataclass(frozen=True)
class Rewritten:
    """The result's model, its working copy, its recording and the graph view over its parameters."""

    model: nn.Module
    working: nn.Module
    traced: Traced
    graph_module: torch.fx.GraphModule | None
    graph_difference: float | None
    notes: tuple[str, ...]


def apply_plan(subject: Subject, plan: Plan, weights: Mapping[str, Sequence[Weights]]) -> Rewritten:
    """The rewritten model with its recording.

    Args:
        subject: What the plan was made for.
        plan: What to replace.
        weights: For each step's path, values for its layers in order.

    Raises:
        RewriteError: The plan does not fit, or the model does not use the new layers as it used the old.
    """
    model = rewrite_model(subject.original, plan, weights)
    working = working_copy(model).to(model_device(subject.working))
    calls = {step.path: len(subject.traced.structure.calls_of(*step.names)) for step in plan.steps}
    try:
        with torch.no_grad():
            check_calls(working, plan, calls, lambda: run_on_example(working, subject.example))
    except InputError as error:
        raise RewriteError(
            "the model does not run after rewriting, it may act on the type of a replaced layer. Its own error: "
            f"{error.__cause__!r}. Find the layer with exclude=."
        ) from error
    traced = trace_working(working, subject.example)
    graph_module, difference, notes = _make_graph_view(subject, plan, model, working)
    return Rewritten(model, working, traced, graph_module, difference, notes)


def _make_graph_view(
    subject: Subject, plan: Plan, model: nn.Module, working: nn.Module
) -> tuple[torch.fx.GraphModule | None, float | None, tuple[str, ...]]:
    """The rewritten graph over the result's parameters, checked against the rewritten module on a new input."""
    if not subject.traced.replay.exact:
        return None, None, (f"no graph_module: {subject.traced.replay.reason}",)
    graph, constants = rewrite_graph(subject.traced.graph, plan), subject.traced.constants
    checked = build_graph_module(working, graph, constants)
    with torch.no_grad():
        replay = compare_runs(working, checked, vary_inputs(subject.example, seed=2))
    if not replay.exact:
        return None, replay.difference, (f"no graph_module: {replay.reason}",)
    like = next(model.parameters(), torch.zeros((), device="cpu"))
    placed = {
        name: t.to(like.device, like.dtype) if t.is_floating_point() else t.to(like.device)
        for name, t in constants.items()
    }
    return build_graph_module(model, graph, placed), replay.difference, ()
