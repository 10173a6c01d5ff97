"""The same comparison against measured milliseconds: all networks interleaved, one thread, this process alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bottleneck_opt.files import write_whole
from bottleneck_opt.timing.in_turn import limited_threads, steady_memory
from tests.benchmarks.accuracy.measuring import compress
from tests.benchmarks.accuracy.methods import BASELINES, BY_THE_CLOCK
from tests.benchmarks.accuracy.problem import Problem, pose
from tests.benchmarks.accuracy.rows import Key, Row
from tests.benchmarks.accuracy.tasks import TASKS

BATCHES = (1, 32)
RATIOS = (0.75, 0.5, 0.35)
BUDGETS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.35, 0.25, 0.15, 0.08)
IN_TIME = (0.75, 0.6, 0.5, 0.4, 0.35, 0.25)  # what is asked for in time: the ratios, and less where that is missed
TIMED = (*BY_THE_CLOCK, "ours", *BASELINES)
SLACK = 0.01  # what is timed again is not timed the same, by whatever method it was made
ROUNDS, LEAST_ROUNDS, SECONDS = 21, 7, 100.0
DENSE = "dense"


@dataclass(frozen=True)
class Timed:
    """Median time of one call; ``ratio`` is to the original's; what the metric lost and the output changed by."""

    network: str
    method: str
    budget: float
    batch: int
    milliseconds: float
    ratio: float
    gain: float
    change: float

    def __str__(self) -> str:
        return f"{self.gain:+.2f} ({self.change:.2g}) at {self.ratio:.2f}"


def compare(out: Path, networks: Sequence[str], methods: Sequence[str]) -> None:
    """Time what these methods make of these networks and keep the times in ``latency-NETWORK.jsonl``."""
    for name in networks:
        problem = pose(name, 0, 0)
        wanted = [(each, budget) for each in methods for budget in (IN_TIME if each in BY_THE_CLOCK else BUDGETS)]
        built = [made for method, budget in wanted if (made := _compress(name, method, budget))]
        models = {(DENSE, 1.0): problem.original} | {(row.key.method, row.key.budget): model for row, model in built}
        timed = [
            each for batch in BATCHES for each in _time_batch(problem, models, [row for row, _ in built], batch)
        ]  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in timed)
        write_whole(times_file(out, name), lines.encode())


def _compress(network: str, method: str, budget: float) -> tuple[Row, nn.Module] | None:
    row, model = compress(Key(network, 0, 0, method, budget))
    print(f"{network}, {method}, {budget:g}: {row.failure or f'{row.gain:+.2f} ({row.change:.2g})'}", flush=True)
    return None if model is None else (row, model)


def times_file(out: Path, network: str) -> Path:
    """Where a network's times are kept."""
    return out / f"latency-{network}.jsonl"


def read_times(out: Path) -> list[Timed]:
    """All times that were kept."""
    files = [times_file(out, name) for name in TASKS]
    return [
        Timed(**json.loads(line)) for file in files if file.is_file() for line in file.read_text("utf-8").splitlines()
    ]


def _time_batch(
    problem: Problem, models: Mapping[tuple[str, float], nn.Module], rows: Sequence[Row], batch: int
) -> list[Timed]:  # fmt: skip
    medians = time_interleaved(models, problem.calibration[:batch])
    dense = medians[DENSE, 1.0]
    return [
        Timed(
            problem.task.name, row.key.method, row.key.budget, batch, median, median / dense, row.gain, row.change
        )
        for row in rows
        for median in [medians[row.key.method, row.key.budget]]
    ]  # fmt: skip


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


def find_best(times: Iterable[Timed], within: float) -> Timed | None:
    """The most accurate network whose time is about within a ratio; of equals the nearest to the original."""
    fast = [each for each in times if each.ratio <= within + SLACK]
    return max(fast, key=lambda each: (each.gain, -each.change), default=None)


def render_latency(times: Sequence[Timed], network: str, batch: int) -> list[str]:
    """For each ratio of time the best of each method; of ours, what was made for this batch."""
    timed = [each for each in times if (each.network, each.batch) == (network, batch)]
    if not timed:
        return []
    methods = [name for name in TIMED if name not in BY_THE_CLOCK or name.endswith(f" {batch}")]
    lines = [
        f"| {network}, batch {batch}, time | " + " | ".join(f"{ratio:g}" for ratio in RATIOS) + " |",
        "|---" * (len(RATIOS) + 1) + "|",
    ]
    for method in methods:
        best = [find_best((each for each in timed if each.method == method), ratio) for ratio in RATIOS]
        lines.append(f"| {method} | " + " | ".join(str(each or "not reached") for each in best) + " |")
    return lines
