"""The training itself: the rewritten model learns to give the original's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.errors import ModelError, tell
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.outcome import Recovered
from bottleneck_opt.progress import UNSEEN, Shown
from bottleneck_opt.recovery.axes import Axes, find_axes, step_along
from bottleneck_opt.recovery.checkpoint import Checkpoint, Moving, Progress, Spare, find_checkpoint
from bottleneck_opt.recovery.examples import Split, check_batch, count_batches, make_batch, split_examples
from bottleneck_opt.recovery.norms import reestimate_norms
from bottleneck_opt.recovery.objective import Objective, find_blocks, weigh_blocks
from bottleneck_opt.recovery.options import Recovery
from bottleneck_opt.recovery.step_sizes import (
    AGREEMENT_OF_FEW,
    PROBED,
    choose_rate,
    fixes_rate,
    measure_agreement,
    pace,
)
from bottleneck_opt.recovery.weights import copy_tensors, snapshot, trained_parameters
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.working_copy import undisturbed

SMALLEST_SIZE = 0.01
BATCHES_FOR_AXES = 16
LARGEST_GRADIENT = 1.0
SMALLER = 1 / 8  # when no step of the usual size brought anything
MEMORY = 0.95  # of the mean of the weights, for a step


def distil(
    teacher: nn.Module, student: nn.Module, data: CalibrationData, recovery: Recovery, *,
    scales: Sequence[OutputScale] | None = None, shown: Shown = UNSEEN, spare: Spare | None = None,
) -> Recovered:  # fmt: skip
    """Train a rewritten working copy towards the original's outputs.

    All floating parameters are trained, in eval mode throughout, so that dropout is off and batch norms keep their
    statistics. The loss is the squared change of the output relative to its variance, and the mean of the same at the
    outputs of the blocks around rewritten layers, weighted to add twenty times as much before training
    (:func:`~bottleneck_opt.recovery.objective.weigh_blocks`). It is judged by the outputs alone. What is judged and
    kept is a running mean of the weights (Polyak and Juditsky 1992). Steps are Adam's, along the axes of each layer's
    inputs and outputs (:mod:`bottleneck_opt.recovery.axes`): what the fits leave to learn lies where those vary little.

    Measured along the entries of the weights and along the axes, 300 steps from the default fits, change of the output
    or KL on test data: a denoiser at 0.75 of the multiply-adds 2.95e-4, 2.38e-4; digits ResNets at 0.33 2.66e-4,
    1.93e-4 (from 64 images alone 5.1e-4, 4.4e-4), at 0.15 1.10e-3, 0.75e-3; digits VGGs at 0.33 3.4e-4, 3.0e-4 and
    3.8e-4, 3.3e-4 (in steps a third smaller). The 300 steps took 3 to 27 % longer.

    Measured along the entries on two trainings of the digits ResNet at 0.15 of the MACs, by reduce and expand without
    refitting, 64 unlabelled images, KL to the original on the 797 test digits, before 0.070 and 0.075. Without blocks
    0.011, 0.009; with their relative change weighted by 5 and by 10 0.007, 0.006. The KL of the softmax as the loss
    instead: 0.015, 0.019 without blocks, 0.007, 0.006 with them at 5. Near the original it is worse: a digits VGG at
    0.33 after the default fits, 3.5e-4 where the squared change gave 3.0e-4, another 3.5e-4 for 3.1e-4. Training the
    new layers only: the same within 5 %.

    Args:
        teacher: A working copy of the original.
        student: A working copy of the rewritten model. It is trained in place and left with the weights that were best
            by the examples to judge by, bit for bit those it came with when nothing was better.
        data: Unlabelled examples, at least two.
        recovery: The options.
        scales: Spread of each output tensor, from calibration; None measures it.
        shown: Called after each step, and told the held-out loss at each look at it.
        spare: A checkpoint that training can do without, where the options name none.

    Raises:
        InputError: There is only one example, a model fails on a batch of this size, or the options do not fit the
            data.
        ModelError: The model cannot be trained: its backward pass fails, or shapes of outputs depend on the weights.
        FileError: The checkpoint cannot be read or written, or belongs to another run.
    """
    with undisturbed(), torch.enable_grad():
        lesson = _prepare(teacher, student, data, recovery, scales or measure_scales(teacher, data), spare)
        with _trainable(lesson.trained.values()):
            progress = _train(lesson, shown)
        norms, after = reestimate_norms(lesson.objective, lesson.split, recovery, progress.best_loss)
    return Recovered(
        before=progress.start_loss,
        after=after,
        steps=progress.step,
        best_step=progress.best_step,
        stopped=progress.stopped,
        trained_on=lesson.split.examples,
        held_out=lesson.split.held_out_examples,
        norms=norms,
        noise=data.noise,
        mixed=lesson.split.mixed,
        unmixed=lesson.split.unmixed,
        unturned=lesson.unturned,
        in_vain=progress.in_vain,
    )


def measure_scales(teacher: nn.Module, data: CalibrationData) -> tuple[OutputScale, ...]:
    """Spread of each output tensor over the data."""
    return collect_statistics(teacher, {}, data, Sampling(data.examples, 1, 0)).scales


@dataclass(frozen=True)
class _Lesson:
    """Everything that stays the same during training."""

    objective: Objective
    recovery: Recovery
    split: Split
    trained: Mapping[str, Tensor]
    axes: tuple[Axes, ...]
    unturned: str
    checkpoint: Checkpoint | None


def _prepare(
    teacher: nn.Module, student: nn.Module, data: CalibrationData, recovery: Recovery, scales: Sequence[OutputScale],
    spare: Spare | None,
) -> _Lesson:  # fmt: skip
    torch.manual_seed(recovery.seed)
    split = split_examples(data, teacher, recovery)
    first = make_batch(split, recovery, 0)
    for model in (teacher, student):
        check_batch(model, first, recovery.batch)
    blocks = find_blocks(teacher, student, first, examples=split.examples) if recovery.features else ()
    objective = Objective(teacher, student, tuple(scales), blocks, recovery.loss, recovery.seed)
    trained, taken = trained_parameters(student), _take_batches(split, recovery, data)
    axes, unturned = _try_axes(student, taken, scales, recovery.seed)
    checkpoint = find_checkpoint(teacher, student, data, recovery, trained, spare)
    return _Lesson(weigh_blocks(objective, taken.batches), recovery, split, trained, axes, unturned, checkpoint)


def _try_axes(
    student: nn.Module, data: CalibrationData, scales: Sequence[OutputScale], seed: int
) -> tuple[tuple[Axes, ...], str]:
    """The layers' axes, or why there are none."""
    try:
        return find_axes(student, data, scales, seed), ""
    except Exception as error:  # the user's model may give infinite values, or lack derivatives inside
        return (), tell(error)


