"""Rows as tables for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.accuracy.rows import Row


@dataclass(frozen=True)
class Cell:
    """The rows of one method at one budget.

    Attributes:
        gain: Mean change of the metric.
        error: Its standard error over trainings; NaN of one row.
        change: Mean KL or squared change of the output.
        macs: Mean share of the original's MACs.
        count: Rows in the means.
        failures: Why the others have none.
    """

    gain: float
    error: float
    change: float
    macs: float
    count: int
    failures: tuple[str, ...]

    def __str__(self) -> str:
        if not self.count:
            return "cannot" if self.failures else ""
        error = "" if math.isnan(self.error) else f" ± {self.error:.2f}"
        missing = f", {len(self.failures)} cannot" if self.failures else ""
        return f"{self.gain:+.2f}{error} ({self.change:.2g}{missing})"


def summarise(rows: Iterable[Row]) -> Cell:
    """The means over trainings, each the mean over its draws, with their standard error.

    Draws of one training share its network and its test data: a digit that the network only just gets right falls for
    all of them or for none, so they are not counted as independent. Of one training alone, its draws are.
    """
    measured, failures = [], []
    for row in rows:
        if row.failure:
            failures.append(row.failure)
        else:
            measured.append(row)
    if not measured:
        nothing = float("nan")
        return Cell(nothing, nothing, nothing, nothing, 0, tuple(failures))
    gains = [row.gain for row in measured]
    trainings = [
        statistics.mean(row.gain for row in measured if row.key.training == training)
        for training in sorted({row.key.training for row in measured})
    ]
    independent = trainings if len(trainings) > 1 else gains
    error = statistics.stdev(independent) / len(independent) ** 0.5 if len(independent) > 1 else float("nan")
    return Cell(
        statistics.mean(independent), error, statistics.mean(row.change for row in measured),
        statistics.mean(row.macs for row in measured), len(measured), tuple(failures),
    )  # fmt: skip


def render(rows: Sequence[Row], *, title: str, methods: Sequence[str], budgets: Sequence[float]) -> list[str]:
    """One table: methods down, budgets across; methods without rows are left out."""
    lines = [
        f"| {title} | " + " | ".join(f"{budget:g}" for budget in budgets) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for method in methods:
        mine = [row for row in rows if row.key.method == method]
        cells = [str(summarise(row for row in mine if row.key.budget == budget)) for budget in budgets]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def describe_original(rows: Sequence[Row], unit: str) -> str:
    """The original's metric, over trainings."""
    trainings = {row.key.training: row.before for row in rows if not row.failure}
    if not trainings:
        return "nothing measured"
    draws = len({(row.key.training, row.key.draw) for row in rows})
    return (
        f"original {statistics.mean(trainings.values()):.2f} {unit}, {len(trainings)} trainings, {draws} draws in all"
    )


def describe_macs(rows: Sequence[Row], budgets: Sequence[float]) -> str:
    """The methods that use the least and the most of each budget: all should use it up."""
    parts = []
    for budget in budgets:
        shares = {row.key.method: row.macs for row in rows if row.key.budget == budget and not row.failure}
        if shares:
            least, most = (choose(shares, key=lambda name: shares[name]) for choose in (min, max))
            parts.append(f"{budget:g}: {shares[least]:.3f} ({least}) to {shares[most]:.3f} ({most})")
    return "MACs used of " + "; ".join(parts)
