"""Apply a plan to the subject: rewrite, check that the new layers are used, and record again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from bottleneck_opt.errors import InputError, RewriteError
from bottleneck_opt.graph import Traced
from bottleneck_opt.plan import Plan
from bottleneck_opt.rewriting import correct_layers, rewrite_model
from bottleneck_opt.sites import Weights
from bottleneck_opt.subject import Subject
from bottleneck_opt.tracing import trace_working
from bottleneck_opt.verification import check_calls
from bottleneck_opt.working_copy import model_device, run_on_example, working_copy


@dataclass(frozen=True)
class Rewritten:
    """The result's model, its working copy and its recording."""

    model: nn.Module
    working: nn.Module
    traced: Traced


def apply_plan(
    subject: Subject, plan: Plan, weights: Mapping[str, Sequence[Weights]],
    corrected: Mapping[str, Weights] = MappingProxyType({}),
) -> Rewritten:  # fmt: skip
    """The rewritten model with its recording.

    Args:
        subject: What the plan was made for.
        plan: What to replace.
        weights: For each step's path, values for its layers in order.
        corrected: New values for layers of the rewritten model, by path, those that the plan does not touch among them.

    Raises:
        RewriteError: The plan does not fit, or the model does not use the new layers as it used the old.
    """
    model = rewrite_model(subject.original, plan, weights)
    correct_layers(model, corrected)
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
    return Rewritten(model, working, trace_working(working, subject.example))
