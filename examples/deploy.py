"""Out of the door: a trained network at a quarter of its multiply-adds, then in 8 bits, as ONNX files.

The two compose: fewer multiply-adds, and each of them on 8-bit numbers. Four files are written, the original and the
result in float32 and in 8 bits, and the accuracy of each is measured on the very file, run by ONNX Runtime.

Run: python examples/deploy.py  (needs scikit-learn and pip install 'bottleneck-opt[export]')
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import DigitsResNet, accuracy, load_digits, train

OUT = Path("out/deploy")
TOGETHER = 32
ROUNDS = 20


def write(models: dict[str, nn.Module], data: Tensor, folder: Path) -> list[bo.Exported]:
    """Every model as two files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, model in models.items():
        written.append(bo.export(model, data[:1], folder / f"{name}_float32.onnx"))
        written.append(bo.export(model, data[:1], folder / f"{name}_int8.onnx", quantize="int8", calibration=data))
    return written


def time_calls(models: list[bo.OnnxModel], images: Tensor) -> list[float]:
    """Median milliseconds of a call of each, all in turn, so that what else the machine does hits all alike."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, taken in zip(models, times, strict=True):
            started = time.perf_counter()
            model(images)
            taken.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(taken) for taken in times]


def main(folder: Path = OUT) -> list[bo.Exported]:
    """Train, compress, export, and measure the files."""
    digits = load_digits()
    data = digits.train_x[:64]  # unlabelled; the same for both steps
    torch.manual_seed(0)
    model = DigitsResNet()
    train(model, digits, epochs=4)
    result = bo.optimize(model, data[:1], calibration=data, budget=0.25, progress=False)

    written = write({"original": model, "quarter": result.model}, data, folder)
    files = [bo.open_onnx(each.path) for each in written]
    times = time_calls(files, digits.test_x[:TOGETHER])
    print(f"file                       kB  ms for {TOGETHER}  right of {len(digits.test_x)} unseen")
    for each, file, taken in zip(written, files, times, strict=True):
        right = accuracy(file, digits.test_x, digits.test_y)
        print(f"{each.path.name:21}  {each.size / 1000:6.0f}  {taken:9.2f}  {right:.1%}")
    print(written[-1])
    return written


if __name__ == "__main__":
    main()
