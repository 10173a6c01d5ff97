"""Recovery of a finished result, and the parts of it that ``optimize`` uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData, choose_noise_examples, read_calibration
from bottleneck_opt.errors import InputError
from bottleneck_opt.evaluating import Evaluate, run_evaluate
from bottleneck_opt.graph_view import GraphView, view_rewritten
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.outcome import Recovered, Verification
from bottleneck_opt.progress import UNSEEN, Shown, Stages
from bottleneck_opt.recovery.checkpoint import Spare
from bottleneck_opt.recovery.distilling import distil, measure_scales
from bottleneck_opt.recovery.options import Recovery, read_recovery
from bottleneck_opt.recovery.weights import copy_weights
from bottleneck_opt.result import Result
from bottleneck_opt.rewriting import check_plan_fits
from bottleneck_opt.sources import read_calibration_path
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.summary import list_checks
from bottleneck_opt.tracing import runs_on
from bottleneck_opt.verification import measure_change
from bottleneck_opt.working_copy import (
    copy_model,
    model_device,
    undisturbed,
    unwrap_model,
    working_copy,
    working_inputs,
)

MEASURED = 512  # examples: what is said of more of them is no surer, and every one is another pass of both models


def recover(
    result: Result,
    calibration: Any = None,
    *,
    teacher: nn.Module,
    recovery: int | Recovery | None = None,
    calibration_limit: int = 256,
    evaluate: Evaluate | None = None,
    progress: bool = True,
) -> Result:
    """Train the model of a result towards the original's outputs, without labels.

    Args:
        result: What ``optimize`` returned; it is not changed.
        calibration: Unlabelled data, as for ``optimize``, better more than the result was fitted to. None uses noise,
            and only for a result that was itself fitted to noise: one that was fitted to real inputs would lose by it
            (measured on the digits ResNet at a quarter of the MACs fitted to noise: KL 0.23 -> 0.05 by noise, 0.002 by
            64 images; at 0.15 fitted to images: 0.07 -> 0.13 by noise, 0.006 by the images).
        teacher: The model that was given to ``optimize``. It is not run, not moved and not changed.
        recovery: A number of steps or a :class:`Recovery`; None takes its defaults.
        calibration_limit: Examples read at most.
        evaluate: ``evaluate(model) -> float``, to measure the metric again.
        progress: Show progress on standard error.

    Returns:
        A result with a model of its own, new measurements, and a note that says what training did. Where nothing did
        better on what it was judged by, its weights are those of ``result`` bit for bit.

    Raises:
        InputError: The data or the options cannot be used.
        ModelError: The model cannot be trained.
        FileError: The checkpoint cannot be read or written, or belongs to another run.
        RewriteError: ``teacher`` is not the model that the result was made from.

    Example:
        >>> from bottleneck_opt import optimize
        >>> net = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1))
        >>> images = torch.randn(20, 8, 6, 6)
        >>> small = optimize(net, images[:1], calibration=images, budget=0.3, progress=False)
        >>> better = recover(small, images, teacher=net, recovery=40, progress=False)
        >>> better.recovery.after <= better.recovery.before
        True
    """
    options = Recovery() if recovery is None else read_recovery(recovery)
    if options is None:
        raise InputError("recovery: got False; expected a number of steps or a Recovery. Pass for instance 300.")
    if calibration is None:
        _check_noise_helps(result)
    original, stages = unwrap_model(teacher), Stages(shown=progress)
    check_plan_fits(original, result.plan)
    with undisturbed():
        torch.manual_seed(options.seed)
        before, model = working_copy(original), copy_model(result.model)
        data = _read_data(result, calibration, before, calibration_limit, options.seed)
        measured = data.take(MEASURED)
        scales = measure_scales(before, measured)
        with stages.stage("recover", total=options.steps) as shown:
            recovered = teach(before, model, data, options, scales=scales, shown=shown)
        with stages.stage("verify"):
            after = working_copy(model).to(model_device(before))
            view = _view(result, model, after)
            verification = _measure(result, before, after, measured, scales, view)
            metrics = _measure_metric(result, original, model, evaluate)
    return replace(
        result,
        model=model,
        graph_module=view.graph_module,
        verification=replace(verification, metric_before=metrics[0], metric_after=metrics[1]),
        recovery=recovered,
        notes=(*result.notes, *list_recovery_notes(recovered), *view.notes, *_metric_notes(result, evaluate)),
        seconds=(*result.seconds, *stages.seconds),
    )


def teach(
    teacher: nn.Module, model: nn.Module, data: CalibrationData, recovery: Recovery, *,
    scales: Sequence[OutputScale], shown: Shown = UNSEEN, spare: Spare | None = None,
) -> Recovered:  # fmt: skip
    """Train a rewritten model in place, whatever its precision and device.

    A working copy of its own is trained, and the model takes over the weights: nothing that the model keeps while it
    is recorded or measured gets into the training.

    Args:
        teacher: A working copy of the original.
        model: The rewritten model; it is changed where training helped.
        data: Unlabelled examples, at least two.
        recovery: The options.
        scales: Spread of each output tensor.
        shown: Called after each step, and told the held-out loss at each look at it.
        spare: A checkpoint that training can do without, where the options name none.

    Raises:
        InputError, ModelError, FileError: As for :func:`distil`.
    """
    student = working_copy(model).to(model_device(teacher))
    recovered = distil(teacher, student, data, recovery, scales=scales, shown=shown, spare=spare)
    if recovered.accepted:
        copy_weights(student, model)
    return recovered


def list_recovery_notes(recovered: Recovered) -> tuple[str, ...]:
    """What training did, and on what, in sentences for the report."""
    ended = f", ended early: {recovered.stopped}" if recovered.stopped else ""
    if recovered.mixed:
        new = recovered.held_out - recovered.trained_on
        looked = (
            f"{recovered.steps} steps on mixes of {recovered.trained_on} examples, judged on those and {new} new mixes"
        )
    else:
        looked = f"{recovered.steps} steps on {recovered.trained_on} examples, judged on {recovered.held_out} held out"
    if recovered.accepted:
        norms = ", batch-norm statistics measured again" if recovered.norms == "kept" else ""
        kept = f"weights of step {recovered.best_step}{norms}"
        came = f"loss there {recovered.before:.3g} -> {recovered.after:.3g} ({kept})"
    else:
        came = f"nothing did better than the start (loss {recovered.before:.3g}), kept as is"
    more = []
    if recovered.unmixed:
        more.append(f"recovery: trained on the few examples alone, on no mixes of them: {recovered.unmixed}")
    if recovered.unturned:
        more.append(f"recovery: steps along the weights' entries, not the layers' axes: {recovered.unturned}")
    if recovered.in_vain:
        more.append(f"recovery: {recovered.in_vain} steps of the usual size brought nothing, these are an eighth of it")
    if recovered.noise:
        more.append("recovered on noise: a few real inputs (calibration=) bring back far more")
    return (f"recovery: {looked}{ended}: {came}", *more)


def _check_noise_helps(result: Result) -> None:
    if result.provenance.noise and (result.recovery is None or result.recovery.noise):
        return
    raise InputError(
        "calibration: got None for a result that was fitted to real inputs; expected real inputs again. "
        "Training it on made-up noise was measured to double its error. Pass the unlabelled inputs that it was "
        "optimised with, or others like them."
    )


def _read_data(result: Result, calibration: Any, teacher: nn.Module, limit: int, seed: int) -> CalibrationData:
    example = working_inputs(result.before.inputs, teacher, model_device(teacher))
    alone = len(example.args) == 1 and not example.kwargs and isinstance(example.args[0], Tensor)
    if isinstance(calibration, str | Path):
        call = example.args if alone else example
        calibration = read_calibration_path(calibration, teacher, inputs=call, limit=limit)
    return read_calibration(
        calibration,
        example,
        given=None if alone else example,
        limit=limit,
        seed=seed,
        runs=lambda call: runs_on(teacher, call),
        noise_examples=choose_noise_examples(result.before.cost.macs / max(1, batch_size(example))),
    )


def _view(result: Result, model: nn.Module, working: nn.Module) -> GraphView:
    """The result's graph over the new model's parameters; where it had none, the reason is in its notes already."""
    if result.graph_module is None:
        return GraphView(None, result.verification.graph_difference, ())
    return view_rewritten(result.before, result.plan, model, working)


def _measure(
    result: Result, before: nn.Module, after: nn.Module, data: CalibrationData, scales: Sequence[OutputScale],
    view: GraphView,
) -> Verification:  # fmt: skip
    change = measure_change(before, after, data, scales)
    return replace(
        result.verification,
        data=f"{data.description} (the ones used for recovery)",
        examples=data.examples,
        measured_change=change.relative,
        held_out_change=None,
        kl=change.kl,
        agreement=change.agreement,
        graph_difference=view.difference,
        checks=list_checks(result.plan, result.after, view),
    )


def _measure_metric(
    result: Result, original: nn.Module, model: nn.Module, evaluate: Evaluate | None
) -> tuple[float | None, float | None]:
    """The metric of both models; that of the trained one is unknown where nobody can measure it."""
    before = result.verification.metric_before
    if evaluate is None:
        return before, None
    if before is None:
        before = run_evaluate(evaluate, copy_model(original).eval(), "before")
    return before, run_evaluate(evaluate, copy_model(model).eval(), "after")


def _metric_notes(result: Result, evaluate: Evaluate | None) -> tuple[str, ...]:
    if evaluate is not None or result.verification.metric_after is None:
        return ()
    return ("the metric was not measured again after recovery: pass evaluate= to recover() too",)
