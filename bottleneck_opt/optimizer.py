"""``optimize``: the stages in order, nothing else."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn

from bottleneck_opt.allocation import Allocation, allocate
from bottleneck_opt.budget import Amount, Budget, read_budget
from bottleneck_opt.calibration import Sampling, choose_probes, collect_statistics
from bottleneck_opt.calibration_data import CalibrationData, read_calibration
from bottleneck_opt.eligibility import Candidates, find_candidates
from bottleneck_opt.errors import InputError, NotAvailableError
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import Inputs, batch_size, vary_inputs
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.outcome import Provenance, Speed, Verification
from bottleneck_opt.plan import Plan, Step
from bottleneck_opt.progress import Stages
from bottleneck_opt.proposing import Proposal, make_sites, make_step, name_unfelt, propose
from bottleneck_opt.registry import find_passes
from bottleneck_opt.result import Result
from bottleneck_opt.rewriting import rewrite_graph, rewrite_model
from bottleneck_opt.sites import Pass, Weights
from bottleneck_opt.skipping import list_skipped
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.tracing import build_graph_module, choose_inputs, compare_runs, runs_on, trace_working
from bottleneck_opt.verification import check_calls, measure_change, run_evaluate
from bottleneck_opt.version import __version__
from bottleneck_opt.working_copy import (
    copy_model,
    model_device,
    run_on_example,
    undisturbed,
    unwrap_model,
    working_copy,
    working_inputs,
)

Evaluate = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class _Request:
    """What the caller asked to be looked at, as it was given."""

    inputs: Any
    calibration: Any
    limit: int
    device: str | torch.device | None
    seed: int
    include: Sequence[str] | None
    exclude: Sequence[str] | None


@dataclass(frozen=True)
class _Subject:
    """The model under work: the caller's own (never run), the copy that is, its recording and its data."""

    original: nn.Module
    working: nn.Module
    traced: Traced
    data: CalibrationData
    candidates: Candidates
    notes: tuple[str, ...]

    @property
    def example(self) -> Inputs:
        return self.traced.inputs


@dataclass(frozen=True)
class _Rewritten:
    """The result's model, its working copy, its recording and the graph view over its parameters."""

    model: nn.Module
    working: nn.Module
    traced: Traced
    graph_module: torch.fx.GraphModule | None
    graph_difference: float | None
    notes: tuple[str, ...]


