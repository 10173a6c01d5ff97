"""What came out of an optimisation: as text, as HTML and as JSON."""

from bottleneck_opt.report.document import profile_json, report_json
from bottleneck_opt.report.keras import ModelSummary, draw_keras, render_keras, summarize_model
from bottleneck_opt.report.page import render_html
from bottleneck_opt.report.profile import render_profile
from bottleneck_opt.report.text import render_text

__all__ = [
    "ModelSummary", "draw_keras", "profile_json", "render_html", "render_keras", "render_profile", "render_text",
    "report_json", "summarize_model",
]  # fmt: skip
