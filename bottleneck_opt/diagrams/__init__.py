"""Pictures of a model, and of what was changed in it."""

from bottleneck_opt.diagrams.drawing import draw_after, draw_before, draw_diff, draw_model
from bottleneck_opt.diagrams.rendering import render_file, render_svg, renderer

__all__ = ["draw_after", "draw_before", "draw_diff", "draw_model", "render_file", "render_svg", "renderer"]
