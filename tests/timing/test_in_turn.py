from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bottleneck_opt.timing import in_turn
from bottleneck_opt.timing.in_turn import MOST_SPOILED, Call, Patience, count_new_pages, steady_memory, time_in_turn

CPU = torch.device("cpu")


def time_on_a_machine(
    monkeypatch: pytest.MonkeyPatch, *, new_pages: Callable[[int], int], runs: int = 5
) -> list[list[float]]:
    """Times of two calls that are the number of their run, each of which takes new pages of memory."""
    state = {"run": 0, "pages": 0}

    def run(_call: Call, _device: torch.device, _threads: int) -> float:
        state["pages"] += new_pages(state["run"])
        state["run"] += 1
        return float(state["run"] - 1)

    monkeypatch.setattr(in_turn, "_time", run)
    monkeypatch.setattr(in_turn, "count_new_pages", lambda: state["pages"])
    calls = [lambda: lambda: None] * 2
    return time_in_turn(calls, device=CPU, threads=1, patience=Patience(least=runs, most=runs, seconds=60.0))


def test_the_calls_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert time_on_a_machine(monkeypatch, new_pages=lambda _: 0) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_a_round_in_which_the_kernel_hands_over_memory_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = time_on_a_machine(monkeypatch, new_pages=lambda run: 100_000 if run in (0, 5) else 1, runs=3)
    assert times == [[2, 6, 8], [3, 7, 9]]


def test_what_always_takes_new_memory_is_timed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = time_on_a_machine(monkeypatch, new_pages=lambda _: 100_000, runs=3)
    assert first == [2 * MOST_SPOILED, 2 * MOST_SPOILED + 2, 2 * MOST_SPOILED + 4]


ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is told to hold on to memory")


@ON_LINUX
@pytest.mark.parametrize("gigabytes", [0.25, 2.5])
def test_memory_that_was_freed_is_not_asked_for_again(gigabytes: float) -> None:
    bytes_, touched = int(gigabytes * 2**30), 64 * 2**20

    def allocate_and_free() -> int:
        before = count_new_pages()
        torch.empty(bytes_, dtype=torch.uint8)[-touched:].fill_(1)
        return count_new_pages() - before

    with steady_memory():
        taken = [allocate_and_free() for _ in range(40)]  # malloc tries every gap in the heap before it settles
    assert max(taken[-10:]) < 64


@ON_LINUX
def test_memory_below_what_is_still_in_use_is_given_back_afterwards() -> None:
    with steady_memory():
        pass  # what earlier tests left in the heap is given back too
    before = count_resident_megabytes()
    with steady_memory():
        big = torch.ones(2**28, dtype=torch.uint8)
        above = torch.ones(2**20, dtype=torch.uint8)
        del big
        assert count_resident_megabytes() - before > 200
    assert count_resident_megabytes() - before < 50
    assert above.sum() > 0


def count_resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * int(importlib.import_module("resource").getpagesize()) / 2**20
