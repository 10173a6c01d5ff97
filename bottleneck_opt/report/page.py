"""The outcome as one HTML file that needs no network and no script."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bottleneck_opt.diagrams.wording import CHANGE_MEANING, ascii_text, count_text, macs_text, share_text, times_text
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.facts import group_skipped, headline, layers_changed, list_layers, list_numbers


def render_html(outcome: Outcome, svg: str | None) -> str:
    """The report page.

    Args:
        outcome: What was done and measured.
        svg: The picture from :func:`bottleneck_opt.diagrams.render_svg`, or None where there is no renderer.
    """
    template = _environment().get_template("report.html.jinja")
    return template.render(_context(outcome, svg))


def _environment() -> Environment:
    """Everything that a template prints is escaped unless it is marked as markup."""
    environment = Environment(
        loader=PackageLoader("bottleneck_opt", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        share=share_text, count=count_text, macs=macs_text, plain=ascii_text, duration=times_text
    )
    return environment


def _context(outcome: Outcome, svg: str | None) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "headline": headline(outcome),
        "numbers": list_numbers(outcome),
        "change_meaning": CHANGE_MEANING,
        "changed": layers_changed(outcome),
        "layers": list_layers(outcome),
        "groups": group_skipped(outcome.skipped),
        "seconds": _seconds(outcome),
        "picture": None if svg is None else Markup(_inline(svg)),
    }


def _inline(svg: str) -> str:
    """The SVG element alone: a page has no room for the XML head of a file."""
    return svg[max(0, svg.find("<svg")) :]


def _seconds(outcome: Outcome) -> list[tuple[str, float, float]]:
    """Each stage with its seconds and its share of the longest, for the bars."""
    longest = max((seconds for _, seconds in outcome.seconds), default=0.0) or 1.0
    return [(stage, seconds, seconds / longest) for stage, seconds in outcome.seconds]
