"""``apply``: a plan that was made before, on other weights of the same model.

Measured on the digits ResNet (99.1 % right), plans of one training at 0.5 and 0.25 of the multiply-adds, 64 unlabelled
inputs. On the weights of four more epochs and on those of another training it lost 0.00 points in all four cases (mean
KL to the original 0.0001), as did ``optimize`` on the same weights (0.00 to 0.13 points). Without data it lost 4.3 and
20 points, 4.0 and 36 of the other training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bottleneck_opt.applying import apply_plan
from bottleneck_opt.assuming import assume_statistics
from bottleneck_opt.budget import TIME, Budget, read_budget
from bottleneck_opt.calibrating import choose_sampling, measure_statistics
from bottleneck_opt.calibration import collect_statistics
from bottleneck_opt.carrying import Carried
from bottleneck_opt.choosing import Wish
from bottleneck_opt.distribution import ALONE
from bottleneck_opt.errors import BottleneckOptError
from bottleneck_opt.evaluating import Evaluate
from bottleneck_opt.files import as_path, read_bytes
from bottleneck_opt.finishing import list_made_notes, make_result, measure_carried
from bottleneck_opt.fitting import Fit
from bottleneck_opt.following import Course, follow, prepare_course
from bottleneck_opt.graph import Cost
from bottleneck_opt.joint import Joint
from bottleneck_opt.joint.stage import fit_plan
from bottleneck_opt.making_sites import read_weights
from bottleneck_opt.plan import Plan
from bottleneck_opt.progress import Stages
from bottleneck_opt.reading import find_example
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recorded_call import make_call
from bottleneck_opt.refitting import Refitted
from bottleneck_opt.registry import find_passes
from bottleneck_opt.result import Result
from bottleneck_opt.saving import PLAN, decode
from bottleneck_opt.sites import AnyPass
from bottleneck_opt.spilling import Storage, read_memory
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Stepping
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.summary import describe_run, list_joint_notes
from bottleneck_opt.timing import Timing
from bottleneck_opt.verifying import measure_metric
from bottleneck_opt.working_copy import undisturbed, unwrap_model

ALONE_NOTE = (
    "no calibration= was given: fitted to the weights alone, as if inputs were uncorrelated and the output felt all "
    "channels alike (G = S = I). Predicted changes are shares of each layer's own weights, and the output was measured "
    "on noise. A few unlabelled inputs (calibration=) keep far more accuracy"
)
NO_DATA = "no calibration= was given"


def apply(
    plan: Plan | str | Path,
    model: nn.Module,
    inputs: Any = None,
    *,
    calibration: Any = None,
    calibration_limit: int = 256,
    passes: Sequence[str | AnyPass] | None = None,
    evaluate: Evaluate | None = None,
    recipe: Recipe | None = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Result:
    """The same plan on other weights of the model, for instance after it was trained again.

    Layers, widths and dropped channels are those of the plan; only the weights are computed anew, and with them the
    predicted losses. Nothing is chosen: :func:`optimize` may find a better plan for these weights.

    Args:
        plan: From ``result.plan``, or the plan.json (or its folder) that ``result.save()`` wrote.
        model: The model with the other weights, built with the same arguments. It is not run and not changed.
        inputs: As for :func:`optimize`. Where it and ``calibration`` are None, what a report beside the plan says.
        calibration_limit, evaluate, recipe, memory, device, progress: As for :func:`optimize`.
        calibration: Unlabelled data that the layers are fitted to, as for :func:`optimize`. None fits to the weights
            alone, which keeps far less accuracy.
        passes: The passes that the plan was made with, where they are not installed or had other options than usual.
        seed: Of sampling; None takes the plan's.

    Returns:
        The rewritten model, measured against ``model``.

    Raises:
        RewriteError: The plan does not fit this model, or a pass no longer offers what it says.
        ModelError, InputError, PassError, FileError: See each; all are :class:`BottleneckOptError`.

    Example:
        >>> import bottleneck_opt as bo
        >>> net = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        >>> x = torch.randn(8, 8, 12, 12)
        >>> plan = bo.optimize(net, x[:1], calibration=x, budget=0.5, progress=False).plan
        >>> _ = nn.init.normal_(net[0].weight, std=0.1)  # trained on
        >>> apply(plan, net, x[:1], calibration=x, progress=False).plan.after == plan.after
        True
    """
    if inputs is None and calibration is None and not isinstance(plan, Plan):
        inputs = find_example(as_path(plan, "plan"))
    plan = plan if isinstance(plan, Plan) else read_plan(plan)
    needed = _name_passes(plan)
    chosen = find_passes(needed if passes is None else passes) if needed else ()
    original, stages = unwrap_model(model), Stages(shown=progress)
    seed = plan.seed if seed is None else seed
    with undisturbed(), Storage(read_memory(memory)) as storage:
        torch.manual_seed(seed)
        with stages.stage("trace"):
            call, recipe = _choose_call(plan, inputs), recipe or Recipe()
            request = Request(call, calibration, calibration_limit, device, seed, None, None, mixes=recipe.mixes)
            whole = prepare_subject(original, request, as_graph=plan.arguments is not None)
            course = prepare_course(whole, plan)
        subject = course.subject
        setting = _Setting(calibration is not None, chosen, recipe, seed, stages, storage)
        fit, carried, statistics = _carry_over(course, whole, setting)
        finished = measure_carried(
            fit, carried, statistics.scales, [Timing()], lambda: measure_metric(subject, carried.rewritten, evaluate)
        )
    if not setting.known:
        data = f"{subject.data.description} (not fitted to)"
        finished = replace(finished, verification=replace(finished.verification, data=data))
    return make_result(
        finished,
        budget_met=_is_met(plan, subject.traced.cost, carried.rewritten.traced.cost),
        notes=(
            _tell(plan),
            *(() if setting.known else (ALONE_NOTE,)),
            *list_made_notes(finished),
            *list_joint_notes(carried.joint, mixed=subject.fitting.mixes > 0),
            *finished.view.notes,
        ),
        provenance=describe_run(subject, carried.plan),
    )


@dataclass(frozen=True)
class _Setting:
    """What a plan is fitted with; ``known`` says that there are examples to fit it to."""

    known: bool
    passes: tuple[AnyPass, ...]
    recipe: Recipe
    seed: int
    stages: Stages
    storage: Storage


def _carry_over(course: Course, whole: Subject, setting: _Setting) -> tuple[Fit, Carried, Statistics]:
    """The usual ingredients, with the plan in the place of a choice.

    Args:
        course: The plan, and the model with the plan's layers as candidates.
        whole: The model with all candidates: the joint fit may change layers that the plan leaves alone.
        setting: What to fit with.
    """
    subject, recipe, stages = course.subject, setting.recipe, setting.stages
    if setting.known:
        statistics = measure_statistics(subject, stages, seed=setting.seed, storage=setting.storage)
    else:
        statistics = _assume(subject, setting.seed, setting.storage)
    statistics = statistics if recipe.curvature else statistics.without_curvature()
    with stages.stage("follow", total=len(course.plan.steps)) as advance:
        choice = follow(course, statistics, setting.passes, rounds=recipe.rounds, advance=advance)
    wish = Wish(setting.passes, {}, contract=False)
    fit = Fit(subject, Budget(macs=1.0), wish, recipe, setting.seed, stages, ALONE)
    plan, weights = _renew(course.plan, fit.make_plan(choice)), fit.fill(choice)
    if setting.known:
        refitted = fit.refit(plan, choice, weights, subject.fitting)
        joint = fit_plan(whole, plan, refitted.weights, statistics.scales, recipe, stages)
    else:
        refitted = Refitted(weights, (), dict.fromkeys(weights, NO_DATA))
        joint = Joint(skipped=NO_DATA)
    with stages.stage("rewrite"):
        rewritten = apply_plan(subject, plan, refitted.weights, joint.weights)
    return fit, Carried(Stepping(choice), plan, refitted, joint, rewritten, None), statistics


def read_plan(path: str | Path) -> Plan:
    """The plan in a file, or in the folder that ``result.save()`` wrote.

    Raises:
        FileError: There is none, or it is not a valid plan.
    """
    source = as_path(path, "plan")
    source = source / PLAN if source.is_dir() else source
    return Plan.from_json(decode(read_bytes(source, "the plan"), source))


def _choose_call(plan: Plan, inputs: Any) -> Any:
    """What the caller gave; else, where a recorded graph was rewritten, a call as it was recorded with."""
    if inputs is not None or not plan.arguments:
        return inputs
    call = make_call(plan)
    return call.args[0] if len(call.args) == 1 and not call.kwargs else call


def _name_passes(plan: Plan) -> list[str]:
    """The passes that fill the plan's layers; channels are dropped as the plan says, without one."""
    names = [step.pass_name for step in plan.steps if not step.in_place]
    return sorted({*names, *(sharing.pass_name for sharing in plan.sharings)})


