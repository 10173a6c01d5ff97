"""Write a layout as DOT text: the same text for the same layout, whatever names a model brings along."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import graphviz

from bottleneck_opt.diagrams.captions import Caption, caption_box, group_title
from bottleneck_opt.diagrams.colors import BORDER, HEAT, INK, LINE, QUIET, heat_color
from bottleneck_opt.diagrams.layout import Box, Group, Layout, Line
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import CHANGE_MEANING, ascii_text, elide_end, elide_middle

FONT = "Arial"
_ROOM = "&#160;"  # keeps words off the border without a margin, which would keep the tag row off it too
_MANY_BOXES = 150
_TITLE_LIMIT = 100
_GRAPH: Mapping[str, str] = {
    "rankdir": "TB", "nslimit": "2", "nslimit1": "2", "ranksep": "0.28", "nodesep": "0.3", "fontname": FONT,
    "fontsize": "11", "fontcolor": INK, "bgcolor": "white", "labelloc": "t", "pad": "0.2",
}  # fmt: skip
_NODE: Mapping[str, str] = {
    "shape": "box", "style": "filled", "fontname": FONT, "fontsize": "10", "fontcolor": INK, "margin": "0.02,0.02",
    "height": "0", "width": "0",
}  # fmt: skip
_SHAPE: Mapping[Change, Mapping[str, str]] = {
    Change.SAME: {"penwidth": "1"},
    Change.REMOVED: {"penwidth": "2", "style": "filled,dashed"},
    Change.ADDED: {"penwidth": "3"},
    Change.REPLACED: {"penwidth": "3", "style": "filled,diagonals", "margin": "0.17,0.02"},  # corners cut off
}
_LINE: Mapping[Change, Mapping[str, str]] = {
    Change.SAME: {"weight": "4"},
    Change.REMOVED: {"style": "dashed", "penwidth": "1.5", "weight": "1"},
    Change.ADDED: {"style": "bold", "penwidth": "2.2", "weight": "8"},
}


def write_dot(layout: Layout, *, title: str, subtitle: str = "") -> graphviz.Digraph:
    """The figure as a digraph.

    Args:
        layout: Boxes, groups and lines.
        title: First line above the figure.
        subtitle: Second line.
    """
    digraph = graphviz.Digraph("bottleneck_opt", graph_attr=dict(_GRAPH), node_attr=dict(_NODE))
    digraph.attr("edge", arrowsize="0.7", fontname=FONT, fontsize="10", color=LINE[Change.SAME])
    if len(layout.boxes) > _MANY_BOXES:
        digraph.attr("graph", splines="polyline", nslimit="0.5", nslimit1="0.5")
    digraph.attr("graph", label=_heading(layout, title, subtitle))
    _add_items(digraph, layout.items, whole=layout.picture.before.macs)
    for line in layout.lines:
        _add_line(digraph, line)
    return digraph


def _add_items(digraph: graphviz.Digraph, items: tuple[Box | Group, ...], *, whole: int, prefix: str = "") -> None:
    for index, item in enumerate(items):
        if isinstance(item, Box):
            _add_box(digraph, item, whole=whole, framed=bool(prefix))
        else:
            _add_group(digraph, item, whole=whole, name=f"{prefix}{index}")


def _add_group(digraph: graphviz.Digraph, group: Group, *, whole: int, name: str) -> None:
    changed = any(box.change is not Change.SAME for box in group.boxes())
    color = BORDER[Change.ADDED] if changed else BORDER[Change.SAME]
    with digraph.subgraph(name=f"cluster_{name}") as cluster:
        cluster.attr(
            label=f"<{escape(group_title(group))}>", style="rounded", color=color, labeljust="l",
            penwidth="1.5" if changed else "1", fontsize="11", margin="10",
        )  # fmt: skip
        _add_items(cluster, group.items, whole=whole, prefix=f"{name}_")


def _add_box(digraph: graphviz.Digraph, box: Box, *, whole: int, framed: bool) -> None:
    caption = caption_box(box, whole=whole, framed=framed)
    share = sum(cost.macs for cost in box.costs) / whole if whole else 0.0
    attributes = {
        "fillcolor": heat_color(share), "color": BORDER[box.change], "class": box.change.value,
        "tooltip": graphviz.escape(caption.tooltip), **_SHAPE[box.change], **_form(box),
    }  # fmt: skip
    digraph.node(box.key, label=_label(caption, box.change), **dict(sorted(attributes.items())))


def _form(box: Box) -> Mapping[str, str]:
    if box.region is not None and box.change is Change.SAME:
        return {"style": "filled,rounded"}
    if box.first.unit.head.kind in ("input", "output"):
        return {"shape": "ellipse"}
    if box.change is Change.ADDED and box.first.inserted:
        return {"shape": "hexagon"}
    return {}


def _label(caption: Caption, change: Change) -> str:
    rows = [
        _row(caption.tag, bold=True, color="white", background=BORDER[change]),
        _row(caption.title, bold=True, size=11, strike=change is Change.REMOVED or bool(caption.becomes)),
        _row(caption.becomes, bold=True, size=11),
        _row(caption.name),
        _row(caption.shape),
        _cost_row(caption),
        _row(caption.note, size=9),
        *(_row(line, align="LEFT") for line in caption.lines),
    ]
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{"".join(rows)}</TABLE>>'


def _row(
    text: str, *, bold: bool = False, size: int = 10, color: str = INK, background: str = "", strike: bool = False,
    align: str = "",
) -> str:  # fmt: skip
    if not text:
        return ""
    shown = f"<S>{escape(text)}</S>" if strike else escape(text)
    shown = f"{_ROOM}<B>{shown}</B>{_ROOM}" if bold else f"{_ROOM}{shown}{_ROOM}"
    cell = f' BGCOLOR="{background}"' if background else f' ALIGN="{align}"' if align else ""
    return f'<TR><TD{cell}><FONT POINT-SIZE="{size}" COLOR="{color}">{shown}</FONT></TD></TR>'


def _cost_row(caption: Caption) -> str:
    share = f" | <B>{escape(caption.share)}</B>" if caption.share else ""
    return f"<TR><TD>{_ROOM}{escape(caption.cost)}{share}{_ROOM}</TD></TR>" if caption.cost else ""


def _add_line(digraph: graphviz.Digraph, line: Line) -> None:
    attributes = {"color": LINE[line.change], "class": line.change.value, **_LINE[line.change]}
    if line.tensors > 1:
        attributes["label"] = f" {line.tensors} tensors"
    digraph.edge(line.source, line.target, **dict(sorted(attributes.items())))


def _heading(layout: Layout, title: str, subtitle: str) -> str:
    rows = [
        _row(elide_middle(ascii_text(title), _TITLE_LIMIT), bold=True, size=14),
        _row(elide_end(ascii_text(subtitle), _TITLE_LIMIT), size=11),
        _row(_counts(layout), size=10, color=QUIET),
        _row(_loss_meaning(layout), size=9, color=QUIET),
        f"<TR><TD>{_legend()}</TD></TR>",
    ]
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}</TABLE>>'


def _counts(layout: Layout) -> str:
    folded = layout.operations - layout.shown
    if not folded:
        return f"showing all {layout.operations} operations"
    changed = any(part.change is not Change.SAME for part in layout.picture.parts)
    promise = ", every change is shown" if changed else ""
    return f"showing {layout.shown} of {layout.operations} operations; {folded} folded{promise}"


def _loss_meaning(layout: Layout) -> str:
    rewritten = any(part.step is not None for part in layout.picture.parts)
    return f"predicted loss: {CHANGE_MEANING}" if rewritten else ""


def _legend() -> str:
    border = f'BORDER="1" COLOR="{BORDER[Change.SAME]}"'
    cells = "".join(
        f'<TD {border} BGCOLOR="{color}"><FONT POINT-SIZE="9" COLOR="black">{100 * bound:g}+</FONT></TD>'
        for bound, color in HEAT
    )
    words = f'<TD><FONT POINT-SIZE="9" COLOR="{INK}">fill: % of the original model\'s MACs </FONT></TD>'
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="2"><TR>{words}{cells}</TR></TABLE>'
