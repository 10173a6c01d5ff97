"""What a waiting person sees: bars on a terminal, plain lines in a log, nothing when asked for nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SILENCE = 30.0
"""Seconds after which a log is told how far a stage is."""
AT_ONCE = 1.0
"""Seconds at the beginning of a stage in which steps are done that an earlier run did, or that say little."""
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
        """Run one stage of ``total`` steps; call what is yielded after each. How long one step takes nobody can tell:
        of such a stage only the time that has passed is shown.
        """
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
                task = bar.add_task(name, total=total if total > 1 else None)
                yield Shown(
                    lambda: bar.advance(task), lambda text: bar.update(task, description=f"{name}: {text}")
                )  # fmt: skip
        else:
            started = time.perf_counter()
            log = _Log(name, total, started, started)
            yield Shown(log.advance, log.tell)
            log.tell(f"done in {time.perf_counter() - started:.1f} s")


@dataclass
class _Log:
    """A stage in plain lines: now and then how far it is and how long it will take."""

    name: str
    total: int
    started: float
    told: float
    done: int = 0
    read_back: int = 0

    def advance(self) -> None:
        """One step is done; say so where nothing was said for a while."""
        self.done += 1
        now = time.perf_counter()
        if now - self.started < AT_ONCE:
            self.read_back = self.done
        if now - self.told >= SILENCE and self.read_back < self.done < self.total:
            left = (now - self.started) / (self.done - self.read_back) * (self.total - self.done)
            self.tell(f"{self.done} of {self.total}, {_tell_time(left)} left")

    def tell(self, text: str) -> None:
        """Print a line."""
        self.told = time.perf_counter()
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def _tell_time(seconds: float) -> str:
    """A time in words.

    Example:
        >>> _tell_time(42.3), _tell_time(400), _tell_time(9000)
        ('about 42 s', 'about 7 min', 'about 2.5 h')
    """
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def sum_seconds(seconds: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """How long each stage took in all, where some were run several times, in the order they were first run."""
    total: dict[str, float] = {}
    for name, taken in seconds:
        total[name] = total.get(name, 0.0) + taken
    return tuple(total.items())


class _Count(MofNCompleteColumn):
    def render(self, task: Task) -> Text:
        """How many steps are done; nothing where there is only one."""
        return Text() if task.total is None else super().render(task)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        _Count(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
