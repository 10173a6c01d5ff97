"""``optimize``: the stages in order, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bottleneck_opt.applying import Rewritten, apply_plan
from bottleneck_opt.budget import Amount, Budget, read_budget
from bottleneck_opt.calibrating import measure_statistics, read_statistics
from bottleneck_opt.choosing import Wish, find_ties
from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.errors import BudgetError, InputError, NotAvailableError
from bottleneck_opt.fitting import Fit
from bottleneck_opt.graph import Cost
from bottleneck_opt.graph_view import GraphView, view_rewritten
from bottleneck_opt.joint import Joint
from bottleneck_opt.joint.stage import fit_plan
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.outcome import Recovered, Speed, Verification
from bottleneck_opt.plan import Plan
from bottleneck_opt.progress import Stages
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recovery import Recovery, check_examples, list_recovery_notes, read_recovery, teach
from bottleneck_opt.recovery.weights import copy_weights
from bottleneck_opt.refitting import Refitted
from bottleneck_opt.registry import find_passes
from bottleneck_opt.result import Result
from bottleneck_opt.sites import AnyPass, SharingPass
from bottleneck_opt.skipping import list_skipped
from bottleneck_opt.spilling import Storage, read_memory
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Seen, choose_in_steps
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.summary import (
    describe_run,
    lacks_data,
    list_checks,
    list_data_notes,
    list_joint_notes,
    list_notes,
    list_step_notes,
)
from bottleneck_opt.verification import Evaluate, measure_change, run_evaluate
from bottleneck_opt.working_copy import copy_model, model_device, undisturbed, unwrap_model, working_inputs

UNKNOWN_DATA = "no calibration= was given beside statistics="


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
    statistics: Statistics | str | Path | None = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> Result:
    """A smaller copy of a trained model: expensive layers become thin chains fitted to weights and data, without
    labels, and without training unless ``recover=`` asks for it.

    Args:
        model: Any module. It is not run, not moved and not changed; all work is done on copies.
        inputs: One example call: a Tensor, a tuple of arguments or a dict of keyword arguments. None infers it.
        calibration: Unlabelled data: a Tensor (split along axis 0) or an iterable of batches. None uses noise.
        calibration_limit: Examples read at most; they are kept on the CPU.
        budget: How small: ``0.5``, ``"macs=0.5, params=0.4"`` or a :class:`Budget`. None aims at half the MACs.
        passes: Names or pass objects; None uses the built-in ones that keep the model's class. With ``shared`` the
            model's recorded graph is rewritten, and the result is a GraphModule.
        include, exclude: Glob patterns over module paths.
        evaluate: ``evaluate(model) -> float`` or one score a sample, higher is better; measured before and after.
        max_drop: Not in this version.
        recover: Steps of training towards the original's outputs, on the calibration data and without labels, or a
            :class:`Recovery`. Weights that do no better on held-out examples are not kept. None trains nothing.
        recipe: Which ingredients of the method to use; None uses all.
        statistics: What :func:`calibrate` returned, or the file it was saved to: the data is then not run through the
            model again for the fits. ``calibration`` is still what layers are refitted to and measured on; without it,
            nothing is refitted unless the statistics were of noise too.
        memory: What the covariances may take, such as ``"2GB"``; the rest is kept in files of a temporary folder while
            this runs. The result is the same. None takes half of what is free.
        device: Where to calibrate and measure; None uses the model's own device. The result is on the model's device.
        seed: Of noise, sampled positions and output directions, and of recovery unless a :class:`Recovery` has its
            own.
        progress: Show progress on standard error.
        ranks: Who shares the work, from :func:`bottleneck_opt.distribution.joined_ranks`. All get the same plan.

    Returns:
        The rewritten model with its plan, costs, measurements, pictures and notes.

    Raises:
        ModelError, InputError, BudgetError, PassError, PatternError, RewriteError, FileError, NotAvailableError,
            RanksError: See each; all are :class:`BottleneckOptError`.

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
    with undisturbed(), Storage(read_memory(memory, processes=ranks.local)) as storage:
        torch.manual_seed(seed)
        with stages.stage("trace"):
            request = Request(inputs, calibration, calibration_limit, device, seed, include, exclude)
            subject = prepare_subject(original, request, as_graph=_needs_graph(chosen))
            if recovery is not None:
                check_examples(subject.working, subject.data, recovery)
            ties = find_ties(subject, chosen)
        if statistics is None:
            statistics = measure_statistics(subject, stages, seed=seed, storage=storage, ranks=ranks)
        else:
            statistics = read_statistics(statistics, subject)
        statistics = statistics if recipe.curvature else statistics.without_curvature()
        limits = wanted.limits(subject.traced.cost)
        wish = Wish(chosen, limits, contract, recipe.rounds)
        seen = Seen(subject, statistics, ties, seed, curvature=recipe.curvature)
        fit = Fit(subject, wanted, wish, recipe, seed, stages, ranks)
        known = not lacks_data(subject, statistics)
        stepping = choose_in_steps(seen, wish, recipe.steps if known else 1, fit.prepare, stages, ranks)
        choice = stepping.choice
        plan, weights = fit.make_plan(choice), fit.fill(choice)
        refitted, joint = Refitted(weights, (), dict.fromkeys(weights, UNKNOWN_DATA)), Joint(skipped=UNKNOWN_DATA)
        if known:
            refitted = fit.refit(plan, choice, weights, subject.data)
            joint = fit_plan(subject, plan, refitted.weights, statistics.scales, recipe, stages)
        with stages.stage("rewrite"):
            rewritten = apply_plan(subject, plan, refitted.weights, joint.weights)
        met = _is_met(rewritten.traced.cost, limits, contract=contract)
        recovered = _recover(subject, rewritten, statistics, recovery, stages)
        with stages.stage("verify"):
            view = view_rewritten(subject.traced, plan, rewritten.model, rewritten.working)
            trained = recovered is not None
            verification = verify(subject, rewritten, plan, view, statistics, evaluate, ranks, trained=trained)
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
            *list_data_notes(subject, statistics),
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


def _needs_graph(passes: Sequence[AnyPass]) -> bool:
    return any(isinstance(each, SharingPass) for each in passes)


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
    with stages.stage("recover", total=recovery.steps) as shown:
        recovered = teach(
            subject.working, rewritten.model, subject.data, recovery, scales=statistics.scales, shown=shown
        )
    if recovered.accepted:
        copy_weights(rewritten.model, rewritten.working)
    return recovered


def verify(
    subject: Subject,
    rewritten: Rewritten,
    plan: Plan,
    view: GraphView,
    statistics: Statistics,
    evaluate: Evaluate | None,
    ranks: Ranks,
    *,
    trained: bool,
) -> Verification:
    """Compare outputs, speed and the caller's metric of the model before and after."""
    change = measure_change(subject.working, rewritten.working, subject.data, statistics.scales)
    speed = ranks.run_alone(lambda: _time_both(subject, rewritten))
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
