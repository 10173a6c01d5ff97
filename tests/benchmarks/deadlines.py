"""Budgets of time: ``python -m tests.benchmarks.deadlines`` (most of an hour on two quiet cores).

For each network and setting: what a budget of 0.7 of the time came to, what was expected when it was chosen and what
was measured at the end, in milliseconds. Shapes of torchvision's networks have random weights, which serve for time.
Then half the time for the trained networks, with what it costs them, and beside them channels pruned by torch-pruning
until they take no longer, measured in the same way. Rows are added to ``out/deadlines/rows.jsonl``, and what is there
is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.errors import BottleneckOptError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.outcome import Speed
from bottleneck_opt.recipe import Recipe
from tests.benchmarks.accuracy.problem import Problem, pose
from tests.benchmarks.accuracy.pruning import prune
from tests.torchvision_models import build

SHAPES = ("resnet18", "resnet50", "vgg16")
TRAINED = ("dncnn", "resnet", "vgg")
SETTINGS = tuple(bo.Timing(batch, threads) for batch in (1, 32) for threads in (1, 2))
BUDGET, HALF = 0.7, 0.5
HALVED = ("dncnn", "vgg")
FOR_TIME = Recipe(refit=False, joint=0, rounds=0)
BISECTIONS = 7
PRUNED, LARGER = "torch-pruning", "torch-pruning, next larger"
Pruned = tuple[nn.Module, Speed]


@dataclass(frozen=True)
class Row:
    """One network at one budget in some settings, of which the worst is shown.

    Attributes:
        method: ``ours`` or ``torch-pruning``.
        macs: Share of the multiply-adds that is left.
        before, expected, after: Milliseconds; ``after`` was measured at the end, beside ``before``.
        models: How many whole models were timed while choosing.
        metric_before, metric_after: Of trained networks.
        failure: Why there is no result.
    """

    network: str
    method: str
    settings: str
    budget: float
    macs: float = float("nan")
    before: float = float("nan")
    expected: float = float("nan")
    after: float = float("nan")
    models: int = 0
    metric_before: float | None = None
    metric_after: float | None = None
    failure: str = ""

    @property
    def times(self) -> tuple[float, float, float]:
        """Milliseconds before, after, expected."""
        return self.before, self.after, self.expected

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What tells it from others."""
        return self.network, self.method, self.settings, self.budget


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/deadlines"))
    parser.add_argument("--only", default="", help="names of networks, between commas")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    options = parser.parse_args()
    file = options.out / "rows.jsonl"
    wanted = options.only.split(",") if options.only else [*TRAINED, *SHAPES]
    if not options.table:
        done = {row.key for row in read_rows(file)}
        for key, work in list_work(wanted):
            if key not in done:
                row = work()
                print(row, flush=True)
                options.out.mkdir(parents=True, exist_ok=True)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
    print("\n".join(render(read_rows(file))))