def _take_batches(split: Split, recovery: Recovery, data: CalibrationData) -> CalibrationData:
    """The first batches of training, as data to measure on."""
    count = min(BATCHES_FOR_AXES, count_batches(split, recovery))
    batches = tuple(make_batch(split, recovery, step) for step in range(count))
    return CalibrationData(batches, sum(map(batch_size, batches)), data.description, data.noise)


@contextmanager
def _trainable(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let gradients reach the parameters, and leave none behind."""
    flags = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None


def _train(lesson: _Lesson, shown: Shown) -> Progress:
    moving = Moving(_make_adam(lesson), snapshot(lesson.trained))
    progress = lesson.checkpoint.restore(moving) if lesson.checkpoint else None
    if progress is None:
        loss = lesson.objective.mean_loss(lesson.split.held_out)
        stopped = _why_not(lesson, loss)
        rate = 0.0 if stopped else choose_rate(lesson.recovery, loss, _probe(lesson))
        progress = Progress(0, rate, loss, loss, 0, stopped, 0, snapshot(lesson.trained))
        _save(lesson, progress, moving)
    for _ in range(progress.step):
        shown()
    progress = _take_steps(lesson, moving, progress, shown)
    if not _were_too_large(lesson, progress):
        return progress
    moving = Moving(_make_adam(lesson), snapshot(lesson.trained))
    progress = replace(progress, step=0, rate=SMALLER * progress.rate, stopped="", in_vain=progress.step)
    _save(lesson, progress, moving)
    return _take_steps(lesson, moving, progress, Shown(tell=shown.tell))


def _take_steps(lesson: _Lesson, moving: Moving, progress: Progress, shown: Shown) -> Progress:
    """Step to the end; interrupted or not, the student is left with its best weights."""
    try:
        while not progress.stopped and progress.step < lesson.recovery.steps:
            progress = _advance_once(lesson, moving, progress)
            shown()
            if progress.step % lesson.recovery.check_every == 0:
                judged = "loss on examples and new mixes" if lesson.split.mixed else "held-out loss"
                step = "smaller step" if progress.in_vain else "step"
                shown.tell(f"{step} {progress.step}, {judged} {progress.start_loss:.3g} -> {progress.best_loss:.3g}")
    finally:
        copy_tensors(progress.best, lesson.trained)
    return progress


def _were_too_large(lesson: _Lesson, progress: Progress) -> bool:
    """Whether nothing did better than the start, in steps of a size that nobody asked for, the first time."""
    return progress.step > 0 and not (progress.best_step or progress.in_vain or fixes_rate(lesson.recovery))


def _make_adam(lesson: _Lesson) -> torch.optim.Adam:
    """Adam with a step size for each parameter: relative to the size of its values before training."""
    sizes = {id(own): _typical_size(axes.parameters[0]) for axes in lesson.axes for own in axes.parameters}
    groups = [
        {"params": [each], "size": sizes.get(id(each)) or _typical_size(each)} for each in lesson.trained.values()
    ]
    return torch.optim.Adam(groups)  # every step sets its own size


def _typical_size(parameter: Tensor) -> float:
    """Root mean square of the values; a floor lets parameters that start at zero move too."""
    if not parameter.numel():
        return SMALLEST_SIZE
    return max(SMALLEST_SIZE, float(parameter.detach().double().square().mean().sqrt()))


def _save(lesson: _Lesson, progress: Progress, moving: Moving) -> None:
    if lesson.checkpoint is not None:
        lesson.checkpoint.write(progress, moving)


def _why_not(lesson: _Lesson, loss: float) -> str:
    """Why there is nothing to learn; empty when there is."""
    own = lesson.objective.loss is not None
    if not own and not any(scale.weight for scale in lesson.objective.scales):
        return "the output has no floating values that vary"
    if not own and loss == 0:
        return "the outputs are those of the original already"
    return "" if lesson.trained else "the model has no parameters"


def _advance_once(lesson: _Lesson, moving: Moving, progress: Progress) -> Progress:
    """One step, and a look at the held-out examples where it is time for one."""
    stopped = _take_step(lesson, moving.adam, progress)
    if not stopped:
        _follow(moving.mean, lesson.trained, progress.step)
    progress = replace(progress, step=progress.step + 1, stopped=stopped)
    if not stopped and progress.step % lesson.recovery.check_every and progress.step < lesson.recovery.steps:
        return progress
    if not stopped:
        progress = _look(lesson, moving.mean, progress)
    _save(lesson, progress, moving)
    return progress


def _follow(mean: Mapping[str, Tensor], weights: Mapping[str, Tensor], step: int) -> None:
    """Let the running mean take in the weights; it forgets faster in the beginning."""
    share = 1 - min(MEMORY, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in weights.items():
            mean[name].lerp_(value, share)


def _look(lesson: _Lesson, mean: Mapping[str, Tensor], progress: Progress) -> Progress:
    """Judge the mean of the weights: it is ahead of weights that every batch pulls elsewhere."""
    now = snapshot(lesson.trained)
    copy_tensors(mean, lesson.trained)
    loss = lesson.objective.mean_loss(lesson.split.held_out)
    copy_tensors(now, lesson.trained)
    if loss < progress.best_loss:
        return replace(progress, best_loss=loss, best_step=progress.step, best=snapshot(mean))
    if lesson.recovery.patience is None:
        return progress
    waited = lesson.recovery.patience * lesson.recovery.check_every
    if waited <= progress.step - progress.best_step and progress.step < lesson.recovery.steps:
        return replace(progress, stopped=f"no improvement in {waited} steps")
    return progress


def _take_step(lesson: _Lesson, adam: torch.optim.Adam, progress: Progress) -> str:
    """One step of Adam; the reason to stop when it cannot be taken."""
    for group in adam.param_groups:
        group["lr"] = progress.rate * group["size"] * pace(lesson.recovery, progress.step)
    stopped = _find_gradients(lesson, progress.step)
    if stopped:
        return stopped
    norm = nn.utils.clip_grad_norm_(lesson.trained.values(), LARGEST_GRADIENT)
    if not torch.isfinite(norm):
        return "a gradient was not finite"
    step_along(adam, lesson.axes)
    return ""


def _find_gradients(lesson: _Lesson, step: int) -> str:
    """Leave the gradients of a step's batch in the parameters; the reason when there are none."""
    for parameter in lesson.trained.values():
        parameter.grad = None
    loss = lesson.objective.training_loss(make_batch(lesson.split, lesson.recovery, step), step)
    if not loss.requires_grad:
        return "no gradient reaches the parameters"
    if not torch.isfinite(loss):
        return "the loss was not finite"
    _run_backward(lesson, loss)
    return ""


def _probe(lesson: _Lesson) -> float | None:
    """How far the first batches agree before training; batches that share no example, or they would agree too well."""
    if fixes_rate(lesson.recovery):
        return None
    if lesson.split.mixed:
        return AGREEMENT_OF_FEW
    return measure_agreement(
        [_gradient(each) * _typical_size(each) for each in lesson.trained.values()]
        for step in range(min(PROBED, count_batches(lesson.split, lesson.recovery)))
        if not _find_gradients(lesson, step)
    )


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _run_backward(lesson: _Lesson, loss: Tensor) -> None:
    try:
        loss.backward()
    except RuntimeError as error:
        raise ModelError(
            f"recovery: {type(lesson.objective.student).__name__} cannot be trained, its backward pass fails: "
            f"{str(error).strip().splitlines()[0]} Leave recover= out."
        ) from error
