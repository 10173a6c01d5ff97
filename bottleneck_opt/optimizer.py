"""``optimize``: the stages in order, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bottleneck_opt.applying import Rewritten, apply_plan
from bottleneck_opt.budget import Amount, Budget, read_budget
from bottleneck_opt.calibration import Sampling, choose_probes, collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.choosing import Choice, Wish, find_droppable
from bottleneck_opt.errors import BudgetError, InputError, NotAvailableError
from bottleneck_opt.graph import Cost
from bottleneck_opt.graph_view import GraphView, view_rewritten
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.joint.stage import fit_plan
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.outcome import Recovered, Speed, Verification
from bottleneck_opt.plan import Plan
from bottleneck_opt.progress import Stages
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recovery import Recovery, check_examples, list_recovery_notes, read_recovery, teach
from bottleneck_opt.recovery.weights import copy_weights
from bottleneck_opt.refitting import Refitted, refit
from bottleneck_opt.registry import find_passes
from bottleneck_opt.result import Result
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import AnyPass, Weights
from bottleneck_opt.skipping import list_skipped
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Build, Seen, choose_in_steps
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.summary import describe_run, list_checks, list_joint_notes, list_notes, list_step_notes
from bottleneck_opt.verification import Evaluate, measure_change, run_evaluate
from bottleneck_opt.working_copy import copy_model, model_device, undisturbed, unwrap_model, working_inputs


def optimize(
    model: nn.Module,
    inputs: Any = None,
    *,
    calibration: Any = None,
    calibration_limit: int = 256,
    budget: float | str | Budget | Mapping[str, Amount] | None = None,
    passes: Sequence[str | AnyPass] | None = None,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float | None = None,
    recover: int | Recovery | None = None,
    recipe: Recipe | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """A smaller copy of a trained model: expensive layers become thin chains fitted to weights and data, without
    labels, and without training unless ``recover=`` asks for it.

    Args:
        model: Any module. It is not run, not moved and not changed; all work is done on copies.
        inputs: One example call: a Tensor, a tuple of arguments or a dict of keyword arguments. None infers it.
        calibration: Unlabelled data: a Tensor (split along axis 0) or an iterable of batches. None uses noise.
        calibration_limit: Examples read at most; they are kept on the CPU.
        budget: How small: ``0.5``, ``"macs=0.5, params=0.4"`` or a :class:`Budget`. None aims at half the MACs.
        passes: Names or pass objects; None uses the built-in ones.
        include, exclude: Glob patterns over module paths.
        evaluate: ``evaluate(model) -> float`` or one score a sample, higher is better; measured before and after.
        max_drop: Not in this version.
        recover: Steps of training towards the original's outputs, on the calibration data and without labels, or a
            :class:`Recovery`. Weights that do no better on held-out examples are not kept. None trains nothing.
        recipe: Which ingredients of the method to use; None uses all.
        device: Where to calibrate and measure; None uses the model's own device. The result is on the model's device.
        seed: Of noise, sampled positions and output directions, and of recovery unless a :class:`Recovery` has its
            own.
        progress: Show progress on standard error.

    Returns:
        The rewritten model with its plan, costs, measurements, pictures and notes.

    Raises:
        ModelError, InputError, BudgetError, PassError, PatternError, RewriteError, FileError, NotAvailableError: See
            each; all are :class:`BottleneckOptError`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        >>> result = optimize(net, torch.randn(1, 8, 12, 12), budget=0.5, progress=False)
        >>> result.after.cost.macs <= 0.5 * result.before.cost.macs
        True
    """
    _check_seed(seed)
    _check_promise(evaluate=evaluate, max_drop=max_drop)
    recovery = read_recovery(recover, seed=seed)
    recipe = recipe or Recipe()
    chosen = find_passes(passes)
    wanted, contract = read_budget(budget)
    stages = Stages(shown=progress)
    original = unwrap_model(model)
    with undisturbed():
        torch.manual_seed(seed)
        with stages.stage("trace"):
            request = Request(inputs, calibration, calibration_limit, device, seed, include, exclude)
            subject = prepare_subject(original, request)
            if recovery is not None:
                check_examples(subject.working, subject.data, recovery)
            links = find_droppable(subject, chosen)
        statistics = _calibrate(subject, recipe, stages, seed=seed)
        limits = wanted.limits(subject.traced.cost)
        wish = Wish(chosen, limits, contract, recipe.rounds)
        seen = Seen(subject, statistics, _choose_sampling(subject, recipe, seed=seed), links)
        stepping = choose_in_steps(seen, wish, recipe.steps, _prepare_build(subject, wanted, recipe, stages), stages)
        choice = stepping.choice
        plan = _make_plan(subject, choice, wanted, chosen, seed)
        refitted = _refit(subject, plan, choice, _fill(choice, stages), recipe, stages)
        joint = fit_plan(subject, plan, refitted.weights, statistics.scales, recipe, stages)
        with stages.stage("rewrite"):
            rewritten = apply_plan(subject, plan, refitted.weights, joint.weights)
        met = _is_met(rewritten.traced.cost, limits, contract=contract)
        recovered = _recover(subject, rewritten, statistics, recovery, stages)
        with stages.stage("verify"):
            view = view_rewritten(subject.traced, plan, rewritten.model, rewritten.working)
            verification = _verify(subject, rewritten, plan, view, statistics, evaluate, trained=recovered is not None)
    return Result(
        plan=plan,
        skipped=list_skipped(
            subject.working, subject.traced, subject.candidates, choice.proposals, choice.allocation.chosen
        ),
        before=subject.traced,
        after=rewritten.traced,
        verification=verification,
        budget_met=met,
        notes=(
            *list_notes(
                subject,
                choice,
                refitted,
                recorded=rewritten.traced.cost,
                budget=plan.budget,
                measured=verification.measured_change,
            ),
            *list_step_notes(stepping),
            *list_joint_notes(joint),
            *view.notes,
            *(list_recovery_notes(recovered) if recovered else ()),
        ),
        seconds=tuple(stages.seconds),
        provenance=describe_run(subject, plan),
        model=rewritten.model,
        graph_module=view.graph_module,
        corrections=refitted.corrections,
        recovery=recovered,
    )


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise InputError(f"seed: got {seed!r}; expected a whole number of at most 63 bits. Pass for instance seed=0.")


def _check_promise(*, evaluate: Evaluate | None, max_drop: float | None) -> None:
    if evaluate is not None and not callable(evaluate):
        raise InputError(
            f"evaluate: got {type(evaluate).__name__}; expected a function of a model. Pass evaluate(model) -> float."
        )
    if max_drop is not None:
        raise NotAvailableError(
            "max_drop: this version does not search for the smallest model above a floor. "
            "Pass evaluate= and read result.verification.metric_before and metric_after."
        )


def _choose_sampling(subject: Subject, recipe: Recipe, *, seed: int) -> Sampling:
    macs = subject.traced.cost.macs / max(1, batch_size(subject.example))
    probes = choose_probes(subject.data.examples, macs) if recipe.curvature else 0
    return Sampling(subject.data.examples, probes, seed)


def _calibrate(subject: Subject, recipe: Recipe, stages: Stages, *, seed: int) -> Statistics:
    sampling = _choose_sampling(subject, recipe, seed=seed)
    with stages.stage("calibrate", total=2 * len(subject.data.batches)) as advance:
        return collect_statistics(
            subject.working, subject.candidates.layers, subject.data, sampling,
            names=subject.candidates.names, advance=advance,
        )  # fmt: skip


def _make_plan(subject: Subject, choice: Choice, budget: Budget, passes: Sequence[AnyPass], seed: int) -> Plan:
    kind = type(subject.original)
    return Plan(
        model=f"{kind.__module__}.{kind.__qualname__}",
        budget=budget.describe(),
        passes=tuple(each.name for each in passes),
        seed=seed,
        before=subject.traced.cost,
        after=choice.allocation.cost,
        predicted_loss=choice.allocation.loss,
        optimality_gap=choice.allocation.gap,
        steps=choice.steps,
        selections=choice.selections,
    )


def _fill(choice: Choice, stages: Stages) -> dict[str, Sequence[Weights]]:
    """The chosen options' weights, by path; of a layer that only got narrower, its own."""
    weights: dict[str, Sequence[Weights]] = {}
    with stages.stage("fit", total=len(choice.changed)) as advance:
        for proposal, priced in choice.changed:
            site = proposal.site
            weights[site.path] = [Weights(site.weight, site.bias)] if priced is None else priced.option.fill()
            advance()
    return weights


