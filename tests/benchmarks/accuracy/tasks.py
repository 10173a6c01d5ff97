"""What is compressed and how it is judged: a network, its training, unlabelled inputs, a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck_opt.demo.digits import DigitsResNet, accuracy, load_digits, train
from bottleneck_opt.demo.run import mean_kl
from bottleneck_opt.recovery import Recovery
from tests.benchmarks.accuracy.networks import Denoiser, DigitsVgg
from tests.benchmarks.accuracy.photos import load_photos, measure_psnr, take_noisy_crops, train_denoiser

EXAMPLES = 64
CALIBRATION_CROP = 48
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
        measure: ``(model, training)`` gives the metric on the test data, higher is better.
        change: ``(original, changed, training)`` gives what the metric cannot resolve: mean KL, or squared change of
            the output relative to its variance.
    """

    name: str
    kind: type[nn.Module]
    unit: str
    train: Callable[[nn.Module, int], None]
    calibrate: Callable[[int, int], Tensor]
    teach: Callable[[int, int], Lesson]
    measure: Callable[[nn.Module, int], float]
    change: Callable[[nn.Module, nn.Module, int], float]


def _train_digits(model: nn.Module, training: int) -> None:
    train(model, load_digits(training), seed=training)


def _calibrate_digits(training: int, draw: int) -> Tensor:
    images = load_digits(training).train_x
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(draw))[:EXAMPLES]]


def _teach_digits(training: int, draw: int) -> Lesson:
    return Lesson(_calibrate_digits(training, draw), Recovery(steps=RECOVERY_STEPS, seed=draw))


def _measure_digits(model: nn.Module, training: int) -> float:
    digits = load_digits(training)
    return 100 * accuracy(model, digits.test_x, digits.test_y)


def _change_digits(original: nn.Module, changed: nn.Module, training: int) -> float:
    return mean_kl(original, changed, load_digits(training).test_x)


def _calibrate_photos(training: int, draw: int) -> Tensor:
    return take_noisy_crops(EXAMPLES, CALIBRATION_CROP, seed=1000 + draw)


def _teach_photos(training: int, draw: int) -> Lesson:
    """Every crop is seen once; the held-out ones are few, so that looking at them costs little."""
    count = RECOVERY_STEPS * RECOVERY_BATCH + HELD_OUT_CROPS
    recovery = Recovery(
        steps=RECOVERY_STEPS, batch=RECOVERY_BATCH, flip=True, held_out=HELD_OUT_CROPS / count, seed=draw
    )
    return Lesson(take_noisy_crops(count, RECOVERY_CROP, seed=2000 + draw), recovery)


def _change_photos(original: nn.Module, changed: nn.Module, training: int) -> float:
    noisy = load_photos().noisy
    with torch.inference_mode():
        expected = original(noisy)
        return float(F.mse_loss(changed(noisy), expected) / expected.var())


def _digits_task(name: str, kind: type[nn.Module]) -> Task:
    return Task(
        name, kind, "points", _train_digits, _calibrate_digits, _teach_digits, _measure_digits, _change_digits
    )  # fmt: skip


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "dncnn", Denoiser, "dB", lambda model, training: train_denoiser(model, seed=training), _calibrate_photos,
            _teach_photos, lambda model, training: measure_psnr(model), _change_photos,
        ),
        _digits_task("resnet", DigitsResNet),
        _digits_task("vgg", DigitsVgg),
    )
}  # fmt: skip
