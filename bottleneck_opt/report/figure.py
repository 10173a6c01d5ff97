"""The diff picture made ready for the page: one drawing that can show the model before, after, or both.

It takes any SVG in which each box is ``<g class="node CHANGE"><title>KEY</title>`` and each line ``<g class="edge
CHANGE">``. What is only in one model is hidden by its class. A box that holds both gets two more captions, one for each
model, so that nothing moves from one view to the next.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass

from markupsafe import Markup

from bottleneck_opt.diagrams.layout import Box, Layout
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.report.halves import Half, split_box
from bottleneck_opt.report.palette import BORDER, INK, heat_color

SVG = "http://www.w3.org/2000/svg"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_PAD = 8.0
_LINE = 13.0
MOST_COPIES = 3000  # of a box, in all parts for paper together
_LETTER, _BOLD_LETTER = 5.2, 5.7  # width of a letter at 10 points
PAPER = (538.0, 740.0)  # points that A4 leaves inside its margins
WIDE = (785.0, 505.0)  # the same turned round, for a drawing that would get too small to read
READABLE = 0.7  # of the natural size
STRIP = 190.0  # of them for what stands above the first part
_SHAPE_TAGS = [f"{{{SVG}}}{name}" for name in ("polygon", "path", "ellipse", "rect", "polyline", "circle")]
_SHEET = Markup('<svg class="sheet" viewBox="0 {} {} {}" width="{}pt" height="{}pt"><use href="#figure"/></svg>')
_PLACES = ("points", "d", "x", "y", "cx", "cy", "rx", "ry")
Span = tuple[float, float]


@dataclass(frozen=True)
class Area:
    """A rectangle in the drawing's own coordinates."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top

    def __or__(self, other: Area) -> Area:
        return Area(
            min(self.left, other.left), min(self.top, other.top),
            max(self.right, other.right), max(self.bottom, other.bottom),
        )  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """The drawing for the page.

    Attributes:
        svg: The drawing.
        sheets: The same in parts that fit on paper, top to bottom; they refer to ``svg``. Empty for a very long one: a
            browser copies all boxes for each part.
        wide: The parts are for paper turned round.
    """

    svg: Markup
    sheets: tuple[Markup, ...]
    wide: bool = False


def make_figure(svg: str, layout: Layout) -> Figure:
    """The picture of an outcome for the page.

    Args:
        svg: From :func:`bottleneck_opt.diagrams.render_svg`.
        layout: What it shows.
    """
    root = ET.fromstring(svg)
    graph = next((child for child in root if child.tag == _tag("g")), root)
    _lighten(root, graph)
    boxes = {box.key: box for box in layout.boxes}
    whole = layout.picture.before.macs
    areas = []
    for node in graph.iter(_tag("g")):
        if "node" in node.get("class", "").split() and (area := _area_of(node, words=False)) is not None:
            areas.append(area)
            box = boxes.get(node.findtext(_tag("title"), ""))
            if box is not None and box.change is Change.REPLACED:
                _add_views(node, box, area, whole=whole)
    content = _area_of(graph)
    if content is not None:
        graph.set("transform", f"translate({_PAD - content.left:.2f} {_PAD - content.top:.2f})")
        size = content.width + 2 * _PAD, content.height + 2 * _PAD
        root.set("viewBox", f"0 0 {size[0]:.2f} {size[1]:.2f}")
        root.set("width", f"{size[0]:.0f}pt")
        root.set("height", f"{size[1]:.0f}pt")
    root.set("aria-hidden", "true")
    wide = content is not None and PAPER[0] < READABLE * (content.width + 2 * _PAD)
    sheets = () if content is None else tuple(_cut(content, areas, wide=wide))
    return Figure(_write(root), sheets if len(sheets) * len(areas) <= MOST_COPIES else (), wide)


def _tag(name: str) -> str:
    return f"{{{SVG}}}{name}"