def _assume(subject: Subject, seed: int, storage: Storage) -> Statistics:
    """``G = S = I`` for every layer of the plan, and the output's true spread on the data there is."""
    layers, probes = subject.candidates.layers, subject.candidates.probes
    kernels = {
        path: read_weights(subject.working.get_submodule(path), layer, probes.get(path))[0]
        for path, layer in layers.items()
    }
    seen = collect_statistics(subject.working, {}, subject.data, choose_sampling(subject, seed))
    return replace(seen, layers=assume_statistics(layers, kernels, storage))


def _renew(plan: Plan, made: Plan) -> Plan:
    """The plan with the costs and losses of this model; what it was asked for stays."""
    return replace(made, budget=plan.budget, passes=plan.passes, optimality_gap=plan.optimality_gap)


def _tell(plan: Plan) -> str:
    return (
        f"applied a plan made before: its {len(plan.steps)} layers were fitted to these weights, and nothing was "
        "chosen anew; optimize may find a better plan for them"
    )


def _is_met(plan: Plan, before: Cost, after: Cost) -> bool:
    """Whether the budget that the plan was made for is met; as cheap as planned, where it cannot be read again."""
    try:
        limits = read_budget(plan.budget)[0].limits(before)
    except BottleneckOptError:
        limits = {"macs": plan.after.macs, "params": plan.after.params}
    return all(getattr(after, unit) <= limit for unit, limit in limits.items() if unit != TIME)
