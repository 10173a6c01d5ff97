"""Fewer multiply-adds, 8 bits, and both: ``python -m tests.benchmarks.quantised`` (about two minutes once trained).

One training and one draw of 64 unlabelled inputs of the networks of ``tests.benchmarks.accuracy``. Every number is
measured on an ONNX file. The classifiers' ranges are taken from the inputs they were compressed with; the denoiser's
file takes the test photo's size, and its ranges are taken from noisy copies of the photo it was trained on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from tests.benchmarks.accuracy.photos import SIGMA, load_photos
from tests.benchmarks.accuracy.problem import Problem, pose
from tests.benchmarks.accuracy.tasks import TASKS

BUDGET = 0.5
COPIES = 4
TITLES = {"dncnn": "denoiser", "resnet": "digits ResNet", "vgg": "digits VGG"}


def take_ranges(problem: Problem) -> Tensor:
    """What the ranges of the activations are taken from."""
    if problem.task.name != "dncnn":
        return problem.calibration
    photo = load_photos().train.expand(COPIES, -1, -1, -1)
    return photo + SIGMA * torch.randn(photo.shape, generator=torch.Generator().manual_seed(problem.draw))


def measure_file(problem: Problem, model: nn.Module, *, int8: bool) -> str:
    """Size, metric and change of the output against the original, of one file."""
    data = take_ranges(problem)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if int8:
            written = bo.export(model, data[:1], path, quantize="int8", calibration=list(data.split(1)))
        else:
            written = bo.export(model, data[:1], path)
        outputs = problem.task.run(bo.open_onnx(path), problem.training)
    metric = problem.task.score(outputs, problem.training)
    change = problem.task.change(problem.outputs, outputs)
    return f"{written.size / 1000:.0f} kB, {metric:.2f} ({change:.5f})"


def summarise(name: str) -> str:
    """One line of the table."""
    problem = pose(name, 0, 0)
    result = bo.optimize(
        problem.original, problem.example, calibration=problem.calibration, budget=BUDGET, progress=False
    )
    cells = [
        measure_file(problem, model, int8=int8) for int8 in (False, True) for model in (problem.original, result.model)
    ]
    unit = "dB" if problem.task.unit == "dB" else "%"
    return f"| {TITLES[name]}, {unit} | {' | '.join(cells)} |"


def main() -> None:
    """Measure and print the table; one thread, so that a busy machine changes little."""
    torch.set_num_threads(1)
    print(f"| | original | {BUDGET:g} of the MACs | original, int8 | {BUDGET:g} of the MACs, int8 |")
    print("|---|---|---|---|---|")
    for name in TASKS:
        print(summarise(name), flush=True)


if __name__ == "__main__":
    main()
