"""Time calls in turn, so that a drifting machine hits all alike.

On one CPU thread it is the time of the thread that computes: what other programs take away from it does not count, so
a busy machine does not decide which is the faster one. With more threads, and on other devices, it is time on the wall.

A run that asks the kernel for new memory does not count: the kernel hands over pages that it has zeroed first, which on
a virtual machine can take as long as the layers themselves, and whether it happens depends on what ran before.
"""

from __future__ import annotations

import ctypes
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

MOST_SPOILED = 3  # rounds that took new memory and are not counted; what goes on like that is counted with it
_FEW_PAGES = 16

Call = Callable[[], object]
Ready = Callable[[], Call]
"""Makes one call ready to be timed: what it is given is copied beforehand, as it may write into it."""


@dataclass(frozen=True)
class Patience:
    """How long to go on.

    Attributes:
        least, most: Runs of each call.
        seconds: Not longer than this, once ``least`` is reached.
    """

    least: int
    most: int
    seconds: float


def time_in_turn(
    calls: Sequence[Ready], *, device: torch.device, threads: int, patience: Patience
) -> list[list[float]]:
    """Milliseconds of every counted run of each call, all called once before.

    Args:
        calls: What to time.
        device: Where they compute.
        threads: CPU threads they may use.
        patience: How often.
    """
    runs: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode(), limited_threads(threads), steady_memory():
        for ready in calls:
            ready()()
        started, spoiled = time.perf_counter(), 0
        while _goes_on(len(runs[0]), started, patience):
            pages = count_new_pages()
            round_times = [_time(ready(), device, threads) for ready in calls]
            if count_new_pages() - pages > _FEW_PAGES and spoiled < MOST_SPOILED:
                spoiled += 1
                continue
            for times, milliseconds in zip(runs, round_times, strict=True):
                times.append(milliseconds)
    return runs


def _goes_on(done: int, started: float, patience: Patience) -> bool:
    if done < patience.least:
        return True
    return done < patience.most and time.perf_counter() - started < patience.seconds


def _time(call: Call, device: torch.device, threads: int) -> float:
    clock = _choose_clock(device, threads)
    _wait(device)
    started = clock()
    call()
    _wait(device)
    return (clock() - started) * 1e3


def count_new_pages() -> int:
    """Pages of memory that the kernel has handed to this process so far; 0 where memory cannot be held on to."""
    if _find_libc() is None:
        return 0
    resource = importlib.import_module("resource")  # not on Windows
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _choose_clock(device: torch.device, threads: int) -> Callable[[], float]:
    """The thread's own time where it computes alone and its clock is fine enough (not on Windows)."""
    fine = time.get_clock_info("thread_time").resolution < 1e-5
    return time.thread_time if device.type == "cpu" and threads == 1 and fine else time.perf_counter


def find_spread(times: Sequence[float]) -> float:
    """Interquartile range over median."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return (upper - lower) / median


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let torch compute on this many CPU threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def steady_memory() -> Iterator[None]:
    """Keep glibc from giving big activations back to the kernel after every operation, which makes timings swing.

    Afterwards all that is free is given back, also what lies between what is still in use.
    """
    libc = _find_libc()
    if libc is None:
        yield
        return
    m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2  # from glibc's malloc.h
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, -1)  # never: a large batch's activations are more than the largest threshold
    libc.mallopt(m_top_pad, 256 * 2**20)
    try:
        yield
    finally:
        libc.mallopt(m_mmap_max, 65536)  # glibc's defaults
        libc.mallopt(m_trim_threshold, 128 * 2**10)
        libc.mallopt(m_top_pad, 0)
        libc.malloc_trim(0)


@lru_cache(maxsize=1)
def _find_libc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
