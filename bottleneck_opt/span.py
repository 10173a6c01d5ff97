"""The way from a whole model to the smallest budget, and the budgets along it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bottleneck_opt.budget import Budget
from bottleneck_opt.graph import Cost

_DIGITS = 4


@dataclass(frozen=True)
class Span:
    """Budgets from the whole model (0) to the goal (1), each unit smaller by the same factor for the same way.

    Attributes:
        whole: The model's cost in each limited unit, at least 1.
        goal: The smallest limits.
        last: The budget at the goal as it was typed; None to write it as ratios.

    Example:
        >>> span = Span({"macs": 1000}, {"macs": 100})
        >>> span.budget(0.5).describe(), span.budget(1.0).limits(Cost(macs=1000))
        ('macs=0.3162', {'macs': 100})
    """

    whole: Mapping[str, int]
    goal: Mapping[str, int]
    last: Budget | None = None

    @classmethod
    def between(cls, total: Cost, goal: Mapping[str, int], last: Budget | None = None) -> Span:
        """The way for a model of this cost; a goal above the model's own cost is that cost."""
        whole = {unit: max(getattr(total, unit), 1) for unit in goal}
        return cls(whole, {unit: min(max(limit, 1), whole[unit]) for unit, limit in goal.items()}, last)

    @property
    def depth(self) -> float:
        """The natural logarithm of how many times smaller the goal is, in the unit where that is most."""
        return max(self._depths().values())

    def budget(self, way: float) -> Budget:
        """The budget so far along, as ratios that can be typed again."""
        if way >= 1 and self.last is not None:
            return self.last
        depths = self._depths()
        return Budget(**{unit: _type_ratio(math.exp(-way * depths[unit]), whole) for unit, whole in self.whole.items()})

    def measure(self, cost: Cost) -> float:
        """How far along every unit of a cost is, at least."""
        depths = {unit: depth for unit, depth in self._depths().items() if depth > 0}
        ways = [math.log(self.whole[unit] / max(getattr(cost, unit), 1)) / depth for unit, depth in depths.items()]
        return min(1.0, max(0.0, min(ways, default=1.0)))

    def _depths(self) -> dict[str, float]:
        return {unit: math.log(self.whole[unit] / goal) for unit, goal in self.goal.items()}


def _type_ratio(ratio: float, whole: int) -> float:
    """The least ratio of few digits that allows as much of the whole as this one."""
    places = _DIGITS - 1 - math.floor(math.log10(ratio))
    wanted = math.floor(ratio * whole + 1e-6)
    typed = round(ratio, places)
    while int(typed * whole) < wanted:
        typed = round(typed + 10.0**-places, places)
    return min(typed, 1.0)
