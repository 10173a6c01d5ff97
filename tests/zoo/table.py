"""The rows as Markdown: one line a family, then what went wrong."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from tests.zoo.row import Row

_HEAD = (
    "| family | models | traced | costed | drawn | replay exact | replay marked with reason "
    "| dense k>1 MACs rewritable | full-rank worst error | silent mismatches |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def make_table(rows: Sequence[Row]) -> str:
    """The summary by family, with a line for all."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    lines = [_line(family, members) for family, members in families.items()]
    return "\n".join([_HEAD, *lines, _line("**all**", rows)])


def _line(family: str, rows: Sequence[Row]) -> str:
    dense, rewritten = (sum(getattr(row, name) for row in rows) for name in ("dense_macs", "rewritten_dense_macs"))
    errors = [row.error for row in rows if row.error is not None and row.compared]
    cells = [
        family, len(rows), sum(row.traced for row in rows), sum(row.costed for row in rows),
        sum(row.drawn for row in rows), sum(row.replay_exact is True for row in rows),
        sum(row.replay_exact is False and bool(row.replay_reason) for row in rows),
        f"{rewritten / dense:.0%}" if dense else "-", f"{max(errors):.0e}" if errors else "-",
        sum(row.mismatched for row in rows),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def make_details(rows: Sequence[Row]) -> str:
    """Every failure, every mismatch, every model that tells nothing, and why dense MACs were left alone."""
    parts = [
        _section("Failures", [f"{row.name}: {stage}: {text}" for row in rows for stage, text in row.failures.items()]),
        _section("Silent mismatches", [f"{r.name}: error {r.error:.1e} ({r.dtype})" for r in rows if r.mismatched]),
        _section("MACs differ from torch's", [_gap(row) for row in rows if row.traced and not row.costed]),
        _section("Replay not exact", [f"{r.name}: {r.replay_reason}" for r in rows if r.replay_exact is False]),
        _section("Output the same for two inputs", [row.name for row in rows if row.vacuous]),
        _section("A wrong factor goes unseen", [f"{r.name}: {r.control:.1e}" for r in rows if r.insensitive]),
        _section("Left alone, share of its model's MACs added up over models", _reasons(rows)),
    ]
    return "\n\n".join(part for part in parts if part)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"### {title}: {len(lines)}", *(f"- {line}" for line in lines)]) if lines else ""


def _gap(row: Row) -> str:
    return f"{row.name}: {row.macs} here, {row.torch_macs} by torch {row.failures.get('count', '')}".rstrip()


def _reasons(rows: Sequence[Row]) -> list[str]:
    shares: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        for reason, macs in row.skipped_macs.items():
            plain = re.sub(r"\b\d[\d,]*\b", "N", reason)
            shares[plain] += macs / row.macs if row.macs else 0.0  # type: ignore[assignment]  # a Counter adds floats too
            models[plain] += 1
    return [f"{share:.1f} in {models[reason]} models: {reason}" for reason, share in shares.most_common()]


def describe(row: Row) -> str:
    """One short line for a log."""
    said = [f"{row.seconds:5.1f} s {row.peak_mib:6d} MiB  {row.name}"]
    if row.error is not None:
        said.append(f"error {row.error:.0e} control {row.control or 0.0:.0e} ({row.dtype})")
    marks = {"MISMATCH": row.mismatched, "vacuous": row.vacuous, "insensitive": row.insensitive}
    said += [mark for mark, holds in marks.items() if holds]
    if row.traced and not row.costed:
        said.append(f"COUNT {row.macs} vs {row.torch_macs}")
    return "  ".join(said + [f"FAILED {stage}: {text}" for stage, text in row.failures.items()])
