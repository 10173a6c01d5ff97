"""A figure as SVG without Graphviz: the same cards and colours, in a plain layered layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from bottleneck_opt.diagrams.cards import Card, Figure, Frame
from bottleneck_opt.diagrams.colors import Theme
from bottleneck_opt.diagrams.layered import Pair, Placed, Point, place
from bottleneck_opt.diagrams.layout import Line
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.plain_blocks import FONT, draw_blocks, measure_blocks, write_text

_PAD, _FRAME_PAD, _FRAME_TITLE, _AROUND = 5.0, 10.0, 16.0, 16.0
_STYLE: Mapping[Change, tuple[float, str]] = {
    Change.SAME: (1, ""), Change.REMOVED: (2, ' stroke-dasharray="5,3"'), Change.ADDED: (3, ""),
    Change.REPLACED: (2, ""),
}  # fmt: skip
_LINE_STYLE: Mapping[Change, tuple[float, str]] = {
    Change.SAME: (1, ""), Change.REMOVED: (1.5, ' stroke-dasharray="5,3"'), Change.ADDED: (2.2, ""),
    Change.REPLACED: (1, ""),
}  # fmt: skip


@dataclass(frozen=True)
class _Spot:
    """A card or a frame at its place on the paper."""

    item: Card | Frame
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class _Sheet:
    """A list of items laid out, with everything inside them; places are relative to its corner."""

    spots: tuple[_Spot, ...]
    bends: Mapping[Pair, Sequence[Point]]
    width: float
    height: float


def write_plain(figure: Figure) -> str:
    """The figure as SVG text: ``g.node`` and ``g.edge`` with a title each, as Graphviz writes them."""
    sheet = _lay_out(figure.items, figure.lines)
    head_width, head_height = measure_blocks(figure.heading)
    width = max(head_width, sheet.width) + 2 * _AROUND
    height = head_height + sheet.height + 3 * _AROUND
    left, top = (width - sheet.width) / 2, head_height + 2 * _AROUND
    sheet = _move(sheet, left, top)
    theme = figure.theme
    heading = draw_blocks(figure.heading, theme, Change.SAME, (width - head_width) / 2, _AROUND, head_width)
    body = [*_edges(figure, sheet, theme), *(_spot(spot, theme) for spot in sheet.spots)]
    return "\n".join([
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>',
        f'<svg width="{width:.0f}pt" height="{height:.0f}pt" viewBox="0 0 {width:.2f} {height:.2f}" '
        'xmlns="http://www.w3.org/2000/svg">',
        f'<g id="graph0" class="graph" font-family="{FONT}">',
        f'<rect fill="{theme.background}" width="{width:.2f}" height="{height:.2f}"/>',
        heading, *_arrows(theme), *body, "</g>", "</svg>", "",
    ])  # fmt: skip


def _keys(item: Card | Frame) -> Iterable[str]:
    if isinstance(item, Card):
        yield item.key
        return
    for inner in item.items:
        yield from _keys(inner)


def _lay_out(items: Sequence[Card | Frame], lines: Sequence[Line]) -> _Sheet:
    """Items in layers; a frame is laid out by itself first."""
    owner = {key: str(index) for index, item in enumerate(items) for key in _keys(item)}
    inner = {str(index): _inside(item, lines) for index, item in enumerate(items)}
    edges = [
        (owner[line.source], owner[line.target]) for line in lines if line.source in owner and line.target in owner
    ]
    placed = place({key: size for key, (size, _) in inner.items()}, [pair for pair in edges if pair[0] != pair[1]])
    spots, bends = list[_Spot](), dict[Pair, Sequence[Point]]()
    for index, item in enumerate(items):
        size, sheet = inner[str(index)]
        x, y = placed.corners[str(index)]
        spots.append(_Spot(item, x, y, *size))
        if sheet is not None:
            moved = _move(sheet, x + _FRAME_PAD, y + _FRAME_PAD + _FRAME_TITLE)
            spots += moved.spots
            bends |= moved.bends
    bends |= _bends_of_lines(placed, lines, owner)
    return _Sheet(tuple(spots), bends, placed.width, placed.height)


def _bends_of_lines(placed: Placed, lines: Sequence[Line], owner: Mapping[str, str]) -> dict[Pair, Sequence[Point]]:
    pairs = {(line.source, line.target): (owner.get(line.source), owner.get(line.target)) for line in lines}
    return {pair: placed.bends[own] for pair, own in pairs.items() if own in placed.bends}


def _inside(item: Card | Frame, lines: Sequence[Line]) -> tuple[Point, _Sheet | None]:
    if isinstance(item, Card):
        width, height = measure_blocks(item.blocks)
        return (width + 2 * _PAD, height + 2 * _PAD), None
    own = set(_keys(item))
    sheet = _lay_out(item.items, [line for line in lines if line.source in own and line.target in own])
    title = len(item.title) * 7.0
    return (max(sheet.width, title) + 2 * _FRAME_PAD, sheet.height + 2 * _FRAME_PAD + _FRAME_TITLE), sheet


def _move(sheet: _Sheet, x: float, y: float) -> _Sheet:
    spots = tuple(replace(spot, x=spot.x + x, y=spot.y + y) for spot in sheet.spots)
    bends = {pair: [(px + x, py + y) for px, py in points] for pair, points in sheet.bends.items()}
    return replace(sheet, spots=spots, bends=bends)


def _spot(spot: _Spot, theme: Theme) -> str:
    return _card(spot.item, spot, theme) if isinstance(spot.item, Card) else _frame(spot.item, spot, theme)


def _card(card: Card, spot: _Spot, theme: Theme) -> str:
    width, dashes = _STYLE[card.change]
    stroke = f'stroke="{theme.border[card.change]}" stroke-width="{width:g}"'
    outline = _rectangle(spot, f'fill="{theme.fill(card.share)}" {stroke}{dashes}', round_=_rounding(card, spot))
    if card.change is Change.REPLACED:  # a double border: one stands for two
        outline = _rectangle(_grown(spot), f'fill="none" {stroke}') + outline
    words = draw_blocks(card.blocks, theme, card.change, spot.x + _PAD, spot.y + _PAD, spot.width - 2 * _PAD)
    title, more = escape(card.key), escape(card.tooltip)
    return f'<g class="node {card.change.value}"><title>{title}</title><desc>{more}</desc>\n{outline}\n{words}\n</g>'


def _rounding(card: Card, spot: _Spot) -> float:
    if card.form == "end":
        return spot.height / 2
    return 8 if card.change is Change.SAME else 0


def _grown(spot: _Spot) -> _Spot:
    return replace(spot, x=spot.x - 4, y=spot.y - 4, width=spot.width + 8, height=spot.height + 8)


def _rectangle(spot: _Spot, style: str, *, round_: float = 0) -> str:
    place_ = f'x="{spot.x:.2f}" y="{spot.y:.2f}" width="{spot.width:.2f}" height="{spot.height:.2f}"'
    return f'<rect {place_} rx="{round_:.2f}" {style}/>'


def _frame(frame: Frame, spot: _Spot, theme: Theme) -> str:
    changed = frame.change is not Change.SAME
    color = theme.border[frame.change] if changed else theme.frame
    outline = _rectangle(spot, f'fill="none" stroke="{color}" stroke-width="{1.5 if changed else 1}"', round_=8)
    title = write_text(frame.title, spot.x + _FRAME_PAD, spot.y + _FRAME_TITLE, theme.ink, 11, bold=True)
    return f'<g class="cluster frame"><title>{escape(frame.title)}</title>\n{outline}\n{title}\n</g>'


def _arrows(theme: Theme) -> Iterable[str]:
    for change, color in theme.line.items():
        yield (
            f'<marker id="arrow-{change.value}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{color}"/></marker>'
        )


def _edges(figure: Figure, sheet: _Sheet, theme: Theme) -> Iterable[str]:
    spots = {spot.item.key: spot for spot in sheet.spots if isinstance(spot.item, Card)}
    for line in figure.lines:
        start, end = spots[line.source], spots[line.target]
        points = [
            (start.x + start.width / 2, start.y + start.height),
            *sheet.bends.get((line.source, line.target), ()),
            (end.x + end.width / 2, end.y),
        ]
        width, dashes = _LINE_STYLE[line.change]
        path = "M" + " L".join(f"{x:.2f},{y:.2f}" for x, y in points)
        title = escape(f"{line.source}->{line.target}")
        yield (
            f'<g class="edge {line.change.value}"><title>{title}</title><path fill="none" d="{path}" '
            f'stroke="{theme.line[line.change]}" stroke-width="{width:g}"{dashes} '
            f'marker-end="url(#arrow-{line.change.value})"/></g>'
        )