def read_rows(file: Path) -> list[Row]:
    """All rows that were kept."""
    return [Row(**json.loads(line)) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def list_work(networks: Sequence[str]) -> Iterator[tuple[tuple[str, str, str, float], Callable[[], Row]]]:
    """Every row's key with what makes it."""
    for network in networks:
        if network in HALVED:
            for method, work in (("ours", halve), (PRUNED, halve_by_pruning), (LARGER, prune_less)):
                yield (network, method, describe(SETTINGS[:1]), HALF), lambda n=network, w=work: w(n)  # type: ignore[misc]
        for settings in (*((each,) for each in SETTINGS), SETTINGS):
            yield (
                (network, "ours", describe(settings), BUDGET),
                lambda n=network, s=settings: shorten(n, s),  # type: ignore[misc]
            )


def describe(settings: Sequence[bo.Timing]) -> str:
    """Settings in few words."""
    if len(settings) > 1:
        return "the worst of these"
    (only,) = settings
    return f"batch {only.batch}, {only.threads} thread{'s' if only.threads > 1 else ''}"


def shorten(network: str, settings: Sequence[bo.Timing]) -> Row:
    """A network in 0.7 of its time."""
    model, inputs = find_network(network)
    empty = Row(network, "ours", describe(settings), BUDGET)
    try:
        result = bo.optimize(
            model, inputs[:1], calibration=inputs, budget=f"latency={BUDGET}", timing=settings, progress=False,
            recipe=FOR_TIME,
        )  # fmt: skip
    except BottleneckOptError as error:
        return Row(*empty.key, failure=str(error))
    return to_row(empty, result)


def find_network(network: str) -> tuple[nn.Module, Tensor]:
    """A network and some inputs."""
    if network in TRAINED:
        problem = pose(network, 0, 0)
        return problem.original, problem.calibration
    return build(network), torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def to_row(empty: Row, result: bo.Result) -> Row:
    """The numbers of the setting in which least was gained."""
    assert result.clocked is not None
    checked = result.verification
    speeds = [each for each in (checked.speed, *checked.more_speeds) if each is not None]
    timed, speed = max(
        zip(result.clocked.timed, speeds, strict=True), key=lambda each: each[1].after / each[1].before
    )  # fmt: skip
    macs = result.after.cost.macs / result.before.cost.macs
    expected = timed.predicted / timed.before * speed.before
    return Row(*empty.key, macs, speed.before, expected, speed.after, result.clocked.models)


def halve(network: str) -> Row:
    """A trained network in half its time."""
    problem, setting = pose(network, 0, 0), SETTINGS[0]
    result = bo.optimize(
        problem.original, problem.example, calibration=problem.calibration, budget=f"latency={HALF}", timing=setting,
        progress=False,
    )  # fmt: skip
    row = to_row(Row(network, "ours", describe([setting]), HALF), result)
    return with_metric(row, problem, result.model)


def with_metric(row: Row, problem: Problem, model: nn.Module) -> Row:
    """The row with the metric of the original and of a model."""
    task = problem.task
    scores = [
        task.score(task.run(each.eval(), problem.training), problem.training) for each in (problem.original, model)
    ]
    return Row(**{**asdict(row), "metric_before": scores[0], "metric_after": scores[1]})


def halve_by_pruning(network: str) -> Row:
    """The largest pruned network that takes no more than half the time."""
    return measure_pruned(network, PRUNED, find_pruned(network)[0])


def prune_less(network: str) -> Row:
    """The next larger one: between the two, the processor's vectors leave nothing."""
    return measure_pruned(network, LARGER, find_pruned(network)[1])


@lru_cache(maxsize=1)
def find_pruned(network: str) -> tuple[Pruned | None, Pruned | None]:
    """The pruned networks just below and just above half the time, by bisection."""
    problem, low, high = pose(network, 0, 0), 0.02, 1.0
    below: Pruned | None = None
    above: Pruned | None = None
    for _ in range(BISECTIONS):
        budget = (low + high) / 2
        model = prune(problem, "hessian", budget, everywhere=False).eval()
        speed = compare_speed(
            problem.original.eval(), model, Inputs((problem.example,)), device=torch.device("cpu"), timing=SETTINGS[0]
        )  # fmt: skip
        if speed.after <= HALF * speed.before:
            low, below = budget, (model, speed)
        else:
            high, above = budget, (model, speed)
    return below, above


def measure_pruned(network: str, method: str, pruned: Pruned | None) -> Row:
    """The row of a pruned network."""
    problem, empty = pose(network, 0, 0), Row(network, method, describe(SETTINGS[:1]), HALF)
    if pruned is None:
        return Row(*empty.key, failure="no pruned network is as fast")
    model, speed = pruned
    macs = bo.trace(model, problem.example).cost.macs / bo.trace(problem.original, problem.example).cost.macs
    row = Row(*empty.key, macs, speed.before, float("nan"), speed.after)
    return with_metric(row, problem, model)


def render(rows: Sequence[Row]) -> list[str]:
    """Two tables in Markdown: 0.7 of the time in every setting, and half the time with what it costs."""
    settings = list(dict.fromkeys(row.settings for row in rows if row.budget == BUDGET))
    networks = list(dict.fromkeys(row.network for row in rows))
    found = {row.key: row for row in rows}
    lines = ["| network | " + " | ".join(settings) + " |", "|---" * (len(settings) + 1) + "|"]
    for network in networks:
        cells = [found.get((network, "ours", each, BUDGET)) for each in settings]
        lines.append(f"| {network} | " + " | ".join("" if each is None else tell(each) for each in cells) + " |")
    lines += ["", "| network | method | ms | of the time | of the MACs | metric before | after |", "|---" * 7 + "|"]
    lines += [
        f"| {row.network} | {row.method} | {row.before:.3g} to {row.after:.3g} | {row.after / row.before:.2f} | "
        f"{row.macs:.2f} | {row.metric_before:.2f} | {row.metric_after:.2f} |"
        for row in rows
        if row.budget == HALF and row.metric_before is not None and row.metric_after is not None
    ]
    return lines


def tell(row: Row) -> str:
    """Milliseconds before, after and expected, and the share of multiply-adds that is left."""
    if row.failure:
        return row.failure
    before, after, expected = (f"{each:.0f}" if each >= 100 else f"{each:.3g}" for each in row.times)
    return f"{before} to {after} ({expected}), {row.macs:.2f}"


if __name__ == "__main__":
    main()
