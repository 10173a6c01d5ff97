"""The outcome as one HTML file: no network, no server, and complete without its script."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bottleneck_opt.diagrams import draw_diff
from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.diagrams.wording import CHANGE_MEANING, RANK_MEANING, count_text, macs_text, share_text, times_text
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.document import report_json
from bottleneck_opt.report.facts import budget_words, headline, layers_changed, list_numbers, visible_text
from bottleneck_opt.report.figure import make_figure
from bottleneck_opt.report.palette import HEAT, heat_styles
from bottleneck_opt.report.places import Place, describe_places, list_places
from bottleneck_opt.report.plots import NOTHING, plot_costs, plot_curve, plot_frontier, plot_ranks
from bottleneck_opt.report.rows import group_skipped, list_dropped, list_layers, list_tried
from bottleneck_opt.report.strip import draw_strip, make_strip

_STYLES = ("theme.css", "page.css", "figure.css", "print.css")
_SCRIPTS = (
    "viewport.js", "pictures.js", "facts.js", "selection.js", "search.js", "tables.js", "strip.js", "theme.js",
    "downloads.js", "main.js",
)  # fmt: skip
CURVES_SHOWN, MOST_CURVES = 12, 120


@dataclass(frozen=True)
class Download:
    """A file that the page carries: its name, its type, and its content as base64 of gzip."""

    name: str
    kind: str
    data: str


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
        share=share_text,
        count=count_text,
        macs=macs_text,
        plain=visible_text,
        duration=times_text,
        short="{:.4g}".format,
    )  # fmt: skip
    return environment


def _context(outcome: Outcome, svg: str | None) -> dict[str, Any]:
    layout = fold(picture_outcome(outcome))
    places = list_places(layout)
    style, script = f"{_read(_STYLES)}\n{heat_styles()}\n", _in_one_scope(_read(_SCRIPTS))
    return {
        "outcome": outcome,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "headline": headline(outcome),
        "asked": visible_text(budget_words(outcome)),
        "tried": list_tried(outcome),
        "numbers": list_numbers(outcome),
        "change_meaning": CHANGE_MEANING,
        "rank_meaning": RANK_MEANING,
        "changed": layers_changed(outcome),
        "layers": list_layers(outcome),
        "dropped": list_dropped(outcome),
        "groups": group_skipped(outcome.skipped),
        "seconds": _seconds(outcome),
        "heat": HEAT,
        "strip": draw_strip(make_strip(places, outcome.before.cost.macs)),
        "places": len(places),
        "changes": sum(place.change is not Change.SAME for place in places),
        "figure": None if svg is None else make_figure(svg, layout),
        "data": embed_json({"places": describe_places(places, outcome)}),
        "downloads": _list_downloads(outcome, svg),
        **_plots(outcome, places),
    }


def _plots(outcome: Outcome, places: tuple[Place, ...]) -> dict[str, Any]:
    curves = {curve.path: curve for curve in outcome.curves}
    drawn = [(step, curves[step.path]) for step in outcome.plan.steps if step.path in curves]
    drawn = [(step, curve) for step, curve in drawn if max(curve.losses) > NOTHING]
    drawn.sort(key=lambda pair: -pair[0].predicted_loss)
    return {
        "frontier": plot_frontier(outcome),
        "costs": plot_costs(places),
        "ranks": plot_ranks(outcome.plan.steps),
        "curves": [(step.path, plot_curve(curve, step)) for step, curve in drawn[:MOST_CURVES]],
        "curves_left_out": len(drawn[MOST_CURVES:]),
        "curves_shown": CURVES_SHOWN,
    }


def embed_json(value: object) -> Markup:
    r"""A value as JSON that can stand in a script element: nothing in it ends the element or begins a comment.

    Example:
        >>> embed_json("</script>")
        Markup('"\\u003c/script\\u003e"')
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _read(names: tuple[str, ...]) -> str:
    folder = resources.files("bottleneck_opt") / "report"
    return "\n" + "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _in_one_scope(script: str) -> str:
    """The script's names are its own."""
    return f'\n"use strict";\n(() => {{{script}}})();\n'


def _hash(text: str) -> str:
    """What the page's policy allows: this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _list_downloads(outcome: Outcome, svg: str | None) -> list[Download]:
    files = [("diff.svg", "image/svg+xml", svg)] if svg is not None else []
    files.append(("diff.dot", "text/vnd.graphviz", draw_diff(outcome).source))
    files.append(("report.json", "application/json", report_json(outcome)))
    return [Download(name, kind, _pack(text)) for name, kind, text in files]


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode("ascii")


def _seconds(outcome: Outcome) -> list[tuple[str, float, float]]:
    """Each stage with its seconds and its share of the longest, for the bars."""
    longest = max((seconds for _, seconds in outcome.seconds), default=0.0) or 1.0
    return [(stage, seconds, seconds / longest) for stage, seconds in outcome.seconds]
