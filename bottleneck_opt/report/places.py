"""The places of a model in the order they run: what stood there, what stands there now, and what is known about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bottleneck_opt.diagrams.layout import Layout
from bottleneck_opt.diagrams.picture import Change, Part
from bottleneck_opt.diagrams.wording import (
    change_text,
    count_text,
    loss_text,
    macs_text,
    milliseconds_text,
    shapes_text,
    share_text,
)
from bottleneck_opt.graph import Cost
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.facts import visible_text
from bottleneck_opt.report.rows import error_of, rank_text, times_of


@dataclass(frozen=True)
class Place:
    """A layer with what follows it, or any other operation, together with what replaces it.

    Attributes:
        parts: What stood and stands there; of a rewritten layer the removed part, then the added ones.
        boxes: Keys of the boxes in the picture that show it, in order.
    """

    parts: tuple[Part, ...]
    boxes: tuple[str, ...]

    @property
    def path(self) -> str:
        """Module path of the layer."""
        first = self.parts[0]
        return first.path if first.step is None else first.step.path

    @property
    def change(self) -> Change:
        """What happened here."""
        changes = {part.change for part in self.parts}
        return changes.pop() if len(changes) == 1 else Change.REPLACED

    @property
    def before(self) -> Cost:
        """Cost in the original model."""
        return self._cost(Change.ADDED)

    @property
    def after(self) -> Cost:
        """Cost in the rewritten model."""
        return self._cost(Change.REMOVED)

    def words(self, *, without: Change) -> str:
        """What stands there, leaving out what was added, or what was removed."""
        return " + ".join(part.unit.title for part in self.parts if part.change is not without)

    def _cost(self, without: Change) -> Cost:
        return sum((part.unit.cost for part in self.parts if part.change is not without), Cost())


def list_places(layout: Layout) -> tuple[Place, ...]:
    """Every place of a layout's picture, in order."""
    owners = {part.key: box.key for box in layout.boxes for part in box.parts}
    places: dict[object, list[Part]] = {}
    for part in layout.picture.parts:
        mark = part.key if part.step is None else (part.step.path, part.unit.head.call)
        places.setdefault(mark, []).append(part)
    return tuple(
        Place(tuple(parts), tuple(dict.fromkeys(owners[part.key] for part in parts if part.key in owners)))
        for parts in places.values()
    )


def describe_places(places: Iterable[Place], outcome: Outcome) -> list[dict[str, object]]:
    """What the page's script shows of each place, in words; what there is nothing to say about is left out."""
    errors, times = error_of(outcome), times_of(outcome)
    return [_describe(place, outcome, errors, times) for place in places]


def _describe(
    place: Place, outcome: Outcome, errors: Mapping[str, float], times: Mapping[str, tuple[float, float]]
) -> dict[str, object]:
    step = place.parts[0].step
    facts = [*_structure(place, outcome.before.cost.macs), *_rewriting(place, errors, times), *_reason(place)]
    return {
        "path": visible_text(place.path),
        "boxes": place.boxes,
        "change": place.change.value,
        "loss": 0.0 if step is None else float(f"{step.predicted_loss:.4g}"),
        "saved": place.before.macs - place.after.macs,
        "is": visible_text(place.words(without=Change.REMOVED) or place.words(without=Change.ADDED)),
        "facts": [(name, visible_text(value)) for name, value in facts if value],
    }


def _structure(place: Place, whole: int) -> Iterator[tuple[str, str]]:
    first, last = place.parts[0].unit, place.parts[-1].unit
    before, after = place.before, place.after
    if place.change is Change.REPLACED:
        yield "was", place.words(without=Change.ADDED)
        yield "is now", place.words(without=Change.REMOVED)
    yield (
        "shapes",
        " -> ".join(filter(None, (shapes_text(first.head.input_shapes), _made(last.nodes[-1].output_shapes)))),
    )
    yield "MACs", _pair(macs_text(before.macs), macs_text(after.macs), change_text(before.macs, after.macs))
    yield "params", _pair(count_text(before.params), count_text(after.params), change_text(before.params, after.params))
    if before.macs and whole:
        yield "of all MACs", share_text(before.macs / whole)
    calls = first.head.calls
    if calls > 1:
        yield "call", f"{first.head.call + 1} of {calls}"


def _made(shapes: tuple[tuple[int, ...], ...]) -> str:
    return shapes_text(shapes) if shapes else ""


def _pair(before: str, after: str, change: str) -> str:
    if before == after:
        return "" if before in ("0", "0 MAC") else before
    return f"{before} -> {after} ({change})"


def _rewriting(
    place: Place, errors: Mapping[str, float], times: Mapping[str, tuple[float, float]]
) -> Iterator[tuple[str, str]]:
    sharing = next((part.sharing for part in place.parts if part.sharing is not None), None)
    if sharing is not None:
        yield "form", f"one bottleneck for {len(sharing.members)} layers"
        yield "rank", f"{sharing.rank} of {sharing.full_rank}"
    step = place.parts[0].step
    if step is None:
        return
    yield "form", step.form
    yield "channels" if step.in_place else "rank", rank_text(step)
    yield "predicted loss", loss_text(step.predicted_loss)
    if step.path in errors:
        yield "measured error", f"{loss_text(errors[step.path])} of its own output"
    if step.path in times:
        before, after = times[step.path]
        yield "time", f"{milliseconds_text(before)} -> {milliseconds_text(after)} ({change_text(before, after)})"
    yield "pass", step.pass_name


def _reason(place: Place) -> Iterator[tuple[str, str]]:
    skipped = next((part.skipped for part in place.parts if part.skipped is not None), None)
    if skipped is not None:
        yield "left alone", skipped.reason
        yield "what you can do", skipped.advice