def _refit(
    subject: Subject, plan: Plan, choice: Choice, weights: Mapping[str, Sequence[Weights]], recipe: Recipe,
    stages: Stages,
) -> Refitted:  # fmt: skip
    if not recipe.refit:
        return Refitted(weights, (), {step.path: "recipe= leaves it out" for step in plan.steps})
    curvatures = {proposal.site.path: proposal.site.curvature() for proposal, _ in choice.changed}
    with stages.stage("refit", total=len(plan.steps)) as advance:
        return refit(subject.working, subject.traced, plan, weights, curvatures, subject.data, advance)


def _prepare_build(subject: Subject, budget: Budget, recipe: Recipe, stages: Stages) -> Build:
    """What makes a choice's rewritten working copy, for looking at it."""

    def build(choice: Choice) -> Callable[[CalibrationData], nn.Module]:
        plan = _make_plan(subject, choice, budget, (), 0)
        weights = _fill(choice, stages)

        def finish(data: CalibrationData) -> nn.Module:
            refitted = _refit(replace(subject, data=data), plan, choice, weights, recipe, stages)
            return rewrite_model(subject.working, plan, refitted.weights)

        return finish

    return build


def _is_met(recorded: Cost, limits: Mapping[str, int], *, contract: bool) -> bool:
    """Whether the rewritten model, as recorded, is within the limits; for a typed budget it must be."""
    over = [f"{getattr(recorded, unit):,} {unit}" for unit, limit in limits.items() if getattr(recorded, unit) > limit]
    if over and contract:
        raise BudgetError(
            f"the rewritten model was recorded with {' and '.join(over)}, more than planned and allowed: "
            "it does not use its new layers as it used the old ones. Find them with include= and exclude=."
        )
    return not over


