"""The words of a card as one of Graphviz's HTML-like tables."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from bottleneck_opt.diagrams.cards import Bar, Block, Cell, Grid, Legend, Strip, Tag
from bottleneck_opt.diagrams.colors import Theme
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import ascii_text

FONT = "Arial"
BAR_HEIGHT = 6
_ROOM = "&#160;"  # keeps words off the border without a margin, which would keep the tag off it too
_OPEN = '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="{padding}">'
CHANGE_WORDS = {
    Change.SAME: "unchanged", Change.REMOVED: "- removed", Change.ADDED: "+ new", Change.REPLACED: "-/+ replaced",
}  # fmt: skip


def write_table(blocks: Iterable[Block], theme: Theme, *, change: Change, padding: int = 1) -> str:
    """A table with one row for each block."""
    rows = "".join(f"<TR>{_block(block, theme, change)}</TR>" for block in blocks)
    return f"{_OPEN.format(padding=padding)}{rows}</TABLE>"


def _block(block: Block, theme: Theme, change: Change) -> str:
    if isinstance(block, Tag):
        words = _font(f"{_ROOM}<B>{_text(block.text)}</B>{_ROOM}", theme.tag_ink, 10)
        return f'<TD BGCOLOR="{theme.border[change]}">{words}</TD>'
    if isinstance(block, Grid):
        return _grid(block, theme)
    if isinstance(block, Bar):
        return f'<TD ALIGN="LEFT">{_bar(block, theme)}</TD>'
    return f"<TD>{_strip(block, theme) if isinstance(block, Strip) else _legend(block, theme)}</TD>"


def _grid(grid: Grid, theme: Theme) -> str:
    if len(grid.rows) == 1 and len(grid.rows[0]) == 1:
        return _cell(grid.rows[0][0], theme)
    rows = "".join(f"<TR>{''.join(_cell(cell, theme) for cell in row)}</TR>" for row in grid.rows)
    return f"<TD>{_OPEN.format(padding=1)}{rows}</TABLE></TD>"


def _cell(cell: Cell, theme: Theme) -> str:
    if not cell.text:
        return "<TD></TD>"
    words = _text(cell.text)
    words = f"<S>{words}</S>" if cell.strike else words
    words = f"<B>{words}</B>" if cell.bold else words
    align = "" if cell.align == "center" else f' ALIGN="{cell.align.upper()}"'
    return f"<TD{align}>{_font(f'{_ROOM}{words}{_ROOM}', theme.quiet if cell.quiet else theme.ink, cell.size)}</TD>"


def _text(text: str) -> str:
    return escape(ascii_text(text))


def _font(words: str, color: str, size: int) -> str:
    return f'<FONT POINT-SIZE="{size}" COLOR="{color}">{words}</FONT>'


def _bar(bar: Bar, theme: Theme) -> str:
    """Two cells of fixed size in a table of fixed size; all others are stretched to the card."""
    color = theme.quiet if bar.change in (Change.SAME, Change.REMOVED) else theme.border[Change.ADDED]
    cells = [_filled(bar.stays, color)] if bar.stays else []
    cells += [_hollow(bar.saved, theme.border[Change.REMOVED])] if bar.saved else []
    size = f'FIXEDSIZE="TRUE" WIDTH="{bar.stays + bar.saved + 6}" HEIGHT="{BAR_HEIGHT + 4}"'
    table = f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" ALIGN="LEFT" {size}>'
    room = _filled(4, "")
    return f"{table}<TR>{room}{''.join(cells)}</TR></TABLE>"


def _filled(width: int, color: str) -> str:
    shown = f' BGCOLOR="{color}"' if color else ""
    return f'<TD FIXEDSIZE="TRUE" WIDTH="{width}" HEIGHT="{BAR_HEIGHT}"{shown}></TD>'


def _hollow(width: int, color: str) -> str:
    return f'<TD FIXEDSIZE="TRUE" WIDTH="{width}" HEIGHT="{BAR_HEIGHT}" BORDER="1" STYLE="dashed" COLOR="{color}"></TD>'


def _strip(strip: Strip, theme: Theme) -> str:
    cells = "".join(
        f'<TD FIXEDSIZE="TRUE" WIDTH="7" HEIGHT="{18 if here else 10}" BORDER="{2 if here else 1}" '
        f'COLOR="{theme.border[Change.ADDED if here else Change.SAME]}" BGCOLOR="{theme.fill(share)}"></TD>'
        for share, here in strip.cells
    )
    words = f"<TD>{_small('place in the model: ', theme)}</TD>"
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="1" CELLPADDING="0"><TR>{words}{cells}</TR></TABLE>'


def _legend(legend: Legend, theme: Theme) -> str:
    lines = [_samples(legend, theme)] if legend.changes else []
    lines.append(_scale(legend, theme))
    rows = "".join(f"<TR><TD>{line}</TD></TR>" for line in lines)
    return f"{_OPEN.format(padding=0)}{rows}</TABLE>"


def _samples(legend: Legend, theme: Theme) -> str:
    """A small box for each kind of border, then the two kinds of bar."""
    styles = {Change.SAME: 'BORDER="1" STYLE="rounded"', Change.REMOVED: 'BORDER="2" STYLE="dashed"',
              Change.ADDED: 'BORDER="3"', Change.REPLACED: 'BORDER="2"'}  # fmt: skip
    cells = "".join(
        f'<TD {styles[change]} COLOR="{theme.border[change]}">{_sample(change, theme)}</TD>'
        for change in legend.changes
    )
    stays = _font("cost that stays", theme.tag_ink, 9)
    bars = f'<TD BGCOLOR="{theme.border[Change.ADDED]}">{stays}</TD>'
    hollow = f'BORDER="1" STYLE="dashed" COLOR="{theme.border[Change.REMOVED]}"'
    bars += f"<TD {hollow}>{_small('cost that went', theme)}</TD>"
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="4" CELLPADDING="2"><TR>{cells}{bars}</TR></TABLE>'


def _sample(change: Change, theme: Theme) -> str:
    words = _small(CHANGE_WORDS[change], theme)
    if change is not Change.REPLACED:
        return words
    double = f'BORDER="2" COLOR="{theme.border[change]}" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2"'
    return f"<TABLE {double}><TR><TD>{words}</TD></TR></TABLE>"


def _scale(legend: Legend, theme: Theme) -> str:
    words = f"<TD>{_small(f'fill and bar: share of the {legend.heat} of the whole model, in %', theme)}</TD>"
    border = f'BORDER="1" COLOR="{theme.border[Change.SAME]}"'
    cells = "".join(
        f'<TD {border} BGCOLOR="{color}">{_small(f"{100 * bound:g}+", theme)}</TD>' for bound, color in theme.heat
    )
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="2"><TR>{words}{cells}</TR></TABLE>'


def _small(words: str, theme: Theme) -> str:
    return _font(_text(words), theme.ink, 9)
