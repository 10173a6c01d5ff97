"""The cost strip: one thin bar for each place of the model, in the order they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.report.palette import HEAT, heat_step
from bottleneck_opt.report.places import Place

HEIGHT = 100
TICKS = 10
_LEAST = 2.0
_GAP = 0.15


@dataclass(frozen=True)
class Strip:
    """The strip's shapes, few however many bars there are; a bar is one unit wide.

    Attributes:
        count: Number of bars.
        was: Path data of the bars as high as the original model's costs, where the cost is less now.
        heat: For each step of the heat scale, path data of the bars as high as the costs now.
        ticks: Path data of the marks under the places that changed.
    """

    count: int
    was: str
    heat: tuple[str, ...]
    ticks: str


def make_strip(places: Sequence[Place], whole: int) -> Strip:
    """The strip of a model's places.

    Args:
        places: In order.
        whole: MACs of the original model.
    """
    most = max((max(place.before.macs, place.after.macs) for place in places), default=0) or 1
    heat = ["" for _ in HEAT]
    was, ticks = "", ""
    for index, place in enumerate(places):
        if place.after.macs < place.before.macs:
            was += _bar(index, place.before.macs / most)
        heat[heat_step(place.after.macs / whole if whole else 0.0)] += _bar(index, place.after.macs / most)
        if place.change is not Change.SAME:
            ticks += f"M{index + _GAP:g},{HEIGHT + 3}h{1 - 2 * _GAP:g}v{TICKS - 3}h-{1 - 2 * _GAP:g}z"
    return Strip(len(places), was, tuple(heat), ticks)


def _bar(index: int, share: float) -> str:
    high = max(_LEAST, HEIGHT * share)
    return f"M{index + _GAP:g},{HEIGHT}v-{high:.4g}h{1 - 2 * _GAP:g}v{high:.4g}z"


def draw_strip(strip: Strip) -> Markup:
    """The strip as SVG that stretches to any width."""
    layers = [Markup('<path class="was" d="{}"/>').format(strip.was)] if strip.was else []
    layers += [Markup('<path class="heat-{}" d="{}"/>').format(i, data) for i, data in enumerate(strip.heat) if data]
    layers += [Markup('<path class="tick" d="{}"/>').format(strip.ticks)] if strip.ticks else []
    return Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>').format(
        max(strip.count, 1), HEIGHT + TICKS, Markup().join(layers)
    )
