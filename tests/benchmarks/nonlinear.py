"""Bottlenecks with and without an activation, after recovery, on networks of digits; the table of the plugin's README.

``PYTHONPATH=plugins/bottleneck-opt-nonlinear python -m tests.benchmarks.nonlinear`` (about an hour on one core). Three
trainings of each network, 64 unlabelled images, 300 steps of recovery; measured on the 797 test digits, with the joint
fit before recovery and, as for large models, without. It goes on where it was stopped: rows are kept in out/nonlinear.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from bottleneck_opt_nonlinear import NetworkInNetwork
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import Digits, DigitsResNet, accuracy, load_digits, train
from bottleneck_opt.demo.run import mean_kl
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.sites import Pass
from tests.benchmarks.accuracy.networks import DigitsVgg, build

OUT = Path("out/nonlinear")
TRAININGS, IMAGES, STEPS = 3, 64, 300
POINTS = ((True, 0.25), (True, 0.15), (False, 0.25), (False, 0.15), (False, 0.08))
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "digits VGG": lambda seed: build(DigitsVgg, seed),
    "digits ResNet": lambda seed: build(DigitsResNet, seed),
}
PASSES: dict[str, Sequence[Pass]] = {
    "linear (reduce, expand)": (Reduce(), Expand()),
    "with activations (nin)": (NetworkInNetwork(),),
}


@dataclass(frozen=True)
class Row:
    """One compressed network: accuracy and KL to the original on the test digits, before and after recovery."""

    network: str
    passes: str
    joint: bool
    budget: float
    seed: int
    original: float
    before: float
    after: float
    kl_before: float
    kl_after: float
    macs: float
    slopes: float


def train_once(network: str, seed: int, digits: Digits) -> nn.Module:
    """The trained network, from a file where it was trained before."""
    model, path = NETWORKS[network](seed), OUT / f"{network.replace(' ', '-')}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    train(model, digits, seed=seed)
    safetensors.torch.save_file(model.state_dict(), path)
    return model.eval()


@dataclass(frozen=True)
class Trial:
    """What is measured once: which network, with which passes, fitted jointly or not, to which share, of which seed."""

    network: str
    passes: str
    joint: bool
    budget: float
    seed: int


def measure(model: nn.Module, digits: Digits, trial: Trial) -> Row:
    """Compress, recover, and measure before and after."""
    generator = torch.Generator().manual_seed(trial.seed)
    images = digits.train_x[torch.randperm(len(digits.train_x), generator=generator)[:IMAGES]]
    result = bo.optimize(
        model, images[:1], calibration=images, budget=trial.budget, passes=PASSES[trial.passes], seed=trial.seed,
        recipe=Recipe(joint=None if trial.joint else 0), allow_slower=True, progress=False,
    )  # fmt: skip
    better = bo.recover(result, images, teacher=model, recovery=STEPS, progress=False)
    original, before, after = (
        accuracy(each, digits.test_x, digits.test_y) for each in (model, result.model, better.model)
    )
    kl_before, kl_after = (mean_kl(model, each, digits.test_x) for each in (result.model, better.model))
    slopes = [float(each.weight.detach().mean()) for each in better.model.modules() if isinstance(each, nn.PReLU)]
    return Row(
        **asdict(trial), original=original, before=before, after=after, kl_before=kl_before, kl_after=kl_after,
        macs=result.after.cost.macs / result.before.cost.macs, slopes=statistics.mean(slopes) if slopes else 1.0,
    )  # fmt: skip


def run(path: Path) -> list[Row]:
    """All rows, those of the file as they are."""
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    known = {Trial(row.network, row.passes, row.joint, row.budget, row.seed) for row in rows}
    points = [(joint, budget, seed) for joint, budget in POINTS for seed in range(TRAININGS)]
    trials = [Trial(net, passes, *point) for point in points for net in NETWORKS for passes in PASSES]
    for trial in trials:
        if trial in known:
            continue
        digits = load_digits(trial.seed)
        rows.append(measure(train_once(trial.network, trial.seed, digits), digits, trial))
        with path.open("a") as file:
            file.write(json.dumps(asdict(rows[-1])) + "\n")
    return rows


def show(rows: Sequence[Row]) -> str:
    """The table: change of the accuracy in points and KL, before -> after recovery, with the standard error."""
    titles = [f"{budget:g}{'' if joint else ', no joint fit'}" for joint, budget in POINTS]
    lines = ["| network | passes | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(POINTS)]
    for network in NETWORKS:
        for passes in PASSES:
            mine = [row for row in rows if (row.network, row.passes) == (network, passes)]
            cells = [_cell([row for row in mine if (row.joint, row.budget) == point]) for point in POINTS]
            lines.append(f"| {network} | {passes} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    after = [100 * (row.after - row.original) for row in rows]
    error = statistics.stdev(after) / len(after) ** 0.5 if len(after) > 1 else float("nan")
    before = statistics.mean(100 * (row.before - row.original) for row in rows)
    kls = [statistics.mean(getattr(row, key) for row in rows) for key in ("kl_before", "kl_after")]
    return f"{before:+.2f} -> {statistics.mean(after):+.2f} ± {error:.2f} (KL {kls[0]:.4f} -> {kls[1]:.4f})"


def main() -> None:
    """Measure what is missing and print the table; one thread."""
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    print(show(run(OUT / "rows.jsonl")))


if __name__ == "__main__":
    main()
