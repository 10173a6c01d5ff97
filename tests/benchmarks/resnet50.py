"""What the tool itself costs: ``python -m tests.benchmarks.resnet50`` (some minutes on two cores).

``optimize`` on a randomly initialised network with 64 random images, half the MACs. Prints where the time goes, what
calibration and all factorisations take relative to running the images alone, and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from tests.torchvision_models import build

BATCH = 16
LEARNING = ("calibrate", "propose", "fit")
MOST_PASSES, MOST_GIB = 20.0, 4.0
THOUSAND = "thousand"


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        return torch.relu(x + self.body(x))


def build_thousand(width: int = 32) -> nn.Module:
    """A network of 1,000 convolutions: a stem and 499 blocks of two, and one at the end."""
    blocks = [Residual(width) for _ in range(499)]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), *blocks, nn.Conv2d(width, 8, 1)).eval()


def main() -> None:
    """Run once and print."""
    options = _read_options()
    torch.manual_seed(0)
    model = build_thousand() if options.model == THOUSAND else build(options.model)
    size = options.size or (32 if options.model == THOUSAND else 224)
    images = torch.randn(options.images, 3, size, size)
    batches = list(images.split(BATCH))
    before = time_passes(model, batches)
    started = time.perf_counter()
    result = bo.optimize(
        model, images[:1], calibration=batches, calibration_limit=len(images), budget=options.budget,
        passes=options.passes.split(",") if options.passes else None, memory=options.memory or None, progress=False,
    )  # fmt: skip
    total = time.perf_counter() - started
    passes = statistics.median([before, time_passes(model, batches), time_passes(model, batches)])
    layers = len(result.plan.steps)
    print(
        f"{options.model} at {size} px, {options.images} images, macs={options.budget:g}: {total:.1f} s on "
        f"{torch.get_num_threads()} threads, {layers} layers rewritten"
    )
    print_costs(dict(result.seconds), passes, total)


def time_passes(model: nn.Module, batches: list[Tensor]) -> float:
    """Seconds of running all images once, without gradients."""
    model.eval()
    with torch.no_grad():
        model(batches[0][:1])
        started = time.perf_counter()
        for batch in batches:
            model(batch)
        return time.perf_counter() - started


def print_costs(seconds: Mapping[str, float], passes: float, total: float) -> None:
    """Stage by stage, in seconds, as a share of all and in forward passes; then what there is a target for."""
    for stage, spent in seconds.items():
        print(f"  {stage:<10} {spent:6.1f} s  {spent / total:5.1%}  {spent / passes:5.1f} x the forward passes")
    learning = sum(seconds.get(stage, 0.0) for stage in LEARNING)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  forward passes of all images alone: {passes:.1f} s")
    print(f"  {' + '.join(LEARNING)}: {learning / passes:.1f} x the forward passes (at most {MOST_PASSES:g})")
    print(f"  peak memory {peak:.2f} GiB (at most {MOST_GIB:g})")


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.resnet50", description=__doc__)
    parser.add_argument("--model", default="resnet50", help=f"a torchvision name such as resnet152, or {THOUSAND}")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=0, help="pixels a side; 0 chooses")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--passes", default="", help="such as reduce,expand,tucker,spatial: factorisations only")
    parser.add_argument("--memory", default="", help="what the covariances may take, such as 400MB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
