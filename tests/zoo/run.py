"""Every model in a process of its own, with a time limit; one JSON line each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import IO

from tests.zoo.row import Row, read_row

RESULTS = Path("out/zoo/zoo.jsonl")
_PRELOADED = ["torch", "fvcore.nn", "bottleneck_opt", "bottleneck_opt.testing", "tests.torchvision_models"]
_GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What one model may use."""

    seconds: float = 60.0
    memory: int = 12 * _GIB


@dataclass
class _Running:
    """A process at work on one model, and the last it has said."""

    process: ForkServerProcess
    answer: Connection
    deadline: float
    row: Row

    def listen(self) -> bool:
        """Take what was said; whether there is nothing more to come."""
        try:
            while self.answer.poll():
                self.row = read_row(self.answer.recv())
        except EOFError:
            return True
        return self.row.finished or time.monotonic() >= self.deadline


def run_models(names: Iterable[str], limits: Limits, *, processes: int = 1) -> Iterator[Row]:
    """The rows of these models, in the order they finish."""
    context = make_context()
    waiting, running = list(names)[::-1], list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(_start(context, waiting.pop(), limits))
            left = min(each.deadline for each in running) - time.monotonic()
            wait([each.answer for each in running], timeout=max(0.0, left))
            for each in [each for each in running if each.listen()]:
                running.remove(each)
                yield _collect(each, limits)
    finally:
        for each in running:
            each.process.kill()


def make_context() -> ForkServerContext:
    """Processes start from one that has torch loaded already, so that starting one costs little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _start(context: ForkServerContext, name: str, limits: Limits) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer_for, args=(name, theirs, limits.memory), daemon=True)
    process.start()
    theirs.close()
    return _Running(process, ours, time.monotonic() + limits.seconds, Row(name, name.partition("/")[0]))


def _collect(running: _Running, limits: Limits) -> Row:
    row, late = running.row, time.monotonic() >= running.deadline
    running.process.join(0 if late else 5)
    if not row.finished and late:
        row.failures["time"] = f"not done within {limits.seconds:.0f} s"
    elif not row.finished:
        row.failures["crash"] = f"the process ended with exit code {running.process.exitcode}"
    running.process.kill()
    running.process.join()
    running.answer.close()
    return row


def answer_for(name: str, answer: Connection, memory: int) -> None:
    """Check the named model and send its row; this is what runs in the new process."""
    _keep_quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"  # no model of the zoo may fetch weights
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    _check(name, lambda row: answer.send(row.to_json()))
    answer.close()


def _check(name: str, tell: Callable[[Row], None]) -> None:
    try:
        import torch  # noqa: PLC0415  (only the new process loads it)

        from tests.zoo.check import check_entry  # noqa: PLC0415
        from tests.zoo.families import find_entry  # noqa: PLC0415

        torch.set_num_threads(1)
        check_entry(find_entry(name), tell)
    except Exception as error:  # a package that is missing, a name that is wrong: the row says so
        failures = {"load": f"{type(error).__name__}: {error}"}
        tell(Row(name, name.partition("/")[0], failures=failures, finished=True))


def _keep_quiet() -> None:
    """What models print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def run_into(path: Path, names: Iterable[str], limits: Limits, *, processes: int, tell: Callable[[Row], None]) -> None:
    """Run the models that the file has no line of yet, and add theirs."""
    done = {row.name for row in read_rows(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in run_models([name for name in names if name not in done], limits, processes=processes):
            _write(file, row)
            tell(row)


def _write(file: IO[str], row: Row) -> None:
    file.write(row.to_json() + "\n")
    file.flush()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; the last of each model. None when there is no file."""
    rows: dict[str, Row] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = read_row(line)
            rows[row.name] = row
    return list(rows.values())
