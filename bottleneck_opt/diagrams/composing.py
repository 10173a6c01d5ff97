"""Arrange the words of every box on its card, and the heading above them."""

from __future__ import annotations

from collections.abc import Iterable

from bottleneck_opt.diagrams.captions import Caption, before_and_after, caption_box, group_title
from bottleneck_opt.diagrams.cards import BAR_WIDTH, Bar, Block, Card, Cell, Figure, Form, Frame, Grid, Tag
from bottleneck_opt.diagrams.colors import LIGHT, Theme
from bottleneck_opt.diagrams.heading import Heading, write_heading
from bottleneck_opt.diagrams.heat import MACS, Measure
from bottleneck_opt.diagrams.layout import Box, Group, Layout
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.tags import shown_change


def compose(layout: Layout, heading: Heading, *, theme: Theme = LIGHT, measure: Measure = MACS) -> Figure:
    """The figure of a layout.

    Args:
        layout: Boxes, groups and lines.
        heading: What stands above them.
        theme: The colours.
        measure: What fill and bars say.
    """
    longest = max((max(before_and_after(box, measure)) for box in layout.boxes), default=0.0)
    scale = Scale(measure, measure.whole(layout.picture), longest)
    return Figure(
        write_heading(heading, layout, measure), tuple(_items(layout.items, scale, framed=False)), layout.lines, theme
    )


class Scale:
    """What turns a cost into a fill and a length.

    Attributes:
        measure: The kind of cost.
        whole: That of the original model.
        longest: That of the most expensive box, which has the longest bar.
    """

    def __init__(self, measure: Measure, whole: float, longest: float) -> None:
        self.measure, self.whole, self.longest = measure, whole, longest

    def points(self, value: float) -> int:
        """The length of a cost; what costs anything at all is seen."""
        return max(2, round(BAR_WIDTH * value / self.longest)) if value > 0 and self.longest else 0

    def share(self, value: float) -> float:
        """The cost as a share of the original model's."""
        return value / self.whole if self.whole else 0.0


def _items(items: Iterable[Box | Group], scale: Scale, *, framed: bool) -> Iterable[Card | Frame]:
    for item in items:
        if isinstance(item, Box):
            yield make_card(item, scale, framed=framed)
            continue
        inner = tuple(_items(item.items, scale, framed=framed or len(item.paths) > 1))
        yield Frame(group_title(item, scale.measure), _change_within(item), inner)


def _change_within(group: Group) -> Change:
    """What happened in it; where something is new, that."""
    found = {shown_change(box) for box in group.boxes()} - {Change.SAME}
    return Change.REMOVED if found == {Change.REMOVED} else Change.ADDED if found else Change.SAME


def make_card(box: Box, scale: Scale, *, framed: bool = False) -> Card:
    """The card of a box."""
    caption = caption_box(box, whole=scale.whole, framed=framed, measure=scale.measure)
    before, after = before_and_after(box, scale.measure)
    change = shown_change(box)
    left = after if Change.ADDED in box.changes else before
    struck = (box.region is None and change is Change.REMOVED) or bool(caption.becomes)
    blocks = [*_words(caption, struck=struck), *_bar(before, after, change, scale)]
    return Card(box.key, change, tuple(blocks), scale.share(left), _form(box), caption.tooltip)


def _form(box: Box) -> Form:
    if box.first.unit.head.kind in ("input", "output"):
        return "end"
    return "layer" if box.region is None else "region"


def _words(caption: Caption, *, struck: bool) -> Iterable[Block]:
    if caption.tag:
        yield Tag(caption.tag)
    yield _facts(caption, struck=struck) if caption.numbers else _short(caption)
    if caption.fit:
        yield Grid(((Cell(caption.fit),),))
    if caption.note:
        yield Grid(((Cell(caption.note, quiet=True, size=9),),))
    if caption.lines:
        yield Grid(tuple(_line(cells) for cells in caption.lines))
    if caption.rest:
        yield Grid(((Cell(caption.rest, quiet=True),),))


def _facts(caption: Caption, *, struck: bool) -> Grid:
    """Words on the left, numbers on the right."""
    left = [Cell(caption.title, bold=True, strike=struck, size=11)]
    left += [Cell(caption.becomes, bold=True, size=11)] if caption.becomes else []
    left += [Cell(caption.name), Cell(caption.shape, quiet=True)]
    share, *costs = caption.numbers
    right = [Cell(share, "right", bold=True, size=11), *(Cell(cost, "right") for cost in costs)]
    right[1:1] = [Cell("", "right")] * (len(left) - len(right))
    return Grid(tuple(zip(left, right, strict=True)))


def _short(caption: Caption) -> Grid:
    cells = [Cell(caption.title, "center", bold=True, size=11), Cell(caption.name, "center")]
    cells += [Cell(caption.shape, "center", quiet=True)]
    return Grid(tuple((cell,) for cell in cells if cell.text))


def _line(cells: tuple[str, ...]) -> tuple[Cell, ...]:
    *words, before_after, change = cells
    return (*map(Cell, words), Cell(before_after, "right"), Cell(change, "right", bold=True))


def _bar(before: float, after: float, change: Change, scale: Scale) -> Iterable[Block]:
    stays, saved = after, max(0.0, before - after)
    if stays or saved:
        yield Bar(scale.points(stays), scale.points(saved), change)
