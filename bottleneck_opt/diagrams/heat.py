"""What the fill and the bar of a box measure: multiply-adds, parameters or milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from bottleneck_opt.diagrams.picture import Change, Part, Picture
from bottleneck_opt.diagrams.wording import count_text, macs_text, milliseconds_text, shrink_text
from bottleneck_opt.errors import InputError

HeatName = Literal["macs", "params", "ms"]


@dataclass(frozen=True)
class Measure:
    """A kind of cost.

    Attributes:
        name: What a user calls it.
        words: What the legend calls it.
        short: What a tag calls it.
    """

    name: HeatName
    words: str
    short: str

    def of(self, parts: Iterable[Part]) -> float:
        """The cost of parts added up; parts that were not timed count nothing."""
        if self.name == "ms":
            return sum(part.milliseconds or 0.0 for part in parts)
        return sum(part.unit.cost.macs if self.name == "macs" else part.unit.cost.params for part in parts)

    def whole(self, picture: Picture) -> float:
        """The cost of the original model, which all shares refer to."""
        if self.name == "ms":
            return self.of(part for part in picture.parts if part.change is not Change.ADDED) or self.of(picture.parts)
        return picture.before.macs if self.name == "macs" else picture.before.params

    def text(self, value: float) -> str:
        """A cost in words."""
        if self.name == "ms":
            return milliseconds_text(value)
        return macs_text(value) if self.name == "macs" else f"{count_text(value)} params"

    def change_text(self, before: float, after: float) -> str:
        """A cost before and after in words."""
        if self.name == "params":
            return f"{shrink_text(count_text(before), count_text(after))} params"
        return shrink_text(self.text(before), self.text(after))


MACS = Measure("macs", "multiply-adds (MACs)", "MACs")
PARAMS = Measure("params", "parameters", "params")
TIME = Measure("ms", "milliseconds", "ms")
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in (MACS, PARAMS, TIME)}


def find_measure(name: str, *, timed: bool) -> Measure:
    """The measure of a name.

    Args:
        name: ``macs``, ``params`` or ``ms``.
        timed: Whether the modules were timed.

    Raises:
        InputError: There is none of that name, or it needs timings that are missing.
    """
    if name not in MEASURES:
        raise InputError(f"heat: got {name!r}; expected 'macs', 'params' or 'ms'.")
    if name == "ms" and not timed:
        raise InputError(
            "heat='ms': the modules were not timed. Pass profiles=(bo.profile(model), bo.profile(result.model)), or "
            "choose heat='macs'."
        )
    return MEASURES[name]
