"""What is compressed and how it is judged: a network, its training, unlabelled inputs, a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck_opt.demo.digits import DigitsResNet, load_digits, train
from bottleneck_opt.recovery import Recovery
from tests.benchmarks.accuracy.networks import Denoiser, DigitsVgg
from tests.benchmarks.accuracy.photos import load_photos, measure_psnr, take_noisy_crops, train_denoiser

EXAMPLES = 64
CALIBRATION_CROP = 40
RECOVERY_CROP = 40
RECOVERY_STEPS = 300
RECOVERY_BATCH = 16
HELD_OUT_CROPS = 64


@dataclass(frozen=True)
class Lesson:
    """Unlabelled inputs to recover on, and how."""

    inputs: Tensor
    recovery: Recovery


@dataclass(frozen=True)
class Task:
    """One network and how it is judged; ``training`` and ``draw`` are seeds.

    Attributes:
        name: ``resnet``, ``vgg`` or ``dncnn``.
        kind: The class of the network.
        unit: Of the metric.
        train: ``(model, training)`` trains in place.
        calibrate: ``(training, draw)`` gives 64 unlabelled inputs.
        teach: ``(training, draw)`` gives what recovery works on.
        run: ``(model, training)`` gives the outputs for the test data.
        score: ``(outputs, training)`` gives the metric, higher is better.
        change: ``(original's outputs, outputs)`` gives what the metric cannot resolve: mean KL, or squared change
            relative to the variance.
    """

    name: str
    kind: type[nn.Module]
    unit: str
    train: Callable[[nn.Module, int], None]
    calibrate: Callable[[int, int], Tensor]
    teach: Callable[[int, int], Lesson]
    run: Callable[[nn.Module, int], Tensor]
    score: Callable[[Tensor, int], float]
    change: Callable[[Tensor, Tensor], float]


def _train_digits(model: nn.Module, training: int) -> None:
    train(model, load_digits(training), seed=training)


def _calibrate_digits(training: int, draw: int) -> Tensor:
    images = load_digits(training).train_x
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(draw))[:EXAMPLES]]


def _teach_digits(training: int, draw: int) -> Lesson:
    """All images that the network was trained on, without their labels."""
    return Lesson(load_digits(training).train_x, Recovery(steps=RECOVERY_STEPS, seed=draw))


def _run_digits(model: nn.Module, training: int) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(images) for images in load_digits(training).test_x.split(200)])


def _score_digits(logits: Tensor, training: int) -> float:
    return 100 * float((logits.argmax(1) == load_digits(training).test_y).double().mean())


def _change_digits(expected: Tensor, got: Tensor) -> float:
    return float(F.kl_div(got.log_softmax(1), expected.log_softmax(1), reduction="batchmean", log_target=True))


def _calibrate_photos(training: int, draw: int) -> Tensor:
    return take_noisy_crops(EXAMPLES, CALIBRATION_CROP, seed=1000 + draw)


def _teach_photos(training: int, draw: int) -> Lesson:
    """Every crop is seen once; the held-out ones are few, so that looking at them costs little."""
    count = RECOVERY_STEPS * RECOVERY_BATCH + HELD_OUT_CROPS
    recovery = Recovery(
        steps=RECOVERY_STEPS, batch=RECOVERY_BATCH, flip=True, held_out=HELD_OUT_CROPS / count, seed=draw
    )
    return Lesson(take_noisy_crops(count, RECOVERY_CROP, seed=2000 + draw), recovery)


def _run_photos(model: nn.Module, training: int) -> Tensor:
    with torch.inference_mode():
        denoised: Tensor = model(load_photos().noisy)
        return denoised


def _change_photos(expected: Tensor, got: Tensor) -> float:
    return float(F.mse_loss(got, expected) / expected.var())


def _digits_task(name: str, kind: type[nn.Module]) -> Task:
    return Task(
        name, kind, "points", _train_digits, _calibrate_digits, _teach_digits, _run_digits, _score_digits,
        _change_digits,
    )  # fmt: skip


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "dncnn", Denoiser, "dB", lambda model, training: train_denoiser(model, seed=training), _calibrate_photos,
            _teach_photos, _run_photos, lambda denoised, training: measure_psnr(denoised), _change_photos,
        ),
        _digits_task("resnet", DigitsResNet),
        _digits_task("vgg", DigitsVgg),
    )
}  # fmt: skip
