"""``optimize``: the stages in order, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bottleneck_opt.budget import Amount, Budget, read_budget
from bottleneck_opt.calibrating import keep_statistics, read_statistics
from bottleneck_opt.carrying import carry_out
from bottleneck_opt.chooser import Order, check_alone, prepare_choice
from bottleneck_opt.choosing import find_ties
from bottleneck_opt.clock_notes import list_clock_notes
from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.errors import BudgetError, InputError
from bottleneck_opt.evaluating import Evaluate
from bottleneck_opt.fingerprints import fingerprint
from bottleneck_opt.finishing import Finished, list_made_notes, make_result, measure_carried
from bottleneck_opt.floor import Floor, check_max_drop
from bottleneck_opt.graph import Cost
from bottleneck_opt.keeping import Cache, open_cache
from bottleneck_opt.kept_answers import remember_answers
from bottleneck_opt.progress import Stages
from bottleneck_opt.promise import Search, keep_promise, measure_original
from bottleneck_opt.promise_words import list_promise_notes
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recovery import Recovery, check_examples, list_recovery_notes, read_recovery
from bottleneck_opt.registry import find_passes
from bottleneck_opt.result import Result
from bottleneck_opt.sites import AnyPass, SharingPass
from bottleneck_opt.spilling import Storage, read_memory
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.summary import (
    describe_run,
    list_data_notes,
    list_joint_notes,
    list_step_notes,
)
from bottleneck_opt.timing import Timing, read_timings
from bottleneck_opt.verifying import measure_metric
from bottleneck_opt.working_copy import undisturbed, unwrap_model


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
    timing: Timing | str | Sequence[Timing | str] | None = None,
    allow_slower: bool | None = None,
    cache: str | Path | None = None,
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
        calibration: Unlabelled data: a Tensor (split along axis 0), an iterable of batches, or where it lies: a folder
            of images, which are normalised as the model says, a ``.npy`` or a ``.safetensors`` file. None uses noise.
        calibration_limit: Examples read at most; they are kept on the CPU.
        budget: How small: ``0.5``, ``"macs=0.5, params=0.4"``, ``"latency=0.7"`` or a :class:`Budget`.
            None aims at half the MACs.
        passes: Names or pass objects; None uses the built-in ones that keep the model's class. A name may set options:
            ``"tucker:steps=4"``. With ``shared`` the model's recorded graph is rewritten, and the result is a
            GraphModule.
        include, exclude: Glob patterns over module paths.
        evaluate: ``evaluate(model) -> float`` or one score a sample, higher is better; measured before and after. It
            gets copies: what it does to them does not reach the result.
        max_drop: How far that metric may drop, in its own units. The smallest model found above that floor is returned
            or, where a budget is given, the one at the budget or the nearest to it; the original where none holds. A
            handful of models is made and measured, each trained by ``recover`` where that is given, and the returned
            one is measured twice. With one score a sample, the lower end of a confidence interval must hold too.
        recover: Steps of training towards the original's outputs, on the calibration data and without labels, or a
            :class:`Recovery`. Weights that do no better on held-out examples are not kept. None trains nothing.
        recipe: Which ingredients of the method to use; None uses all.
        statistics: What :func:`calibrate` returned, or the file it was saved to: the data is then not run through the
            model again for the fits. ``calibration`` is still what layers are refitted to and measured on; without it,
            nothing is refitted unless the statistics were of noise too.
        memory: What the covariances may take, such as ``"2GB"``; the rest is kept in files of a temporary folder while
            this runs. The result is the same. None takes half of what is free.
        timing: The setting that matters, such as ``"batch=32,threads=2"``, or a list of them, of which the worst
            counts (:class:`Timing`). None takes the example's batch on one thread.
        allow_slower: Chosen replacements are timed against their layers, and those that are no faster here are left
            out. None takes them all the same where a budget other than of time cannot be met without; False never
            takes them; True times nothing while choosing. What was timed is kept in the user's cache folder.
        cache: A folder to keep in what each long stage made. The same call goes on from there after it was broken off,
            to the same result, and one with another budget spares what is the same. Nothing is mixed up where model,
            data, options, threads or versions differ. ``evaluate`` is asked again each time. Nothing is ever thrown
            away: the covariances of a ResNet-18 take 0.75 GB. Delete the folder when the result is there.
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
    recovery = read_recovery(recover, seed=seed)
    _check_promise(evaluate, max_drop, recovery)
    recipe = recipe or Recipe()
    chosen = find_passes(passes)
    wanted, contract = read_budget(budget)
    check_alone(wanted, ranks)
    settings = read_timings(timing)
    stages = Stages(shown=progress)
    kept = open_cache(cache, seed=seed, stages=stages, ranks=ranks)
    original = unwrap_model(model)
    with undisturbed(), Storage(read_memory(memory, processes=ranks.local)) as storage, kept:
        torch.manual_seed(seed)
        with stages.stage("trace"):
            request = Request(
                inputs, calibration, calibration_limit, device, seed, include, exclude,
                mixes=_choose_mixes(recipe, recovery),
            )  # fmt: skip
            subject = prepare_subject(original, request, as_graph=_needs_graph(chosen))
            if recovery is not None:
                check_examples(subject.working, subject.data, recovery)
            ties = find_ties(subject, chosen)
        kept.identify(subject)
        floor = _find_floor(subject, evaluate, max_drop, seed, stages, ranks)
        seen, known = _find_statistics(statistics, subject, kept, stages, storage)
        seen = seen if recipe.curvature else seen.without_curvature()
        order = Order(
            remember_answers(kept, chosen), wanted, contract, recipe, settings, allow_slower, seed, kept, known
        )  # fmt: skip
        chooser = prepare_choice(subject, seen, ties, order, stages, ranks)
        if floor is not None and evaluate is not None:
            carried, promise = keep_promise(Search(chooser, floor, evaluate, recovery, typed=contract))
        else:
            stepping, promise = chooser.choose(chooser.fit.wish), None
            carried = carry_out(chooser.fit, stepping, seen, recovery, filled=storage.close)
        met = _is_met(carried.cost, chooser.fit.wish.limits, contract=contract, promised=promise is not None)
        finished = measure_carried(
            chooser.fit, carried, seen.scales, settings,
            lambda: promise.measured if promise else measure_metric(subject, carried.rewritten, evaluate),
        )  # fmt: skip
    return make_result(
        _tell_training(finished),
        budget_met=met,
        notes=(
            *(list_promise_notes(promise, trained=recovery is not None) if promise else ()),
            *_list_run_notes(finished, seen, kept),
        ),
        provenance=replace(
            describe_run(subject, carried.plan),
            timing=tuple(each.describe() for each in settings),
            allow_slower=allow_slower,
        ),
        promise=promise,
    )


def _find_statistics(
    given: Statistics | str | Path | None, subject: Subject, kept: Cache, stages: Stages, storage: Storage
) -> tuple[Statistics, str]:  # fmt: skip
    """What calibration saw, taken now or given, and what tells the given ones from others in the cache."""
    if given is None:
        return replace(keep_statistics(kept, subject, stages, storage), origin=None), "measured"
    read = read_statistics(given, subject)
    return read, "" if kept.folder is None else fingerprint(read)


def _list_run_notes(finished: Finished, statistics: Statistics, kept: Cache) -> tuple[str, ...]:
    """What a careful user should know, in the order of the stages."""
    subject, carried = finished.fit.subject, finished.carried
    return (
        *list_made_notes(finished),
        *list_data_notes(subject, statistics),
        *list_step_notes(carried.stepping),
        *list_clock_notes(carried.stepping.clocked, finished.verification),
        *list_joint_notes(carried.joint, mixed=subject.fitting.mixes > 0),
        *finished.view.notes,
        *(list_recovery_notes(carried.recovered) if carried.recovered else ()),
        *kept.list_notes(),
    )


def _tell_training(finished: Finished) -> Finished:
    """The same, told that the model was trained on the data it was measured on, where it was."""
    if finished.carried.recovered is None:
        return finished
    data = f"{finished.fit.subject.data.description} (the ones used for fitting and recovery)"
    return replace(finished, verification=replace(finished.verification, data=data))


def _choose_mixes(recipe: Recipe, recovery: Recovery | None) -> int | None:
    """Training on the examples alone is judged by some that nothing was fitted to, not even as mixes."""
    alone = recovery is not None and (not recovery.mixes or recovery.loss is not None)
    return 0 if alone and recipe.mixes is None else recipe.mixes


def _needs_graph(passes: Sequence[AnyPass]) -> bool:
    return any(isinstance(each, SharingPass) for each in passes)


def _check_seed(seed: object) -> None:
    if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise InputError(f"seed: got {seed!r}; expected a whole number of at most 63 bits. Pass for instance seed=0.")


def _check_promise(evaluate: Evaluate | None, max_drop: float | None, recovery: Recovery | None) -> None:
    if evaluate is not None and not callable(evaluate):
        raise InputError(
            f"evaluate: got {type(evaluate).__name__}; expected a function of a model. Pass evaluate(model) -> float."
        )
    if max_drop is None:
        return
    check_max_drop(max_drop, measurable=evaluate is not None)
    if recovery is not None and recovery.checkpoint is not None:
        raise InputError(
            f"recover: got checkpoint={str(recovery.checkpoint)!r} with max_drop=, which trains every model it tries; "
            "expected no checkpoint, which belongs to one model. Leave it out."
        )


def _find_floor(
    subject: Subject, evaluate: Evaluate | None, max_drop: float | None, seed: int, stages: Stages, ranks: Ranks
) -> Floor | None:
    """What the original's metric may drop to; measured before anything else, so that a fault in evaluate shows soon."""
    if evaluate is None or max_drop is None:
        return None
    with stages.stage("evaluate"):
        return Floor(measure_original(subject, evaluate, seed, ranks).scores, float(max_drop), seed)


def _is_met(recorded: Cost, limits: Mapping[str, int], *, contract: bool, promised: bool) -> bool:
    """Whether the rewritten model, as recorded, is within the limits; for a typed budget it must be.

    Where a floor of the metric was promised too, that comes first; and where no budget was typed beside it, none is
    missed.
    """
    if promised and not contract:
        return True
    over = [f"{getattr(recorded, unit):,} {unit}" for unit, limit in limits.items() if getattr(recorded, unit) > limit]
    if over and contract and not promised:
        raise BudgetError(
            f"the rewritten model was recorded with {' and '.join(over)}, more than planned and allowed: "
            "it does not use its new layers as it used the old ones. Find them with include= and exclude=."
        )
    return not over
