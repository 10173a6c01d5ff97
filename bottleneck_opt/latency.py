"""Measured milliseconds of models: interleaved, medians, on the machine that runs this."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from bottleneck_opt.inputs import Inputs
from bottleneck_opt.outcome import Speed
from bottleneck_opt.timing.in_turn import Patience, find_spread, limited_threads, steady_memory, time_in_turn
from bottleneck_opt.timing.setting import Timing
from bottleneck_opt.timing.targets import prepare_model

LEAST_RUNS = 5
MODEL = Patience(least=LEAST_RUNS, most=50, seconds=3.0)


def compare_speed(
    before: nn.Module, after: nn.Module, inputs: Inputs, *, device: torch.device, timing: Timing | None = None
) -> Speed:
    """Median milliseconds of one call of each model, run in turn so that a drifting machine hits both alike.

    Args:
        before, after: Models in eval mode on ``device``.
        inputs: The call that is timed.
        device: Where the models are.
        timing: The setting; None takes the example's batch on one thread.

    Raises:
        NotAvailableError: The setting's target cannot run a model.
    """
    timing = timing or Timing()
    ready = [prepare_model(model, inputs, timing) for model in (before, after)]
    runs = time_in_turn(ready, device=device, threads=timing.threads, patience=MODEL)
    medians = [statistics.median(times) for times in runs]
    return Speed(
        medians[0], medians[1], len(runs[0]), timing.threads, str(device), spread=max(map(find_spread, runs)),
        batch=timing.batch, target=timing.target,
    )  # fmt: skip


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
        with torch.inference_mode(), limited_threads(1), steady_memory():
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
