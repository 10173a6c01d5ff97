"""The same comparison against measured milliseconds: all networks interleaved, one thread, this process alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bottleneck_opt.errors import BottleneckOptError
from bottleneck_opt.files import write_whole
from bottleneck_opt.timing.in_turn import limited_threads, steady_memory
from tests.benchmarks.accuracy.methods import BASELINES, FORMS, OURS, RECOVERED, find_method
from tests.benchmarks.accuracy.problem import Problem, pose
from tests.benchmarks.accuracy.rows import Row
from tests.benchmarks.accuracy.running import LATENCY_BUDGETS
from tests.benchmarks.accuracy.tasks import TASKS

BATCHES = (1, 32)
RATIOS = (0.75, 0.5, 0.35)
ROUNDS, LEAST_ROUNDS, SECONDS = 21, 7, 240.0
DENSE = "dense"


@dataclass(frozen=True)
class Timed:
    """Median time of one call; ``ratio`` is to the original's."""

    network: str
    method: str
    budget: float
    batch: int
    milliseconds: float
    ratio: float


def compare(out: Path, networks: Sequence[str], methods: Sequence[str]) -> None:
    """Time what these methods make of these networks and keep the times in ``latency-NETWORK.jsonl``."""
    for name in networks:
        problem = pose(name, 0, 0)
        models = _build_all(problem, methods)
        timed = [each for batch in BATCHES for each in _time_batch(problem, models, batch)]
        out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in timed)
        write_whole(times_file(out, name), lines.encode())


def times_file(out: Path, network: str) -> Path:
    """Where a network's times are kept."""
    return out / f"latency-{network}.jsonl"


def read_times(out: Path) -> list[Timed]:
    """All times that were kept."""
    files = [times_file(out, name) for name in TASKS]
    return [
        Timed(**json.loads(line)) for file in files if file.is_file() for line in file.read_text("utf-8").splitlines()
    ]


def _build_all(problem: Problem, methods: Sequence[str]) -> dict[tuple[str, float], nn.Module]:
    """Every structure once: recovery changes values only, and closed-form methods are built anew."""
    models: dict[tuple[str, float], nn.Module] = {(DENSE, 1.0): problem.original}
    for method in methods:
        if method.endswith(RECOVERED):
            continue
        for budget in LATENCY_BUDGETS:
            try:
                models[method, budget] = find_method(method)(problem, budget).eval()
            except BottleneckOptError as error:
                print(f"{problem.task.name}, {method}, {budget:g}: {error}", flush=True)
    return models


def _time_batch(problem: Problem, models: Mapping[tuple[str, float], nn.Module], batch: int) -> list[Timed]:
    medians = time_interleaved(models, problem.calibration[:batch])
    dense = medians[DENSE, 1.0]
    return [Timed(problem.task.name, *key, batch, median, median / dense) for key, median in medians.items()]


def time_interleaved(
    models: Mapping[tuple[str, float], nn.Module], inputs: Tensor, *, rounds: int = ROUNDS
) -> dict[tuple[str, float], float]:
    """Median milliseconds of this thread's time for one call of each, all in turn, in another order every round."""
    runs: dict[tuple[str, float], list[float]] = {key: [] for key in models}
    order = list(models)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), limited_threads(1), steady_memory():
        for model in models.values():
            model(inputs)
        started = time.perf_counter()
        for done in range(rounds):
            if done >= LEAST_ROUNDS and time.perf_counter() - started > SECONDS:
                break
            for index in torch.randperm(len(order), generator=generator).tolist():
                key = order[index]
                before = time.thread_time()
                models[key](inputs)
                runs[key].append((time.thread_time() - before) * 1e3)
    return {key: statistics.median(times) for key, times in runs.items()}


@dataclass(frozen=True)
class Point:
    """One compressed network: where it was measured, its time and its row."""

    row: Row
    ratio: float

    def __str__(self) -> str:
        return f"{self.row.gain:+.2f} ({self.row.change:.2g}) at {self.ratio:.2f}"


def find_best(
    rows: Sequence[Row], times: Mapping[tuple[str, float], float], methods: Sequence[str], within: float
) -> Point | None:
    """The most accurate of some methods' networks whose time is within a ratio; of equals the nearest to the original.

    Args:
        rows: Of one network.
        times: Ratios of time, by method and budget.
        methods: Those that may be chosen from.
        within: Largest ratio.
    """
    points = [
        Point(row, times[key])
        for row in rows
        if row.key.method in methods and not row.failure
        if times.get(key := (row.key.method.removesuffix(RECOVERED), row.key.budget), 2.0) <= within
    ]
    return max(points, key=lambda point: (point.row.gain, -point.row.change), default=None)


def render_latency(rows: Sequence[Row], times: Sequence[Timed], name: str, batch: int) -> list[str]:
    """For each ratio of time the best of each method, of the first training and draw."""
    ratios = {(each.method, each.budget): each.ratio for each in times if each.network == name and each.batch == batch}
    if not ratios:
        return []
    mine = [row for row in rows if (row.key.network, row.key.training, row.key.draw) == (name, 0, 0)]
    recovered = [method for method in OURS if method.endswith(RECOVERED)]
    candidates = {
        "ours, any forms": [*(method for method in OURS if method not in recovered), *FORMS],
        **{method: [method] for method in (*OURS, *BASELINES, *FORMS)},
    }
    lines = [
        f"| {name}, batch {batch}, time | " + " | ".join(f"{r:g}" for r in RATIOS) + " |",
        "|---" * (len(RATIOS) + 1) + "|",
    ]
    for label, methods in candidates.items():
        best = [find_best(mine, ratios, methods, ratio) for ratio in RATIOS]
        lines.append(f"| {label} | " + " | ".join(str(each or "") for each in best) + " |")
    return lines