def _recover(
    subject: Subject, rewritten: Rewritten, statistics: Statistics, recovery: Recovery | None, stages: Stages
) -> Recovered | None:
    """Train the rewritten model; its working copy takes the values over as the model's precision rounds them."""
    if recovery is None:
        return None
    with stages.stage("recover", total=recovery.steps) as advance:
        recovered = teach(
            subject.working, rewritten.model, subject.data, recovery, scales=statistics.scales, advance=advance
        )
    if recovered.accepted:
        copy_weights(rewritten.model, rewritten.working)
    return recovered


def _verify(
    subject: Subject,
    rewritten: Rewritten,
    plan: Plan,
    view: GraphView,
    statistics: Statistics,
    evaluate: Evaluate | None,
    *,
    trained: bool,
) -> Verification:
    change = measure_change(subject.working, rewritten.working, subject.data, statistics.scales)
    speed = _time_both(subject, rewritten)
    before = run_evaluate(evaluate, copy_model(subject.original).eval(), "before") if evaluate else None
    after = run_evaluate(evaluate, copy_model(rewritten.model).eval(), "after") if evaluate else None
    return Verification(
        data=f"{subject.data.description} (the ones used for fitting{' and recovery' if trained else ''})",
        examples=subject.data.examples,
        predicted_change=plan.predicted_loss,
        measured_change=change.relative,
        kl=change.kl,
        agreement=change.agreement,
        graph_difference=view.difference,
        speed=speed,
        metric_before=before,
        metric_after=after,
        checks=list_checks(plan, rewritten.traced, view),
    )


def _time_both(subject: Subject, rewritten: Rewritten) -> Speed:
    """Both models as the caller will run them: own precision, eval mode, on the working device."""
    device = model_device(subject.working)
    before = copy_model(subject.original).to(device).eval()
    after = copy_model(rewritten.model).to(device).eval()
    return compare_speed(before, after, working_inputs(subject.example, before, device), device=device)
