"""The end of a run: the finished model is measured, and everything known about it is put into one result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bottleneck_opt.carrying import Carried
from bottleneck_opt.fitting import Fit
from bottleneck_opt.graph_view import GraphView, view_rewritten
from bottleneck_opt.outcome import Promise, Provenance, Verification
from bottleneck_opt.progress import sum_seconds
from bottleneck_opt.promise_words import explain_unused
from bottleneck_opt.result import Result
from bottleneck_opt.skipping import UNUSED, list_skipped
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.summary import list_notes
from bottleneck_opt.timing import Timing
from bottleneck_opt.verification import measure_change
from bottleneck_opt.verifying import Metrics, add_unseen, time_both, verify


@dataclass(frozen=True)
class Finished:
    """A model that was made and measured.

    Attributes:
        fit: What it was fitted with.
        carried: How it was made.
        view: Its recorded graph.
        verification: What was measured.
    """

    fit: Fit
    carried: Carried
    view: GraphView
    verification: Verification


def measure_carried(
    fit: Fit, carried: Carried, scales: Sequence[OutputScale], timings: Sequence[Timing],
    measure_metrics: Callable[[], Metrics],
) -> Finished:  # fmt: skip
    """Measure a model that was made: its outputs, its times, and the caller's metric.

    Args:
        fit: What it was fitted with.
        carried: How it was made.
        scales: Spread of each output tensor.
        timings: The settings to time in.
        measure_metrics: Gives the caller's metric before and after.
    """
    subject, plan, rewritten = fit.subject, carried.plan, carried.rewritten
    with fit.stages.stage("verify", total=len(subject.data.batches)) as advance:
        change = measure_change(subject.working, rewritten.working, subject.data, scales, advance)
    with fit.stages.stage("time"):
        view = view_rewritten(subject.traced, plan, rewritten.model, rewritten.working)
        metrics = measure_metrics()
        speeds = time_both(subject, plan, rewritten, timings, fit.ranks)
        verification = verify(subject, plan, rewritten, view, change, metrics, speeds)
        joint = carried.joint if carried.recovered is None else None
        verification = add_unseen(verification, subject, rewritten, scales, joint, seed=fit.seed)
    return Finished(fit, carried, view, verification)


def list_made_notes(finished: Finished) -> tuple[str, ...]:
    """Where the numbers of a model come from, what was assumed, and what was not reached."""
    carried = finished.carried
    return list_notes(
        finished.fit.subject,
        carried.choice,
        carried.refitted,
        recorded=carried.rewritten.traced.cost,
        budget=carried.plan.budget,
        measured=finished.verification.measured_change,
    )


def make_result(
    finished: Finished, *, budget_met: bool, notes: tuple[str, ...], provenance: Provenance,
    promise: Promise | None = None,
) -> Result:  # fmt: skip
    """Everything that is known about a model that was made and measured.

    Args:
        finished: The model.
        budget_met: Whether it is within the budget.
        notes: Everything a careful user should know.
        provenance: What it was made from.
        promise: What the search above a floor tried; None where there was no floor.
    """
    subject, carried = finished.fit.subject, finished.carried
    choice, rewritten = carried.choice, carried.rewritten
    return Result(
        plan=carried.plan,
        skipped=list_skipped(
            subject.working,
            subject.traced,
            subject.candidates,
            choice.proposals,
            choice.allocation.chosen,
            unused=explain_unused(promise) if promise else UNUSED,
        ),
        before=subject.traced,
        after=rewritten.traced,
        verification=finished.verification,
        budget_met=budget_met,
        notes=notes,
        seconds=sum_seconds(finished.fit.stages.seconds),
        provenance=provenance,
        model=rewritten.model,
        graph_module=finished.view.graph_module,
        corrections=carried.refitted.corrections,
        recovery=carried.recovered,
        frontier=choice.allocation.frontier,
        curves=choice.curves,
        promise=promise,
        clocked=carried.stepping.clocked,
    )
