"""Compress and measure: from a key to a row."""

from __future__ import annotations

import time

import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.errors import BottleneckOptError
from tests.benchmarks.accuracy.methods import find_method
from tests.benchmarks.accuracy.problem import pose
from tests.benchmarks.accuracy.rows import Key, Row


def measure(key: Key) -> Row:
    """The row of a key; what cannot be done is its failure."""
    return compress(key)[0]


def compress(key: Key) -> tuple[Row, nn.Module | None]:
    """The row of a key and the compressed network in eval mode; None where it cannot be done."""
    torch.set_num_threads(1)
    problem = pose(key.network, key.training, key.draw)
    started = time.thread_time()
    try:
        model = find_method(key.method)(problem, key.budget)
    except BottleneckOptError as error:
        return Row(key, failure=f"{type(error).__name__}: {error}"), None
    seconds = time.thread_time() - started
    before, after = (bo.trace(each, problem.example).cost for each in (problem.original, model))
    task, expected = problem.task, problem.outputs
    got = task.run(model.eval(), key.training)
    row = Row(
        key,
        macs=after.macs / before.macs,
        params=after.params / before.params,
        before=task.score(expected, key.training),
        after=task.score(got, key.training),
        change=task.change(expected, got),
        seconds=seconds,
    )
    return row, model
