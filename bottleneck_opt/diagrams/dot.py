"""Write a figure as DOT text: the same text for the same figure, whatever names a model brings along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import graphviz

from bottleneck_opt.diagrams.cards import Block, Card, Figure, Frame
from bottleneck_opt.diagrams.colors import Theme
from bottleneck_opt.diagrams.dot_labels import FONT, write_table
from bottleneck_opt.diagrams.layout import Line
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.wording import ascii_text

_MANY_BOXES = 150
_GRAPH: Mapping[str, str] = {
    "rankdir": "TB", "nslimit": "2", "nslimit1": "2", "ranksep": "0.25", "nodesep": "0.25", "fontname": FONT,
    "fontsize": "11", "labelloc": "t", "pad": "0.2",
}  # fmt: skip
_NODE: Mapping[str, str] = {
    "shape": "box", "fontname": FONT, "fontsize": "10", "margin": "0.02,0.02", "height": "0", "width": "0",
}  # fmt: skip
_SHAPE: Mapping[Change, Mapping[str, str]] = {
    Change.SAME: {"penwidth": "1", "style": "filled,rounded"},
    Change.REMOVED: {"penwidth": "2", "style": "filled,dashed"},
    Change.ADDED: {"penwidth": "3", "style": "filled"},
    Change.REPLACED: {"penwidth": "2", "style": "filled", "peripheries": "2"},  # one stands for two
}
_LINE: Mapping[Change, Mapping[str, str]] = {
    Change.SAME: {"weight": "4"},
    Change.REMOVED: {"style": "dashed", "penwidth": "1.5", "weight": "1"},
    Change.ADDED: {"style": "bold", "penwidth": "2.2", "weight": "8"},
}


def write_dot(figure: Figure, digraph: graphviz.Digraph) -> None:
    """Write a figure into a new digraph; its ``source`` is then the same text for the same figure."""
    theme = figure.theme
    digraph.graph_attr.update(_GRAPH, bgcolor=theme.background, fontcolor=theme.ink)
    digraph.node_attr.update(_NODE, fontcolor=theme.ink)
    digraph.attr("edge", arrowsize="0.7", fontname=FONT, fontsize="10", color=theme.line[Change.SAME],
                 fontcolor=theme.quiet)  # fmt: skip
    if len(figure.cards) > _MANY_BOXES:
        digraph.attr("graph", splines="polyline", nslimit="0.5", nslimit1="0.5")
    if figure.ordered:
        digraph.attr("graph", ordering="out")
    digraph.attr("graph", label=_label(figure.heading, theme, padding=2))
    _add_items(digraph, figure.items, theme)
    for line in figure.lines:
        _add_line(digraph, line, theme)


def _label(blocks: Iterable[Block], theme: Theme, *, change: Change = Change.SAME, padding: int = 1) -> str:
    return f"<{write_table(blocks, theme, change=change, padding=padding)}>"


def _add_items(digraph: graphviz.Digraph, items: Iterable[Card | Frame], theme: Theme, prefix: str = "") -> None:
    for index, item in enumerate(items):
        if isinstance(item, Card):
            _add_card(digraph, item, theme)
        else:
            _add_frame(digraph, item, theme, f"{prefix}{index}")


def _add_frame(digraph: graphviz.Digraph, frame: Frame, theme: Theme, name: str) -> None:
    changed = frame.change is not Change.SAME
    color = theme.border[frame.change] if changed else theme.frame
    with digraph.subgraph(name=f"cluster_{name}") as cluster:
        cluster.attr(
            label=f"<<B>{escape(ascii_text(frame.title))}</B>>", style="rounded", color=color, labeljust="l",
            penwidth="1.5" if changed else "1", fontsize="11", margin="10", **{"class": "frame"},
        )  # fmt: skip
        _add_items(cluster, frame.items, theme, f"{name}_")


def _add_card(digraph: graphviz.Digraph, card: Card, theme: Theme) -> None:
    attributes = {
        "fillcolor": theme.fill(card.share), "color": theme.border[card.change], "class": card.change.value,
        "tooltip": graphviz.escape(card.tooltip), **_SHAPE[card.change],
    }  # fmt: skip
    if card.form == "end":
        attributes |= {"shape": "ellipse", "style": "filled"}
    digraph.node(card.key, label=_label(card.blocks, theme, change=card.change), **dict(sorted(attributes.items())))


def _add_line(digraph: graphviz.Digraph, line: Line, theme: Theme) -> None:
    attributes = {"color": theme.line[line.change], "class": line.change.value, **_LINE[line.change]}
    if line.tensors > 1:
        attributes["label"] = f" {line.tensors} tensors"
    digraph.edge(line.source, line.target, **dict(sorted(attributes.items())))
