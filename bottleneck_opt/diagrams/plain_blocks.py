"""The words of a card as SVG text at places that are computed here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bottleneck_opt.diagrams.cards import Bar, Block, Cell, Grid, Legend, Strip, Tag
from bottleneck_opt.diagrams.colors import Theme
from bottleneck_opt.diagrams.dot_labels import BAR_HEIGHT, CHANGE_WORDS
from bottleneck_opt.diagrams.metrics import text_width
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import ascii_text

FONT = "Arial"
_LEADING, _COLUMN_GAP, _TAG_HEIGHT, _LEGEND_HEIGHT, _CELL = 4, 10.0, 15.0, 18.0, 12.0
_KEY_WIDTH = 84.0
Size = tuple[float, float]


def measure_blocks(blocks: Sequence[Block]) -> Size:
    """Width and height of blocks below each other."""
    sizes = [_measure(block) for block in blocks]
    return max((width for width, _ in sizes), default=0.0), sum(height for _, height in sizes)


def draw_blocks(
    blocks: Sequence[Block], theme: Theme, change: Change, x: float, y: float, width: float
) -> str:  # fmt: skip
    """Blocks below each other from a corner on, in a column of a width."""
    drawn = []
    for block in blocks:
        drawn.append(_draw(block, theme, change, x, y, width))
        y += _measure(block)[1]
    return "\n".join(drawn)


def write_text(text: str, x: float, y: float, color: str, size: int, *, bold: bool = False, more: str = "") -> str:
    """A line of text whose baseline starts at a point."""
    weight = ' font-weight="bold"' if bold else ""
    style = f'font-size="{size}" fill="{color}"{weight}{more}'
    return f'<text x="{x:.2f}" y="{y:.2f}" {style}>{escape(ascii_text(text))}</text>'


def _measure(block: Block) -> Size:
    if isinstance(block, Tag):
        return text_width(ascii_text(block.text), 10, bold=True) + 8, _TAG_HEIGHT
    if isinstance(block, Grid):
        return sum(_columns(block)) + _COLUMN_GAP * (len(block.rows[0]) - 1), sum(map(_row_height, block.rows))
    if isinstance(block, Bar):
        return float(block.stays + block.saved), BAR_HEIGHT + 4.0
    if isinstance(block, Strip):
        return _KEY_WIDTH + _CELL * len(block.cells), 22.0
    return _KEY_WIDTH * max(len(block.changes) + 2, 6), _LEGEND_HEIGHT * (2 if block.changes else 1)


def _columns(grid: Grid) -> list[float]:
    return [max(map(_cell_width, column)) for column in zip(*grid.rows, strict=True)]


def _cell_width(cell: Cell) -> float:
    return text_width(ascii_text(cell.text), cell.size, bold=cell.bold)


def _row_height(row: Sequence[Cell]) -> float:
    return max(cell.size for cell in row) + float(_LEADING)


def _draw(block: Block, theme: Theme, change: Change, x: float, y: float, width: float) -> str:
    if isinstance(block, Tag):
        words = write_text(block.text, x + width / 2, y + 11, theme.tag_ink, 10, bold=True, more=_MIDDLE)
        return _box(x, y, width, _TAG_HEIGHT - 1, f'fill="{theme.border[change]}"') + words
    if isinstance(block, Grid):
        return _draw_grid(block, theme, x, y, width)
    if isinstance(block, Bar):
        return _draw_bar(block, theme, x, y + 2)
    if isinstance(block, Strip):
        return _draw_strip(block, theme, x + (width - _measure(block)[0]) / 2, y)
    return _draw_legend(block, theme, x, y)


_MIDDLE, _END = ' text-anchor="middle"', ' text-anchor="end"'


def _draw_grid(grid: Grid, theme: Theme, x: float, y: float, width: float) -> str:
    columns = _columns(grid)
    spare = max(0.0, width - sum(columns) - _COLUMN_GAP * (len(columns) - 1))
    drawn = []
    for row in grid.rows:
        y += _row_height(row)
        left = x
        for index, (cell, column) in enumerate(zip(row, columns, strict=True)):
            room = column + (spare if index == len(columns) - 1 else 0.0)
            drawn.append(_draw_cell(cell, theme, left, y - _LEADING, room))
            left += room + _COLUMN_GAP
    return "\n".join(filter(None, drawn))


def _draw_cell(cell: Cell, theme: Theme, x: float, y: float, room: float) -> str:
    if not cell.text:
        return ""
    at, anchor = {"left": (x, ""), "center": (x + room / 2, _MIDDLE), "right": (x + room, _END)}[cell.align]
    strike = ' text-decoration="line-through"' if cell.strike else ""
    color = theme.quiet if cell.quiet else theme.ink
    return write_text(cell.text, at, y, color, cell.size, bold=cell.bold, more=anchor + strike)


def _box(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" {style}/>'


def _draw_bar(bar: Bar, theme: Theme, x: float, y: float) -> str:
    color = theme.quiet if bar.change in (Change.SAME, Change.REMOVED) else theme.border[Change.ADDED]
    stays = _box(x, y, bar.stays, BAR_HEIGHT, f'fill="{color}"') if bar.stays else ""
    saved = _box(x + bar.stays, y, bar.saved, BAR_HEIGHT, _hollow(theme)) if bar.saved else ""
    return stays + saved


def _hollow(theme: Theme) -> str:
    return f'fill="none" stroke="{theme.border[Change.REMOVED]}" stroke-dasharray="4,2"'


def _draw_strip(strip: Strip, theme: Theme, x: float, y: float) -> str:
    drawn = [write_text("place in the model:", x, y + 14, theme.ink, 9)]
    x += _KEY_WIDTH
    for index, (share, here) in enumerate(strip.cells):
        color = theme.border[Change.ADDED if here else Change.SAME]
        style = f'fill="{theme.fill(share)}" stroke="{color}" stroke-width="{2 if here else 1}"'
        drawn.append(_box(x + index * _CELL, y + (2 if here else 6), 8, 18 if here else 10, style))
    return "\n".join(drawn)


def _draw_legend(legend: Legend, theme: Theme, x: float, y: float) -> str:
    drawn = []
    if legend.changes:
        for index, change in enumerate(legend.changes):
            dashes = ' stroke-dasharray="5,3"' if change is Change.REMOVED else ""
            thick = 1 if change is Change.SAME else 3 if change is Change.ADDED else 2
            style = f'fill="none" stroke="{theme.border[change]}" stroke-width="{thick}"{dashes}'
            drawn.append(_key(x + index * _KEY_WIDTH, y, style, CHANGE_WORDS[change], theme.ink))
        after = x + len(legend.changes) * _KEY_WIDTH
        drawn.append(_key(after, y, f'fill="{theme.border[Change.ADDED]}"', "cost that stays", theme.tag_ink))
        drawn.append(_key(after + _KEY_WIDTH, y, _hollow(theme), "cost that went", theme.ink))
        y += _LEGEND_HEIGHT
    drawn.append(write_text(f"fill, bar: % of all {legend.heat}", x, y + 11, theme.ink, 9))
    for index, (bound, color) in enumerate(theme.heat):
        left = x + 2.6 * _KEY_WIDTH + index * 34
        drawn.append(_box(left, y, 30, 14, f'fill="{color}" stroke="{theme.border[Change.SAME]}"'))
        drawn.append(write_text(f"{100 * bound:g}+", left + 15, y + 11, theme.ink, 9, more=_MIDDLE))
    return "\n".join(drawn)


def _key(x: float, y: float, style: str, words: str, color: str) -> str:
    return _box(x, y, _KEY_WIDTH - 6, 14, style) + write_text(
        words, x + _KEY_WIDTH / 2 - 3, y + 11, color, 9, more=_MIDDLE
    )
