"""The pictures: one model, the model before, the model after, and both in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bottleneck_opt.diagrams.closeup import compose_rewrite, find_rewrite
from bottleneck_opt.diagrams.colors import find_theme
from bottleneck_opt.diagrams.composing import compose
from bottleneck_opt.diagrams.drawn import Drawing, draw_figure
from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.heading import Heading, head_diff, head_model, head_side
from bottleneck_opt.diagrams.heat import TIME, find_measure
from bottleneck_opt.diagrams.levels import find_detail
from bottleneck_opt.diagrams.picture import Change, Picture, picture_model
from bottleneck_opt.diagrams.timing import time_parts
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.graph import Traced
from bottleneck_opt.outcome import Outcome

Milliseconds = Mapping[str, float]


@dataclass(frozen=True)
class Look:
    """How a picture is drawn.

    Attributes:
        detail: ``stage``, ``block``, ``layer``, ``operation``, or ``auto``: the finest that still fits on a page.
        heat: What fill and bars measure: ``macs``, ``params`` or ``ms``.
        theme: ``light`` or ``dark``.
        milliseconds: For ``heat="ms"``: the time in each leaf module, of the original model and of the rewritten one.

    Raises:
        InputError: One of them is something else, or there are no timings.
    """

    detail: str = "auto"
    heat: str = "macs"
    theme: str = "light"
    milliseconds: tuple[Milliseconds, Milliseconds] | None = None

    def __post_init__(self) -> None:
        find_detail(self.detail)
        find_measure(self.heat, timed=self.milliseconds is not None)
        find_theme(self.theme)

    @property
    def split(self) -> bool:
        """Whether every operation has a box of its own."""
        return self.detail == "operation"


def draw_model(traced: Traced, *, title: str = "", look: Look | None = None) -> Drawing:
    """The picture of one model.

    Args:
        traced: The model's recorded run.
        title: Text above the picture.
        look: Detail, heat and theme.

    Returns:
        A digraph; its ``source`` is the same text for the same model.
    """
    look = look or Look()
    picture = picture_model(traced, split=look.split)
    return _draw(picture, head_model(title or "Model", traced.cost, traced.inputs.describe()), look)


def draw_before(outcome: Outcome, look: Look | None = None) -> Drawing:
    """The original model; the layers that were replaced stand out."""
    look = look or Look()
    picture = picture_outcome(outcome, split=look.split).without(Change.ADDED)
    return _draw(picture, head_side("Before", outcome), look)


def draw_after(outcome: Outcome, look: Look | None = None) -> Drawing:
    """The rewritten model; the layers that were put in stand out."""
    look = look or Look()
    picture = picture_outcome(outcome, split=look.split).without(Change.REMOVED)
    return _draw(picture, head_side("After", outcome), look)


def draw_diff(outcome: Outcome, look: Look | None = None) -> Drawing:
    """Both models in one picture: what was removed beside what was put in its place."""
    look = look or Look()
    return _draw(picture_outcome(outcome, split=look.split), head_diff(outcome), look)


def draw_rewrite(outcome: Outcome, path: str | None, look: Look | None = None) -> Drawing:
    """One rewrite close up: the layer that went, what stands in its place, and its neighbours.

    Args:
        outcome: What was done.
        path: Of the rewritten layer, or of a shared bottleneck.
        look: Heat and theme; there is one level of detail.

    Raises:
        InputError: The layer was not rewritten; the message says why, or names the nearest that were.
    """
    look = look or Look()
    rewrite = find_rewrite(outcome, path)
    measure = find_measure(look.heat, timed=look.milliseconds is not None)
    picture = _time(picture_outcome(outcome), look)
    return draw_figure(compose_rewrite(outcome, picture, rewrite, theme=find_theme(look.theme), measure=measure))


def _time(picture: Picture, look: Look) -> Picture:
    return picture if look.milliseconds is None else time_parts(picture, *look.milliseconds)


def _draw(picture: Picture, heading: Heading, look: Look) -> Drawing:
    measure = find_measure(look.heat, timed=look.milliseconds is not None)
    if measure is TIME:
        heading = replace(heading, notes=("milliseconds of modules; functions such as add are not timed",))
    layout = fold(_time(picture, look), detail=look.detail)
    return draw_figure(compose(layout, heading, theme=find_theme(look.theme), measure=measure))
