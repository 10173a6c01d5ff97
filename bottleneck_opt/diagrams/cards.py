"""A figure before anything knows how it is rendered: cards with words, frames around them, lines between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from bottleneck_opt.diagrams.colors import Theme
from bottleneck_opt.diagrams.layout import Line
from bottleneck_opt.diagrams.picture import Change

Align = Literal["left", "center", "right"]
Form = Literal["layer", "region", "end"]
BAR_WIDTH = 190  # points, of the most expensive box


@dataclass(frozen=True)
class Cell:
    """A piece of text in one style."""

    text: str
    align: Align = "left"
    bold: bool = False
    quiet: bool = False
    strike: bool = False
    size: int = 10


@dataclass(frozen=True)
class Grid:
    """Rows of cells whose columns line up; all rows have the same number of cells."""

    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Tag:
    """Words on a strip in the colour of the border."""

    text: str


@dataclass(frozen=True)
class Bar:
    """A cost as a length: what stays, then what is saved.

    Attributes:
        stays, saved: Points.
        change: What happened to the box; what was removed stays as an empty dashed bar.
    """

    stays: int
    saved: int
    change: Change


@dataclass(frozen=True)
class Strip:
    """Where a change is in the model: one cell a layer, in the order they run.

    Attributes:
        cells: Share of the cost, and whether it is the one.
    """

    cells: tuple[tuple[float, bool], ...]


@dataclass(frozen=True)
class Legend:
    """What borders, fills and bars mean.

    Attributes:
        changes: The kinds of change in the figure.
        heat: What fill and bar measure.
    """

    changes: tuple[Change, ...]
    heat: str


Block = Tag | Grid | Bar | Strip | Legend


@dataclass(frozen=True)
class Card:
    """A box with its words.

    Attributes:
        key: Unique in the figure.
        change: What happened to it.
        blocks: What it says, from top to bottom.
        share: Share of the original cost, for the fill.
        form: A layer, a region folded into one box, or an end of the model.
        tooltip: Everything in full.
    """

    key: str
    change: Change
    blocks: tuple[Block, ...]
    share: float
    form: Form
    tooltip: str


@dataclass(frozen=True)
class Frame:
    """A frame around cards.

    Attributes:
        title: What it says at its top left.
        change: Whether something in it changed, and what.
        items: What it holds.
    """

    title: str
    change: Change
    items: tuple[Card | Frame, ...]


@dataclass(frozen=True)
class Figure:
    """Everything on the paper.

    Attributes:
        heading: What stands above it.
        items: Cards and frames in order.
        lines: Edges between cards.
        theme: The colours.
        ordered: What a card's lines lead to stands from left to right in the order of the lines.
    """

    heading: tuple[Block, ...]
    items: tuple[Card | Frame, ...]
    lines: tuple[Line, ...]
    theme: Theme
    ordered: bool = False

    @property
    def cards(self) -> tuple[Card, ...]:
        """Every card, in order."""
        return tuple(all_cards(self.items))


def all_cards(items: Iterable[Card | Frame]) -> Iterator[Card]:
    """Every card in a list of cards and frames, in order."""
    for item in items:
        if isinstance(item, Card):
            yield item
        else:
            yield from all_cards(item.items)


def centered(text: str, *, size: int = 10, bold: bool = False, quiet: bool = False) -> Grid:
    """A row with one text in its middle."""
    return Grid(((Cell(text, "center", bold=bold, quiet=quiet, size=size),),))
