"""What a waiting person sees: bars on a terminal, plain lines in a log, nothing when asked for nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[], None]


@dataclass
class Stages:
    """Announces the stages of a run and remembers how long each took.

    Example:
        >>> stages = Stages(shown=False)
        >>> with stages.stage("tracing") as advance:
        ...     advance()
        >>> [name for name, seconds in stages.seconds]
        ['tracing']
    """

    shown: bool = True
    seconds: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Advance]:
        """Run one stage of ``total`` steps; call the yielded function after each."""
        started = time.perf_counter()
        with self._display(name, total) as advance:
            yield advance
        self.seconds.append((name, time.perf_counter() - started))

    @contextmanager
    def _display(self, name: str, total: int) -> Iterator[Advance]:
        if not self.shown:
            yield lambda: None
        elif sys.stderr.isatty():
            with _bar() as bar:
                task = bar.add_task(name, total=total)
                yield lambda: bar.advance(task)
        else:
            started = time.perf_counter()
            yield lambda: None
            print(f"{name}: done in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
