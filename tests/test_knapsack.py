from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck_opt import knapsack
from bottleneck_opt.knapsack import Choices, Selection, choose

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
LOSSES = st.one_of(st.integers(0, 20).map(float), st.floats(0, 1), st.floats(1e-12, 1e3))
ENTRY = st.tuples(st.integers(0, 30), LOSSES)
LISTS = st.lists(st.lists(ENTRY, min_size=1, max_size=5), min_size=1, max_size=5).map(
    lambda lists: [Choices(np.array([c for c, _ in one]), np.array([x for _, x in one])) for one in lists]
)


def brute_force(lists: Sequence[Choices], limit: int) -> float | None:
    """The least loss within the limit, from all combinations."""
    sums = (
        (sum(int(each.costs[i]) for each, i in picked), sum(float(each.losses[i]) for each, i in picked))
        for indices in itertools.product(*(range(len(each.costs)) for each in lists))
        for picked in [list(zip(lists, indices, strict=True))]
    )
    return min((loss for cost, loss in sums if cost <= limit), default=None)


def cheapest(lists: Sequence[Choices]) -> int:
    return sum(int(each.costs.min()) for each in lists)


def dearest(lists: Sequence[Choices]) -> int:
    return sum(int(each.costs.max()) for each in lists)


def check(selection: Selection, lists: Sequence[Choices], limit: int) -> None:
    """The selection adds up to what it says and is within the limit."""
    picked = list(zip(lists, selection.indices, strict=True))
    assert selection.cost == sum(int(each.costs[i]) for each, i in picked)
    assert selection.loss == pytest.approx(sum(float(each.losses[i]) for each, i in picked))
    assert selection.cost <= limit


@PROPERTY
@given(LISTS, st.integers(0, 150))
def test_equals_brute_force(lists: list[Choices], limit: int) -> None:
    best, selection = brute_force(lists, limit), choose(lists, limit)
    assert (best is None) == (selection is None)
    if best is not None and selection is not None:
        check(selection, lists, limit)
        assert selection.loss == pytest.approx(best, rel=1e-12, abs=1e-15)
        assert selection.gap == 0


@PROPERTY
@given(LISTS)
def test_the_tightest_and_the_loosest_limit(lists: list[Choices]) -> None:
    tight, loose = choose(lists, cheapest(lists)), choose(lists, dearest(lists))
    assert choose(lists, cheapest(lists) - 1) is None
    assert tight is not None
    assert loose is not None
    assert tight.cost == cheapest(lists)
    assert loose.loss == pytest.approx(sum(float(each.losses.min()) for each in lists))


@PROPERTY
@given(LISTS)
def test_more_room_never_loses_more(lists: list[Choices]) -> None:
    found = [choose(lists, limit) for limit in range(cheapest(lists), dearest(lists) + 1)]
    losses = [selection.loss for selection in found if selection is not None]
    assert len(losses) == len(found)
    assert all(later <= sooner * (1 + 1e-12) for sooner, later in itertools.pairwise(losses))


@PROPERTY
@given(LISTS, st.floats(0, 1), st.integers(1, 6), st.integers(2, 40))
def test_bins_report_a_gap_that_bounds_the_optimum(lists: list[Choices], share: float, most: int, bins: int) -> None:
    limit = cheapest(lists) + int(share * (dearest(lists) - cheapest(lists)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "MOST_ENTRIES", most)
        patch.setattr(knapsack, "BINS", bins)
        selection = choose(lists, limit)
    best = brute_force(lists, limit)
    assert selection is not None
    assert best is not None
    check(selection, lists, limit)
    assert selection.loss - selection.gap <= best * (1 + 1e-9) + 1e-12
    assert selection.loss >= best * (1 - 1e-9)


def test_bins_are_used_and_their_gap_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_ENTRIES", 20)
    monkeypatch.setattr(knapsack, "BINS", 100)
    generator = np.random.default_rng(0)
    lists = [many_options(generator) for _ in range(12)]
    selection = choose(lists, dearest(lists) // 2)
    assert selection is not None
    check(selection, lists, dearest(lists) // 2)
    assert 0 < selection.gap < 0.05 * selection.loss


def many_options(generator: np.random.Generator) -> Choices:
    costs = np.sort(generator.integers(1, 10**6, 40))
    return Choices(costs, np.sort(generator.random(40) ** 3)[::-1].copy())


def test_many_lists_are_solved_exactly() -> None:
    generator = np.random.default_rng(1)
    lists = [many_options(generator) for _ in range(20)]
    limit = dearest(lists) // 2
    selection = choose(lists, limit)
    assert selection is not None
    check(selection, lists, limit)
    assert selection.gap == 0


def test_dominated_entries_are_never_chosen() -> None:
    lists = [Choices(np.array([5, 5, 3, 4]), np.array([1.0, 0.5, 0.5, 2.0]))]
    selection = choose(lists, 5)
    assert selection is not None
    assert selection.indices == (2,)


def test_losses_of_very_different_size() -> None:
    lists = [Choices(np.array([1, 9]), np.array([1e3, 0.0])), Choices(np.array([1, 9]), np.array([1e-12, 0.0]))]
    selection = choose(lists, 10)
    assert selection is not None
    assert selection.indices == (1, 0)


def test_no_list_has_one_selection() -> None:
    assert choose([], 0) == Selection((), 0.0, 0, 0.0)
    assert choose([], -1) is None


def test_all_free_when_everything_fits() -> None:
    lists = [Choices(np.array([7, 3, 1]), np.array([0.0, 0.1 * n, 0.7 * n])) for n in range(1, 20)]
    selection = choose(lists, dearest(lists))
    assert selection is not None
    assert selection.loss == 0


def test_hundreds_of_lists_are_solved_close_to_the_bound() -> None:
    generator = np.random.default_rng(2)
    lists = [many_options(generator) for _ in range(300)]
    selection = choose(lists, dearest(lists) // 2)
    assert selection is not None
    check(selection, lists, dearest(lists) // 2)
    assert selection.gap < 1e-3 * selection.loss
