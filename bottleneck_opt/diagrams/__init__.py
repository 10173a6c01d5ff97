"""Pictures of a model, and of what was changed in it."""

from bottleneck_opt.diagrams.drawing import Look, draw_after, draw_before, draw_diff, draw_model, draw_rewrite
from bottleneck_opt.diagrams.model_explorer import graph_json, node_data_json
from bottleneck_opt.diagrams.rendering import check_format, render_file, render_svg, renderer

__all__ = [
    "Look", "check_format", "draw_after", "draw_before", "draw_diff", "draw_model", "draw_rewrite", "graph_json",
    "node_data_json", "render_file", "render_svg", "renderer",
]  # fmt: skip
