"""What the tool itself costs: ``python -m tests.benchmarks.resnet50 [MODEL [IMAGES]]``.

``optimize`` on a randomly initialised torchvision model (ResNet-50) at 224 pixels, half the MACs; prints the share of
each stage, what calibration and all factorisations take as a multiple of the forward passes alone, and the peak memory
of the process. Times are CPU seconds, which a busy machine sways less than those on the wall. Without IMAGES it
calibrates with noise, and there is nothing to compare with.
"""

from __future__ import annotations

import resource
import sys
import time
from unittest import mock

import torch
from torch import nn

import bottleneck_opt as bo
from tests.torchvision_models import build

FITTING = ("calibrate", "propose", "fit")


def main(name: str = "resnet50", images: str = "0") -> None:
    """Run once and print."""
    torch.manual_seed(0)
    model = build(name)
    data = torch.randn(int(images), 3, 224, 224) if int(images) else None
    forward = None if data is None else _time_forward(model, data)
    started = time.process_time()
    with mock.patch.object(time, "perf_counter", time.process_time):
        result = bo.optimize(model, torch.randn(1, 3, 224, 224), calibration=data, budget=0.5, progress=False)
    total = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name} at 224 px, macs=0.5: {total:.1f} s on {torch.get_num_threads()} threads, peak {peak:.2f} GiB")
    for stage, seconds in result.seconds:
        print(f"  {stage:<10} {seconds:6.1f} s  {seconds / total:5.1%}")
    if forward is not None:
        fitting = sum(seconds for stage, seconds in result.seconds if stage in FITTING)
        print(f"  {' + '.join(FITTING)}: {fitting / forward:.1f} times the {forward:.1f} s of {images} forward passes")
    speed = result.verification.speed
    assert speed is not None
    ratio = result.after.cost.macs / result.before.cost.macs
    print(f"  MACs {ratio:.1%}, {speed.before:.1f} -> {speed.after:.1f} ms a call ({speed.after / speed.before:.0%})")


def _time_forward(model: nn.Module, data: torch.Tensor) -> float:
    """CPU seconds of the forward passes, in batches of the size that calibration takes."""
    with torch.inference_mode():
        model(data[:8])
        started = time.process_time()
        for batch in data.split(8):
            model(batch)
        return time.process_time() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
