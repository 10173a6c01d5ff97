"""What came out of an optimisation: as text, as HTML and as JSON."""

from bottleneck_opt.report.document import profile_json, report_json
from bottleneck_opt.report.page import render_html
from bottleneck_opt.report.profile import render_profile
from bottleneck_opt.report.text import render_text

__all__ = ["profile_json", "render_html", "render_profile", "render_text", "report_json"]
