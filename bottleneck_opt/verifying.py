"""Measure a finished model against the original: outputs, speed, and the caller's own metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bottleneck_opt.applying import Rewritten
from bottleneck_opt.distribution import Ranks
from bottleneck_opt.evaluating import Evaluate, run_evaluate
from bottleneck_opt.graph_view import GraphView
from bottleneck_opt.joint import Joint
from bottleneck_opt.latency import compare_layers, compare_speed
from bottleneck_opt.mixing import mix_anew
from bottleneck_opt.outcome import Speed, Verification
from bottleneck_opt.plan import Plan
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.subject import Subject
from bottleneck_opt.summary import list_checks
from bottleneck_opt.timing import Timing
from bottleneck_opt.verification import OutputChange, measure_change
from bottleneck_opt.working_copy import copy_model, model_device, working_inputs

Metrics = tuple[float | None, float | None]


def measure_metric(subject: Subject, rewritten: Rewritten, evaluate: Evaluate | None) -> Metrics:
    """The caller's metric of copies of both models; None where there is none."""
    if evaluate is None:
        return None, None
    before = run_evaluate(evaluate, copy_model(subject.original).eval(), "before")
    return before, run_evaluate(evaluate, copy_model(rewritten.model).eval(), "after")


def verify(
    subject: Subject, plan: Plan, rewritten: Rewritten, view: GraphView, change: OutputChange, metrics: Metrics,
    speeds: Sequence[Speed],
) -> Verification:  # fmt: skip
    """All that was measured of the model before and after.

    Args:
        subject: The original and the data.
        plan: What was replaced.
        rewritten: The model after.
        view: Its recorded graph.
        change: Of its outputs.
        metrics: The caller's metric before and after, where it was measured.
        speeds: Times of both models, one or more.
    """
    return Verification(
        data=f"{subject.data.description} (the ones used for fitting)",
        examples=subject.data.examples,
        predicted_change=plan.predicted_loss,
        measured_change=change.relative,
        kl=change.kl,
        agreement=change.agreement,
        graph_difference=view.difference,
        speed=speeds[0],
        more_speeds=tuple(speeds[1:]),
        metric_before=metrics[0],
        metric_after=metrics[1],
        checks=list_checks(plan, rewritten.traced, view),
    )


def add_unseen(
    verification: Verification, subject: Subject, rewritten: Rewritten, scales: Sequence[OutputScale],
    joint: Joint | None, *, seed: int,
) -> Verification:  # fmt: skip
    """The same with the change on inputs that were not fitted to, where there are any.

    Args:
        verification: What was measured so far.
        subject: The original and the data. Where mixes of it were fitted to, new mixes are made.
        rewritten: The model after.
        scales: Spread of each output tensor.
        joint: What held examples out; None where they were trained on afterwards.
        seed: Of the run.
    """
    if subject.fitting.mixes:
        new = mix_anew(subject.data, seed=seed)
        change = measure_change(subject.working, rewritten.working, new, scales).relative
        return replace(verification, held_out_change=change, held_out_data=new.description)
    return verification if joint is None else replace(verification, held_out_change=joint.held_out)


def time_both(
    subject: Subject, plan: Plan, rewritten: Rewritten, timings: Sequence[Timing], ranks: Ranks
) -> tuple[Speed, ...]:  # fmt: skip
    """Times of both models as the caller will run them: own precision, eval mode, on the working device.

    Args:
        subject: The original.
        plan: What was replaced; in the first setting these layers are timed too.
        rewritten: The model after.
        timings: The settings.
        ranks: Who shares the work: one of them times.
    """
    return ranks.run_alone(lambda: _time_both(subject, rewritten, [step.path for step in plan.steps], timings))


def _time_both(
    subject: Subject, rewritten: Rewritten, paths: list[str], timings: Sequence[Timing]
) -> tuple[Speed, ...]:  # fmt: skip
    """Both models as the caller will run them: own precision, eval mode, on the working device; and some layers."""
    device = model_device(subject.working)
    before = copy_model(subject.original).to(device).eval()
    after = copy_model(rewritten.model).to(device).eval()
    inputs = working_inputs(subject.example, before, device)
    first, *others = [compare_speed(before, after, inputs, device=device, timing=timing) for timing in timings]
    return replace(first, layers=compare_layers(before, after, inputs, paths, device=device)), *others
