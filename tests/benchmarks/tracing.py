"""What tracing costs: ``python -m tests.benchmarks.tracing`` (about a minute on one core).

The aim is at most five forward passes plus a second. Forward passes and traces take turns, so that a drifting machine
hits both alike; medians over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from tests.torchvision_models import build

ROUNDS = 7
PASSES = 5
SECONDS = 1.0


class Loop(nn.Module):
    """An LSTM cell stepped by hand: many small operations, where the recorder's own work weighs most."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]))
        for step in range(x.shape[1]):
            state = self.cell(x[:, step] * 2 - 1, state)
        out: Tensor = self.head(torch.tanh(state[0]))
        return out


def median_seconds(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function; they take turns, and a first round is not counted."""
    times: list[list[float]] = [[] for _ in functions]
    for counted in range(ROUNDS + 1):
        for function, taken in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            if counted:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def measure(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Seconds of one forward pass and of one trace."""

    def forward() -> object:
        with torch.inference_mode():
            return model(x)

    forward_seconds, trace_seconds = median_seconds(forward, lambda: bo.trace(model, x))
    return forward_seconds, trace_seconds


def make_cases() -> Mapping[str, tuple[nn.Module, Tensor]]:
    """The models, with one example input each."""
    picture = torch.randn(1, 3, 224, 224)
    cases: dict[str, tuple[nn.Module, Tensor]] = {
        name: (build(name), picture) for name in ("resnet50", "densenet121", "swin_t")
    }
    return {**cases, "LSTM loop, 200 steps": (Loop().eval(), torch.randn(1, 200, 64))}


def main() -> None:
    """Measure and print one line a model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, (model, x) in make_cases().items():
        forward, trace = measure(model, x)
        held = "held" if trace <= PASSES * forward + SECONDS else "MISSED"
        print(
            f"{name:<22} forward {forward * 1e3:8.1f} ms  trace {trace * 1e3:8.1f} ms  {trace / forward:6.1f} passes"
            f"  (at most {PASSES} + {SECONDS:.0f} s: {held})"
        )


if __name__ == "__main__":
    main()
