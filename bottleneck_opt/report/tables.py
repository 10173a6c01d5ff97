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


def wrap_text(text: str, *, first: str = "", rest: str = "") -> list[str]:
    """A text in lines of at most 110 columns, with what stands before the first line and before the others.

    A percent sign stays with its number.

    Example:
        >>> wrap_text("one two", first="- ", rest="  ")
        ['- one two']
    """
    kept = ascii_text(text).replace(" %", f"{_TIED}%")
    lines = textwrap.wrap(kept, WIDTH, initial_indent=first, subsequent_indent=rest)
    return [line.replace(_TIED, " ") for line in lines] or [first.rstrip()]


def _line(row: Sequence[str], widths: Sequence[int], right: str) -> str:
    aligned = (
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(row, widths, right, strict=False)
    )
    return _GAP.join(aligned).rstrip()