def optimize(
    model: nn.Module,
    inputs: Any = None,
    *,
    calibration: Any = None,
    calibration_limit: int = 256,
    budget: float | str | Budget | Mapping[str, Amount] | None = None,
    passes: Sequence[str | Pass] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    recover: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """A smaller copy of a trained model: expensive layers become thin chains fitted to weights and data, without
    training.

    Args:
        model: Any module. It is not run, not moved and not changed; all work is done on copies.
        inputs: One example call: a Tensor, a tuple of arguments or a dict of keyword arguments. None infers it.
        calibration: Unlabelled data: a Tensor (split along axis 0) or an iterable of batches. None uses noise.
        calibration_limit: Examples read at most; they are kept on the CPU.
        budget: How small: ``0.5``, ``"macs=0.5, params=0.4"`` or a :class:`Budget`. None aims at half the MACs.
        passes: Names or pass objects; None uses every installed pass.
        include, exclude: Glob patterns over module paths.
        evaluate: ``evaluate(model) -> float`` or one score a sample, higher is better; measured before and after.
        max_drop, recover: Not in this version.
        device: Where to calibrate and measure; None uses the model's own device. The result is on the model's device.
        seed: Of noise, sampled positions and output directions.
        progress: Show progress on standard error.

    Returns:
        The rewritten model with its plan, costs, measurements, pictures and notes.

    Raises:
        ModelError, InputError, BudgetError, PassError, PatternError, RewriteError, NotAvailableError: See each; all are
            :class:`BottleneckOptError`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        >>> result = optimize(net, torch.randn(1, 8, 12, 12), budget=0.5, progress=False)
        >>> result.after.cost.macs <= 0.5 * result.before.cost.macs
        True
    """
    _refuse_later_options(evaluate=evaluate, max_drop=max_drop, recover=recover)
    chosen = find_passes(passes)
    wanted, contract = read_budget(budget)
    stages = Stages(shown=progress)
    original = unwrap_model(model)
    with undisturbed():
        torch.manual_seed(seed)
        with stages.stage("trace"):
            request = _Request(inputs, calibration, calibration_limit, device, seed, include, exclude)
            subject = _prepare(original, request)
        statistics = _calibrate(subject, stages, seed=seed)
        limits = wanted.limits(subject.traced.cost)
        proposals = _propose(subject, statistics, chosen, tuple(limits), stages)
        with stages.stage("allocate"):
            allocation = allocate(proposals, subject.traced.cost, limits, contract=contract)
            plan = _make_plan(subject, proposals, allocation, wanted, chosen, seed)
        rewritten = _rewrite(subject, plan, allocation, stages)
        verification = _verify(subject, rewritten, plan, statistics, evaluate, stages)
    return Result(
        plan=plan,
        skipped=list_skipped(subject.working, subject.traced, subject.candidates, proposals, allocation),
        before=subject.traced,
        after=rewritten.traced,
        verification=verification,
        budget_met=allocation.met,
        notes=_notes(subject, proposals, allocation, rewritten, wanted),
        seconds=tuple(stages.seconds),
        provenance=_provenance(subject, plan, device),
        model=rewritten.model,
        graph_module=rewritten.graph_module,
    )


def _refuse_later_options(*, evaluate: Evaluate | None, max_drop: float | None, recover: int | None) -> None:
    if evaluate is not None and not callable(evaluate):
        raise InputError(
            f"evaluate: got {type(evaluate).__name__}; expected a function of a model. Pass evaluate(model) -> float."
        )
    if max_drop is not None:
        raise NotAvailableError(
            "max_drop: this version does not search for the smallest model above a floor. "
            "Pass evaluate= and read result.verification.metric_before and metric_after."
        )
    if recover is not None:
        raise NotAvailableError("recover: this version does not train. Fine-tune result.model as any module.")


def _prepare(original: nn.Module, request: _Request) -> _Subject:
    working = working_copy(original)
    if request.device is not None:
        working = working.to(request.device)
    example, notes = choose_inputs(working, request.inputs)
    traced = trace_working(working, example)
    data = read_calibration(
        request.calibration,
        example,
        given=request.inputs,
        limit=request.limit,
        seed=request.seed,
        runs=lambda call: runs_on(working, call),
    )
    candidates = find_candidates(working, traced, include=request.include, exclude=request.exclude)
    return _Subject(original, working, traced, data, candidates, notes)


def _calibrate(subject: _Subject, stages: Stages, *, seed: int) -> Statistics:
    macs = subject.traced.cost.macs / max(1, batch_size(subject.example))
    sampling = Sampling(subject.data.examples, choose_probes(subject.data.examples, macs), seed)
    with stages.stage("calibrate", total=2 * len(subject.data.batches)) as advance:
        return collect_statistics(subject.working, subject.candidates.layers, subject.data, sampling, advance=advance)


def _propose(
    subject: _Subject, statistics: Statistics, passes: Sequence[Pass], units: Sequence[str], stages: Stages
) -> list[Proposal]:
    sites = make_sites(subject.working, subject.traced, subject.candidates, statistics)
    with stages.stage("propose", total=len(sites)) as advance:
        return propose(sites, passes, units, advance)


def _make_plan(
    subject: _Subject, proposals: Sequence[Proposal], allocation: Allocation, budget: Budget, passes: Sequence[Pass],
    seed: int,
) -> Plan:  # fmt: skip
    kind = type(subject.original)
    return Plan(
        model=f"{kind.__module__}.{kind.__qualname__}",
        budget=budget.describe(),
        passes=tuple(each.name for each in passes),
        seed=seed,
        before=subject.traced.cost,
        after=allocation.cost,
        predicted_loss=allocation.loss,
        optimality_gap=allocation.gap,
        steps=tuple(_make_steps(proposals, allocation)),
    )


def _make_steps(proposals: Sequence[Proposal], allocation: Allocation) -> list[Step]:
    return [
        make_step(proposal.site, chosen)
        for proposal, chosen in zip(proposals, allocation.chosen, strict=True)
        if chosen is not None
    ]


def _rewrite(subject: _Subject, plan: Plan, allocation: Allocation, stages: Stages) -> _Rewritten:
    chosen = [priced for priced in allocation.chosen if priced is not None]
    weights: dict[str, Sequence[Weights]] = {}
    with stages.stage("rewrite", total=len(chosen)) as advance:
        for step, priced in zip(plan.steps, chosen, strict=True):
            weights[step.path] = priced.option.fill()
            advance()
        model = rewrite_model(subject.original, plan, weights)
        working = working_copy(model).to(model_device(subject.working))
        calls = {step.path: len(subject.traced.structure.calls_of(step.path)) for step in plan.steps}
        with torch.no_grad():
            check_calls(working, plan, calls, lambda: run_on_example(working, subject.example))
        traced = trace_working(working, subject.example)
        graph_module, difference, notes = _make_graph_view(subject, plan, model, working)
    return _Rewritten(model, working, traced, graph_module, difference, notes)


def _make_graph_view(
    subject: _Subject, plan: Plan, model: nn.Module, working: nn.Module
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
    like = next(model.parameters(), torch.zeros(()))
    placed = {
        name: t.to(like.device, like.dtype) if t.is_floating_point() else t.to(like.device)
        for name, t in constants.items()
    }
    return build_graph_module(model, graph, placed), replay.difference, ()


def _verify(
    subject: _Subject,
    rewritten: _Rewritten,
    plan: Plan,
    statistics: Statistics,
    evaluate: Evaluate | None,
    stages: Stages,
) -> Verification:
    with stages.stage("verify"):
        change = measure_change(subject.working, rewritten.working, subject.data, statistics.scales)
        speed = _time_both(subject, rewritten)
        before = run_evaluate(evaluate, copy_model(subject.original).eval(), "before") if evaluate else None
        after = run_evaluate(evaluate, copy_model(rewritten.model).eval(), "after") if evaluate else None
    return Verification(
        data=f"{subject.data.description} (the ones used for fitting)",
        examples=subject.data.examples,
        predicted_change=plan.predicted_loss,
        measured_change=change.relative,
        kl=change.kl,
        agreement=change.agreement,
        graph_difference=rewritten.graph_difference,
        speed=speed,
        metric_before=before,
        metric_after=after,
        checks=_checks(plan, rewritten),
    )


def _time_both(subject: _Subject, rewritten: _Rewritten) -> Speed:
    """Both models as the caller will run them: own precision, eval mode, on the working device."""
    device = model_device(subject.working)
    before = copy_model(subject.original).to(device).eval()
    after = copy_model(rewritten.model).to(device).eval()
    return compare_speed(before, after, working_inputs(subject.example, before, device), device=device)


def _checks(plan: Plan, rewritten: _Rewritten) -> tuple[str, ...]:
    layers = sum(len(step.layers) for step in plan.steps)
    checks = ["outputs have the same shapes and are finite"]
    if layers:
        checks.append(f"all {layers} new layers were called as often as the layers they replace")
    if rewritten.graph_difference is not None:
        checks.append(
            f"rewritten module and rewritten graph agree on a new input (difference {rewritten.graph_difference:.1e})"
        )
    return tuple(checks)


def _notes(
    subject: _Subject, proposals: Sequence[Proposal], allocation: Allocation, rewritten: _Rewritten, budget: Budget
) -> tuple[str, ...]:
    notes = [*subject.notes, *subject.traced.notes, *rewritten.notes]
    if subject.data.noise:
        notes.append("calibrated on noise: a few real images (calibration=) keep far more accuracy")
    unfelt = name_unfelt([proposal.site for proposal in proposals])
    if unfelt:
        notes.append(f"no gradient reached {', '.join(unfelt)}: the median importance of the other layers was assumed")
    if not any(allocation.chosen):
        notes.append("nothing was rewritten: the result is an unchanged copy; result.skipped says why for each layer")
    if not allocation.met:
        ratio = allocation.cost.macs / max(subject.traced.cost.macs, 1)
        notes.append(
            f"the budget {budget.describe()} is out of reach: this is the smallest plan, {ratio:.1%} of the MACs"
        )
    if allocation.gap > 0:
        notes.append(f"the choice of ranks may lose up to {allocation.gap:.2e} more than the best choice")
    return tuple(notes)


def _provenance(subject: _Subject, plan: Plan, device: str | torch.device | None) -> Provenance:
    versions = (("bottleneck-opt", __version__), ("torch", torch.__version__), ("python", platform.python_version()))
    return Provenance(
        model=plan.model,
        inputs=subject.example.describe(),
        calibration=subject.data.description,
        passes=plan.passes,
        budget=plan.budget,
        seed=plan.seed,
        versions=versions,
        device=str(model_device(subject.working) if device is None else device),
        threads=torch.get_num_threads(),
    )
