"""A small run that can be killed anywhere: ``python -m tests.resuming CACHE OUT WHERE SIGNAL``.

WHERE is ``stage:NAME`` (when it begins), ``step:NAME:N`` (in a stage, after so many steps) or ``file:NAME`` (when a
file of that stage was written and is about to take its place).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt import kept_answers
from bottleneck_opt.progress import Shown, Stages
from tests.networks import classifier, noise, seeded

X = noise(12, 3, 8, 8, dtype=torch.float32)
RECOVERY = bo.Recovery(steps=6, batch=4, check_every=2)


def network() -> nn.Module:
    return seeded(classifier, dtype=torch.float32)


def run(cache: Path | None = None, *, of: nn.Module | None = None, **options: Any) -> bo.Result:
    """The whole run."""
    usual = {"calibration": X, "budget": 0.4, "recover": RECOVERY, "progress": False}
    return bo.optimize(of or network(), X[:1], cache=cache, allow_slower=True, **{**usual, **options})


def break_off(where: str, how: signal.Signals) -> None:
    """Have the process get a signal somewhere in its run."""
    kind, name, *count = where.split(":")

    def strike() -> None:
        os.kill(os.getpid(), how)

    if kind == "file":
        _strike_at_file(name, strike)
    else:
        _strike_in_stage(name, int(count[0]) if count else 0, strike)


def _strike_at_file(name: str, strike: Callable[[], None]) -> None:
    replace = Path.replace

    def replaced(path: Path, target: Path) -> Path:
        if target.name.startswith(name):
            strike()
        return replace(path, target)

    Path.replace = replaced  # type: ignore[method-assign,assignment]  # this process ends here


def _strike_in_stage(name: str, count: int, strike: Callable[[], None]) -> None:
    stage = Stages.stage

    @contextmanager
    def watched(stages: Stages, running: str, total: int = 1) -> Iterator[Shown]:
        with stage(stages, running, total) as shown:
            if running != name:
                yield shown
                return
            steps = iter(range(count))
            if not count:
                strike()
            yield Shown(lambda: strike() if next(steps, count) >= count - 1 else None)

    Stages.stage = watched  # type: ignore[method-assign,assignment]  # this process ends here


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept_answers.EVERY = 0.0
    break_off(sys.argv[3], signal.Signals[sys.argv[4]])
    run(Path(sys.argv[1]), progress=True).save(sys.argv[2])
