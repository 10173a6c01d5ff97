from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck_opt.budget import Budget, read_budget
from bottleneck_opt.graph import Cost
from bottleneck_opt.span import Span
from bottleneck_opt.walking import Look, Stride, walk

STRIDE = Stride(first=0.2, step=0.2, finest=0.01, most=6)


def places(holds: Callable[[float], bool], stride: Stride = STRIDE) -> list[float]:
    found: list[float] = []

    def look(place: float) -> Look:
        found.append(place)
        return Look(holds(place), place, fresh=True)

    walk(look, stride)
    return found


def test_while_all_is_well_it_goes_to_the_goal_and_stops() -> None:
    assert places(lambda place: True) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_where_nothing_holds_it_comes_ever_nearer_to_the_whole_model() -> None:
    assert places(lambda place: False) == [0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625]


def test_a_typed_goal_is_looked_at_first() -> None:
    assert places(lambda place: place < 0.5, Stride(1.0, 0.2, 0.3, 6)) == [1.0, 0.5, 0.25]


def test_what_is_known_costs_no_measurement_and_still_ends() -> None:
    found: list[float] = []
    walk(lambda place: found.append(place) or Look(False, place, fresh=False), STRIDE)  # type: ignore[func-returns-value]
    assert len(found) == 6


@given(st.floats(0, 1), st.floats(0.02, 1))
@settings(deadline=None, max_examples=50)
def test_it_ends_close_to_where_a_steady_quality_ends(end: float, first: float) -> None:
    stride = Stride(first, first, finest=0.01, most=100)
    found = places(lambda place: place <= end, stride)
    assert end - max((place for place in found if place <= end), default=0.0) < 0.011


def test_both_units_shrink_by_their_own_factor() -> None:
    total = Cost(macs=10_000, params=500)
    span = Span.between(total, {"macs": 100, "params": 250}, Budget(macs=0.01, params=0.5))
    assert span.budget(0.5).limits(total) == {"macs": 1000, "params": 353}
    assert span.budget(1.0) == Budget(macs=0.01, params=0.5)
    assert span.measure(Cost(macs=1000, params=250)) == pytest.approx(0.5)
    assert span.measure(total) == 0


def test_a_goal_above_the_model_itself_leaves_no_way() -> None:
    span = Span.between(Cost(macs=10), {"macs": 99})
    assert (span.depth, span.budget(1.0), span.measure(Cost(macs=10))) == (0, Budget(macs=1.0), 1)


@given(st.integers(1, 10**12), st.floats(1e-6, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_the_budgets_on_the_way_can_be_typed_and_reach_the_goal(whole: int, ratio: float, way: float) -> None:
    total, goal = Cost(macs=whole), max(1, int(ratio * whole))
    span = Span.between(total, {"macs": goal})
    assert span.budget(1.0).limits(total)["macs"] >= goal
    budget = span.budget(way)
    assert read_budget(budget.describe())[0].limits(total) == budget.limits(total)
    assert goal <= budget.limits(total)["macs"] <= whole
