"""Measured milliseconds: interleaved, medians, on the machine that runs this.

On the CPU it is the time of the one thread that computes: what other programs take away from it does not count, so a
busy machine does not decide which model is the faster one.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from bottleneck_opt.inputs import Inputs
from bottleneck_opt.outcome import Speed

LEAST_RUNS = 5
MOST_RUNS = 50
SECONDS = 3.0
THREADS = 1


def compare_speed(before: nn.Module, after: nn.Module, inputs: Inputs, *, device: torch.device) -> Speed:
    """Median milliseconds of one call of each model, run in turn so that a drifting machine hits both alike.

    Args:
        before, after: Models in eval mode on ``device``.
        inputs: The call that is timed.
        device: Where the models are.
    """
    runs: list[list[float]] = [[], []]
    with torch.inference_mode(), one_thread(), steady_memory():
        for model in (before, after):
            inputs.call(model)
        started = time.perf_counter()
        while _goes_on(len(runs[0]), started):
            for model, times in zip((before, after), runs, strict=True):
                times.append(_time_call(model, inputs, device))
    medians = [statistics.median(times) for times in runs]
    return Speed(medians[0], medians[1], len(runs[0]), THREADS, str(device), spread=max(map(_spread, runs)))


def _spread(times: Sequence[float]) -> float:
    """Interquartile range over median."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return (upper - lower) / median


def _goes_on(runs: int, started: float) -> bool:
    return runs < LEAST_RUNS or (runs < MOST_RUNS and time.perf_counter() - started < SECONDS)


def _time_call(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    own = inputs.copy()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = _choose_clock(device)
    started = clock()
    own.hand_over(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - started) * 1e3


def _choose_clock(device: torch.device) -> Callable[[], float]:
    """The thread's own time where that is fine enough (not on Windows), else time on the wall."""
    fine = time.get_clock_info("thread_time").resolution < 1e-5
    return time.thread_time if device.type == "cpu" and fine else time.perf_counter


def compare_layers(
    before: nn.Module, after: nn.Module, inputs: Inputs, paths: list[str], *, device: torch.device
) -> tuple[tuple[str, float, float], ...]:
    """Median milliseconds in each module at a path, of both models; only where a module's work is done when it returns.

    Args:
        before, after: Models in eval mode on ``device``, with modules at these paths.
        inputs: The call that is timed.
        paths: Of the modules.
        device: Where the models are; on other devices than the CPU nothing is timed.
    """
    if device.type != "cpu" or not paths:
        return ()
    first, second = (time_modules(model, inputs, paths) for model in (before, after))
    return tuple((path, first[path], second[path]) for path in paths if first[path] and second[path])


def time_modules(model: nn.Module, inputs: Inputs, paths: list[str], *, runs: int = LEAST_RUNS) -> Mapping[str, float]:
    """Median milliseconds spent in each module at a path during one call of the model, over all its calls."""
    totals: dict[str, list[float]] = {path: [] for path in paths}
    clocks = {path: _Clock() for path in paths}
    handles = [
        hook
        for path, clock in clocks.items()
        for hook in (
            model.get_submodule(path).register_forward_pre_hook(clock.start),
            model.get_submodule(path).register_forward_hook(clock.stop),
        )
    ]
    try:
        with torch.inference_mode(), one_thread(), steady_memory():
            for run in range(runs + 1):
                inputs.call(model)
                for path, clock in clocks.items():
                    if run:
                        totals[path].append(clock.milliseconds)
                    clock.milliseconds = 0.0
    finally:
        for handle in handles:
            handle.remove()
    return {path: statistics.median(times) for path, times in totals.items()}


class _Clock:
    def __init__(self) -> None:
        self.milliseconds = 0.0
        self._started = 0.0

    def start(self, *_: object) -> None:
        self._started = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.milliseconds += (time.perf_counter() - self._started) * 1e3


@contextmanager
def one_thread() -> Iterator[None]:
    """Time on one CPU thread: several wait for each other on a busy machine, which makes medians swing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def steady_memory() -> Iterator[None]:
    """Keep glibc from giving big activations back to the kernel after every operation, which makes timings swing."""
    mallopt = _find_mallopt()
    if mallopt is None:
        yield
        return
    m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2  # from glibc's malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 256 * 2**20)
    try:
        yield
    finally:
        mallopt(m_mmap_max, 65536)  # glibc's defaults
        mallopt(m_trim_threshold, 128 * 2**10)
        mallopt(m_top_pad, 0)


def _find_mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library without it, such as musl
        return None
    return function
