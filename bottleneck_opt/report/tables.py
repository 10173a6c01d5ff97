"""Plain-text tables of a fixed greatest width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bottleneck_opt.diagrams.wording import ascii_text, elide_middle

WIDTH = 110
_GAP = "  "
_TIED = "\xa0"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> list[str]:
    """Lines of a table; the first column gives way when the whole would be wider than 110 columns.

    Args:
        header: Column names.
        rows: Cells.
        right: One letter a column, ``r`` to align it to the right.

    Example:
        >>> format_table(["path", "MACs"], [["conv1", "1 k"], ["fc", "20"]], right="lr")
        ['path   MACs', 'conv1   1 k', 'fc       20']
    """
    cells = [[ascii_text(cell) for cell in row] for row in (header, *rows)]
    others = sum(max(map(len, column)) for column in list(zip(*cells, strict=True))[1:])
    first = max(12, WIDTH - others - len(_GAP) * (len(header) - 1))
    cells = [[elide_middle(row[0], first), *row[1:]] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [_line(row, widths, right.ljust(len(header))) for row in cells]


def wrap_last_column(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows with further ones below those whose last cell would make the table wider than 110 columns.

    Example:
        >>> wrap_last_column([["params", "30", "so " * 33 + "long"]])[1]
        ['', '', 'long']
    """
    cells = [[ascii_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    room = max(20, WIDTH - sum(widths) - len(_GAP) * len(widths))
    wrapped: list[list[str]] = []
    for row in cells:
        first, *others = _wrap(row[-1], room) or [""]
        wrapped += [[*row[:-1], first], *([*[""] * len(widths), other] for other in others)]
    return wrapped


def wrap_text(text: str, *, first: str = "", rest: str = "") -> list[str]:
    """A text in lines of at most 110 columns, with what stands before the first line and before the others.

    A percent sign stays with its number.

    Example:
        >>> wrap_text("one two", first="- ", rest="  ")
        ['- one two']
    """
    return _wrap(ascii_text(text), WIDTH, first=first, rest=rest) or [first.rstrip()]


def _wrap(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    kept = text.replace(" %", f"{_TIED}%")
    lines = textwrap.wrap(kept, width, initial_indent=first, subsequent_indent=rest)
    return [line.replace(_TIED, " ") for line in lines]


def _line(row: Sequence[str], widths: Sequence[int], right: str) -> str:
    aligned = (
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(row, widths, right, strict=False)
    )
    return _GAP.join(aligned).rstrip()
