"""A drawn picture: DOT text that remembers the figure it was written from, and shows itself in notebooks."""

from __future__ import annotations

from typing import Any

import graphviz

from bottleneck_opt.diagrams.cards import Figure
from bottleneck_opt.diagrams.dot import write_dot
from bottleneck_opt.diagrams.rendering import render_svg


class Drawing(graphviz.Digraph):  # type: ignore[misc]  # graphviz has no annotations
    """DOT text with the figure behind it, for where Graphviz is missing or cannot lay it out.

    Attributes:
        figure: The figure.
    """

    figure: Figure

    def _repr_mimebundle_(self, *_: Any, **__: Any) -> dict[str, str]:
        """What a notebook shows; with a plain layout where Graphviz is missing."""
        svg = render_svg(self)
        return {"text/plain": str(self.source)} if svg is None else {"image/svg+xml": svg}


def draw_figure(figure: Figure) -> Drawing:
    """The figure as a digraph; its ``source`` is the same text for the same figure."""
    drawing = Drawing("bottleneck_opt")
    write_dot(figure, drawing)
    drawing.figure = figure
    return drawing
