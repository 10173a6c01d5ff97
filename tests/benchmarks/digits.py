"""One-shot accuracy on the digits ResNet: ``python -m tests.benchmarks.digits`` (about four minutes).

Three trainings, three draws of 64 unlabelled images each, no training afterwards; every number is measured on the 797
test digits, which neither training nor calibration sees.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import Digits, DigitsResNet, accuracy, load_digits, train
from bottleneck_opt.demo.run import mean_kl

TRAININGS = 3
DRAWS = 3
IMAGES = 64
BUDGETS = (0.75, 0.5, 0.33, 0.25, 0.15)


@dataclass(frozen=True)
class Measured:
    """One compressed network: points of accuracy gained, KL to the original, and the ratios of cost and time."""

    points: float
    kl: float
    macs: float
    params: float
    time: float


def measure_training(seed: int) -> Iterator[tuple[str, Measured]]:
    """Train once, then compress to every budget from every draw, and once from noise."""
    digits = load_digits(seed)
    torch.manual_seed(seed)
    model = DigitsResNet()
    train(model, digits, seed=seed)
    for draw in range(DRAWS):
        chosen = torch.randperm(len(digits.train_x), generator=torch.Generator().manual_seed(draw))[:IMAGES]
        for budget in BUDGETS:
            yield (
                f"{IMAGES} images, {budget:g} of the MACs",
                compress(model, digits, digits.train_x[chosen], budget, draw),
            )
    yield "noise, 0.5 of the MACs", compress(model, digits, None, 0.5, 0)


def compress(
    model: DigitsResNet, digits: Digits, calibration: torch.Tensor | None, budget: float, seed: int
) -> Measured:
    """Compress once and measure on the test digits."""
    result = bo.optimize(
        model, digits.test_x[:1], calibration=calibration, budget=budget, seed=seed, allow_slower=True, progress=False
    )  # fmt: skip
    before = accuracy(model, digits.test_x, digits.test_y)
    after = accuracy(result.model, digits.test_x, digits.test_y)
    speed = result.verification.speed
    assert speed is not None
    costs = result.after.cost, result.before.cost
    return Measured(
        100 * (after - before), mean_kl(model, result.model, digits.test_x), costs[0].macs / costs[1].macs,
        costs[0].params / costs[1].params, speed.after / speed.before,
    )  # fmt: skip


def summary(name: str, rows: list[Measured]) -> str:
    """One line of the table: means, and the standard error of the accuracy change."""
    points = [row.points for row in rows]
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else float("nan")
    kl = statistics.mean(row.kl for row in rows)
    ratios = [statistics.mean(getattr(row, key) for row in rows) for key in ("macs", "params", "time")]
    shown = " | ".join(f"{ratio:.0%}" for ratio in ratios)
    return f"| {name} | {statistics.mean(points):+.2f} ± {error:.2f} | {kl:.4f} | {shown} |"


def main() -> None:
    """Measure and print the table; one thread, so that a busy machine changes little."""
    torch.set_num_threads(1)
    rows: dict[str, list[Measured]] = {}
    for seed in range(TRAININGS):
        for name, measured in measure_training(seed):
            rows.setdefault(name, []).append(measured)
    print("| digits ResNet, no training | accuracy, points | KL to the original | MACs | params | time |")
    print("|---|---|---|---|---|---|")
    for name in sorted(rows, key=lambda each: each.startswith("noise")):
        print(summary(name, rows[name]))


if __name__ == "__main__":
    main()
