"""Measured rows in a file of lines, each written whole, so that a run goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bottleneck_opt.files import write_whole


@dataclass(frozen=True)
class Key:
    """What is measured; ``training`` and ``draw`` are seeds, ``budget`` a share of the MACs."""

    network: str
    training: int
    draw: int
    method: str
    budget: float


@dataclass(frozen=True)
class Row:
    """One compressed network, measured on the test data.

    Attributes:
        macs, params: Shares of the original's.
        before, after: The metric, in points of accuracy or decibels.
        change: Mean KL to the original, or squared change of its output relative to the variance.
        seconds: What compressing took, of one thread's time.
        failure: Why there is nothing to measure; empty where there is.
    """

    key: Key
    macs: float = float("nan")
    params: float = float("nan")
    before: float = float("nan")
    after: float = float("nan")
    change: float = float("nan")
    seconds: float = float("nan")
    failure: str = ""

    @property
    def gain(self) -> float:
        """Change of the metric, negative where it fell."""
        return self.after - self.before

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def read_line(line: str) -> Row:
    """The row of a line by :meth:`Row.to_line`."""
    values = json.loads(line)
    return Row(**{**values, "key": Key(**values["key"])})


def append_row(path: Path, row: Row) -> None:
    """Add a line in one write, so that several processes may add to one file.

    It starts on a new line, whatever an earlier run left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"\n{row.to_line()}".encode())
    finally:
        os.close(descriptor)


def read_rows(path: Path) -> dict[Key, Row]:
    """The rows of a file, the last of each key; a line that was cut off is none."""
    if not path.is_file():
        return {}
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = read_line(line)
            rows[row.key] = row
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows in an order that does not depend on when they were measured."""
    lines = sorted(row.to_line() for row in rows)
    write_whole(path, "".join(lines).encode())


def matches(key: Key, only: Sequence[tuple[str, frozenset[str]]]) -> bool:
    """Whether each named field of a key is one of the values given for it."""
    return all(str(getattr(key, name)) in values for name, values in only)


def read_filter(text: str) -> list[tuple[str, frozenset[str]]]:
    """``network=dncnn,method=ours|svd`` as fields with their values.

    Raises:
        ValueError: It names something that a key does not have.

    Example:
        >>> read_filter("network=vgg,budget=0.5")
        [('network', frozenset({'vgg'})), ('budget', frozenset({'0.5'}))]
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    known = {field.name for field in fields(Key)}
    wrong = [name for name, _, values in pairs if name not in known or not values]
    if wrong:
        raise ValueError(f"--only: got {wrong}; expected name=value|value with a name among {sorted(known)}")
    return [(name, frozenset(values.split("|"))) for name, _, values in pairs]