def _write(root: ET.Element) -> Markup:
    """The element as text for an HTML page, whose parser knows the namespaces by itself."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Markup(re.sub(r">\s+<", "><", ET.tostring(root, encoding="unicode")))


def _lighten(root: ET.Element, graph: ET.Element) -> None:
    """Leave out what the page says itself (heading, legend, background, styles) or has no use for (numbering)."""
    for parent in (root, graph):
        for child in [each for each in parent if each.tag != _tag("g")]:
            parent.remove(child)
    font = next((text.get("font-family") for text in root.iter(_tag("text"))), None)
    for element in list(root.iter()):
        element.attrib.pop("id", None)
        element.attrib.update({name: _shorten(element.get(name, "")) for name in _PLACES if name in element.attrib})
        for child in [each for each in element if each.tag == _tag("text") and not (each.text or "").strip()]:
            element.remove(child)
    defaults = {"font-family": font or "", "font-size": "10.00", "fill": INK}
    for text in root.iter(_tag("text")):
        for name, value in (*defaults.items(), ("text-anchor", "start")):
            if text.get(name) == value:
                del text.attrib[name]
    graph.attrib.update({name: value for name, value in defaults.items() if value})
    graph.set("id", "figure")


def _shorten(numbers: str) -> str:
    """Numbers with one digit after the point."""
    return re.sub(r"(\.\d)\d+", r"\1", numbers)


def _area_of(element: ET.Element, *, words: bool = True) -> Area | None:
    """What the shapes in an element cover, and its words."""
    shapes = (each for each in element.iter() if words or each.tag != _tag("text"))
    return _join(area for each in shapes if (area := _shape_area(each)) is not None)


def _join(areas: Iterable[Area]) -> Area | None:
    whole: Area | None = None
    for area in areas:
        whole = area if whole is None else whole | area
    return whole


def _shape_area(shape: ET.Element) -> Area | None:
    name = shape.tag.rpartition("}")[2]
    if name == "text":
        x, y, width = float(shape.get("x", 0)), float(shape.get("y", 0)), _LETTER * len(shape.text or "")
        left = x - {"middle": width / 2, "end": width}.get(shape.get("text-anchor", "start"), 0.0)
        return Area(left, y - 10, left + width, y + 3)
    if shape.tag not in _SHAPE_TAGS:
        return None
    if name in ("ellipse", "circle"):
        cx, cy = float(shape.get("cx", 0)), float(shape.get("cy", 0))
        rx, ry = (float(shape.get(each, shape.get("r", 0))) for each in ("rx", "ry"))
        return Area(cx - rx, cy - ry, cx + rx, cy + ry)
    if name == "rect":
        x, y = float(shape.get("x", 0)), float(shape.get("y", 0))
        return Area(x, y, x + float(shape.get("width", 0)), y + float(shape.get("height", 0)))
    numbers = [float(each) for each in _NUMBER.findall(shape.get("points") or shape.get("d") or "")]
    if len(numbers) < 4:
        return None
    return Area(min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2]))


def _add_views(node: ET.Element, box: Box, area: Area, *, whole: int) -> None:
    """Give a box that holds both models' layers a caption for each of them."""
    holder = next((each for each in node.iter() if any(child.tag in _SHAPE_TAGS for child in each)), node)
    both = ET.Element(_tag("g"), {"class": "in-diff"})
    for child in [each for each in holder if each.tag != _tag("title")]:
        holder.remove(child)
        both.append(child)
    outline = max((child for child in both if child.tag in _SHAPE_TAGS), key=_size)
    holder.append(both)
    for view, half in zip(("in-before", "in-after"), split_box(box, whole=whole), strict=True):
        drawn = ET.SubElement(holder, _tag("g"), {"class": view})
        shape = deepcopy(outline)
        shape.set("fill", heat_color(half.share))
        shape.set("stroke", BORDER[half.change])
        drawn.append(shape)
        drawn.extend(_write_half(half, area))


def _size(shape: ET.Element) -> float:
    area = _shape_area(shape)
    return area.width * area.height if area is not None else 0.0


def _write_half(half: Half, area: Area) -> Iterator[ET.Element]:
    """The words of a box: what happened on a band above, the rest centred below it, as many rows as there is room."""
    band = {"x": area.left, "y": area.top, "width": area.width, "height": _LINE + 2}
    yield ET.Element(_tag("rect"), {name: f"{size:.1f}" for name, size in band.items()} | {"fill": BORDER[half.change]})
    yield _write_words(half.tag, area, area.top + _LINE - 2, color="#ffffff", bold=True)
    rows = half.rows[: max(4, int(area.height / _LINE) - 1)]
    top = area.top + _LINE + (area.height - _LINE * (len(rows) + 1)) / 2
    for index, row in enumerate(rows):
        yield _write_words(row, area, top + _LINE * (index + 0.75), color=INK, bold=index == 0)


def _write_words(words: str, area: Area, y: float, *, color: str, bold: bool) -> ET.Element:
    """One line in the middle of a box, smaller where it would be too long."""
    most, width = area.width - 6, (_BOLD_LETTER if bold else _LETTER) * len(words)
    text = ET.Element(_tag("text"), {
        "x": f"{(area.left + area.right) / 2:.1f}", "y": f"{y:.1f}", "text-anchor": "middle",
        "font-size": f"{10 * min(1.0, most / max(width, 1.0)):.3g}", "fill": color,
        **({"font-weight": "bold"} if bold else {}),
    })  # fmt: skip
    text.text = words
    return text


def _cut(content: Area, boxes: list[Area], *, wide: bool) -> Iterator[Markup]:
    """The drawing in parts that fit on paper, each cut where no box is in the way if there is such a place."""
    width = content.width + 2 * _PAD
    paper = WIDE if wide else PAPER
    scale = min(1.0, paper[0] / width)
    high = (paper[1] if wide else paper[1] - STRIP) / scale
    spans = sorted((box.top, box.bottom) for box in boxes)
    top, bottom = content.top - _PAD, content.bottom + _PAD
    while top < bottom - 1:
        end = bottom if bottom - top <= high else _free_line(spans, top + high / 2, top + high)
        numbers = (top - content.top + _PAD, width, end - top, width * scale, (end - top) * scale)
        yield _SHEET.format(*(f"{each:.1f}" for each in numbers))
        top, high = end, paper[1] / scale


def _free_line(spans: list[Span], low: float, high: float) -> float:
    """The lowest line between two heights that crosses no box; the lower height where there is none."""
    near = [(top, bottom) for top, bottom in spans if bottom + 2 >= low and top - 2 <= high]
    candidates = [high, *(top - 2 for top, _ in near), *(bottom + 2 for _, bottom in near)]
    free = [y for y in candidates if low <= y <= high and not any(top < y < bottom for top, bottom in near)]
    return max(free, default=high)
