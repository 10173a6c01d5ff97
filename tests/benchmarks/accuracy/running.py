"""What is to be measured, by several processes of one thread each."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.benchmarks.accuracy.measuring import measure
from tests.benchmarks.accuracy.methods import ABLATIONS, BASELINES, OURS
from tests.benchmarks.accuracy.rows import Key, append_row
from tests.benchmarks.accuracy.tasks import TASKS

TRAININGS, DRAWS = range(3), range(3)
BUDGETS = (0.75, 0.5, 0.33, 0.25, 0.15)
ABLATED = ("dncnn", "vgg")
ABLATION_BUDGETS = (0.5, 0.25)


def list_keys() -> list[Key]:
    """All rows of the accuracy tables, what belongs together in a row.

    Ours is measured for every draw, what hardly depends on the draw (weights alone) for one.
    """
    seeds = list(itertools.product(TASKS, TRAININGS, DRAWS))
    firsts = [seed for seed in seeds if seed[2] == DRAWS[0]]
    compared = [Key(*seed, method, budget) for seed in seeds for method in OURS for budget in BUDGETS]
    once = [Key(*seed, method, budget) for seed in firsts for method in BASELINES for budget in BUDGETS]
    ablated = [
        Key(*seed, method, budget)
        for seed in firsts
        if seed[0] in ABLATED
        for method in ABLATIONS
        for budget in ABLATION_BUDGETS
    ]
    return sorted(dict.fromkeys((*compared, *once, *ablated)), key=_group)


def list_missing(keys: Sequence[Key], done: Collection[Key]) -> list[Key]:
    """Those that are not done."""
    return [key for key in keys if key not in done]


def _group(key: Key) -> tuple[int, int, str, str]:
    """What is measured in a row by one process: all budgets of a method."""
    return key.training, key.draw, key.network, key.method


def run(keys: Sequence[Key], path: Path, *, workers: int) -> Iterator[str]:
    """Measure what is missing and add it to the file; one line of text a batch."""
    batches = [list(group) for _, group in itertools.groupby(keys, _group)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_measure_batch, batches, itertools.repeat(path))


def _measure_batch(keys: Sequence[Key], path: Path) -> str:
    """Each row is in the file as soon as it is measured; one that could not be measured is left for the next run."""
    first = keys[0]
    words = [f"{key.budget:g}: {_measure_into(path, key)}" for key in keys]
    return f"{first.network} {first.training}.{first.draw} {first.method}: " + ", ".join(words)


def _measure_into(path: Path, key: Key) -> str:
    try:
        row = measure(key)
    except Exception as error:  # others' libraries can raise anything; the other rows are wanted all the same
        return f"not measured, {type(error).__name__}: {error}"
    append_row(path, row)
    return row.failure or f"{row.gain:+.2f} ({row.change:.2g})"
