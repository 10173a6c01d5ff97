"""What a waiting person sees: bars on a terminal, plain lines in a log, nothing when asked for nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[], None]
Tell = Callable[[str], None]


def say_nothing(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Shown:
    """What a running stage calls: itself after each step, ``tell`` to say how it stands."""

    advance: Advance = lambda: None
    tell: Tell = say_nothing

    def __call__(self) -> None:
        """One step is done."""
        self.advance()


UNSEEN = Shown()


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
    def stage(self, name: str, total: int = 1) -> Iterator[Shown]:
        """Run one stage of ``total`` steps; call what is yielded after each."""
        started = time.perf_counter()
        with self._display(name, total) as shown:
            yield shown
        self.seconds.append((name, time.perf_counter() - started))

    def announce(self, text: str) -> None:
        """Say something between two stages."""
        if self.shown:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def _display(self, name: str, total: int) -> Iterator[Shown]:
        if not self.shown:
            yield Shown()
        elif sys.stderr.isatty():
            with _bar() as bar:
                task = bar.add_task(name, total=total)
                yield Shown(
                    lambda: bar.advance(task), lambda text: bar.update(task, description=f"{name}: {text}")
                )  # fmt: skip
        else:
            started = time.perf_counter()
            yield Shown(tell=lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True))
            print(f"{name}: done in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)


def sum_seconds(seconds: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """How long each stage took in all, where some were run several times, in the order they were first run."""
    total: dict[str, float] = {}
    for name, taken in seconds:
        total[name] = total.get(name, 0.0) + taken
    return tuple(total.items())


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
