"""The pictures: one model, the model before, the model after, and both in one."""

from __future__ import annotations

import graphviz

from bottleneck_opt.diagrams.dot import write_dot
from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.picture import Change, Picture, picture_model
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.diagrams.wording import change_text, count_text, macs_text
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.outcome import Outcome


def draw_model(traced: Traced, *, title: str = "") -> graphviz.Digraph:
    """The picture of one model.

    Args:
        traced: The model's recorded run.
        title: Text above the picture.

    Returns:
        A digraph; its ``source`` is the same text for the same model.
    """
    subtitle = f"{macs_text(traced.cost.macs)}, {count_text(traced.cost.params)} params, {traced.inputs.describe()}"
    return write_dot(fold(picture_model(traced)), title=title or "Model", subtitle=subtitle)


def draw_before(outcome: Outcome) -> graphviz.Digraph:
    """The original model; the layers that were replaced stand out."""
    picture = picture_outcome(outcome).without(Change.ADDED)
    return _draw(picture, f"Before: {_class_name(outcome)}", _cost_words(outcome.before.cost))


def draw_after(outcome: Outcome) -> graphviz.Digraph:
    """The rewritten model; the layers that were put in stand out."""
    picture = picture_outcome(outcome).without(Change.REMOVED)
    return _draw(picture, f"After: {_class_name(outcome)}", _cost_words(outcome.after.cost))


def draw_diff(outcome: Outcome) -> graphviz.Digraph:
    """Both models in one picture: what was removed beside what was put in its place."""
    before, after = outcome.before.cost, outcome.after.cost
    return _draw(picture_outcome(outcome), f"Before and after: {_class_name(outcome)}", _compare(before, after))


def _draw(picture: Picture, title: str, subtitle: str) -> graphviz.Digraph:
    return write_dot(fold(picture), title=title, subtitle=subtitle)


def _cost_words(cost: Cost) -> str:
    return f"{macs_text(cost.macs)}, {count_text(cost.params)} params"


def _class_name(outcome: Outcome) -> str:
    return outcome.provenance.model.rpartition(".")[2]


def _compare(before: Cost, after: Cost) -> str:
    return (
        f"{macs_text(before.macs)} -> {macs_text(after.macs)} ({change_text(before.macs, after.macs)}), "
        f"{count_text(before.params)} -> {count_text(after.params)} params "
        f"({change_text(before.params, after.params)})"
    )
