"""What the tool itself costs: ``python -m tests.benchmarks.resnet50`` (about a minute on two cores).

``optimize`` on a randomly initialised torchvision ResNet-50 at 224 pixels, noise calibration, half the MACs; prints the
share of each stage and the peak memory of the process.
"""

from __future__ import annotations

import resource
import time

import torch

import bottleneck_opt as bo
from tests.torchvision_models import build


def main() -> None:
    """Run once and print."""
    torch.manual_seed(0)
    model = build("resnet50")
    started = time.perf_counter()
    result = bo.optimize(model, torch.randn(1, 3, 224, 224), budget=0.5, progress=False)
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"ResNet-50 at 224 px, noise, macs=0.5: {total:.1f} s on {torch.get_num_threads()} threads, peak {peak:.2f} GiB"
    )
    for stage, seconds in result.seconds:
        print(f"  {stage:<10} {seconds:6.1f} s  {seconds / total:5.1%}")
    speed = result.verification.speed
    assert speed is not None
    ratio = result.after.cost.macs / result.before.cost.macs
    print(f"  MACs {ratio:.1%}, {speed.before:.1f} -> {speed.after:.1f} ms a call ({speed.after / speed.before:.0%})")


if __name__ == "__main__":
    main()
