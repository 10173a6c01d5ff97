import itertools

import numpy as np
import pytest

from bottleneck_opt.frontier import list_corners
from bottleneck_opt.knapsack import Floats


def made_lists(seed: int) -> tuple[list[Floats], list[Floats]]:
    random = np.random.default_rng(seed)
    costs = [np.sort(random.integers(1, 40, 5)).astype(float)[::-1] for _ in range(4)]
    losses = [np.concatenate([[0.0], random.random(4).cumsum()]) for _ in range(4)]
    return costs, losses


def all_sums(costs: list[Floats], losses: list[Floats]) -> list[tuple[float, float]]:
    entries = [list(zip(cost, loss, strict=True)) for cost, loss in zip(costs, losses, strict=True)]
    picks = itertools.product(*entries)
    return [(sum(cost for cost, _ in pick), sum(loss for _, loss in pick)) for pick in picks]


@pytest.mark.parametrize("seed", range(5))
def test_no_selection_is_better_than_a_corner_at_its_cost(seed: int) -> None:
    costs, losses = made_lists(seed)
    sums = all_sums(costs, losses)
    for corner in list_corners(costs, losses):
        assert corner.loss <= min(loss for cost, loss in sums if cost <= corner.cost) + 1e-12
        assert corner.cost == sum(c[i] for c, i in zip(costs, corner.indices, strict=True))


def test_corners_lead_from_the_cheapest_to_the_whole_and_losses_fall_ever_slower() -> None:
    costs, losses = made_lists(7)
    corners = list_corners(costs, losses)
    assert corners[0].cost == sum(cost.min() for cost in costs)
    assert corners[-1].loss == 0
    slopes = [(a.loss - b.loss) / (b.cost - a.cost) for a, b in itertools.pairwise(corners)]
    assert len(slopes) > 3
    assert slopes == sorted(slopes, reverse=True)


def test_there_are_never_more_corners_than_asked_for() -> None:
    assert len(list_corners(*made_lists(1), most=4)) == 4


def test_lists_without_a_choice_have_one_corner() -> None:
    (corner,) = list_corners([np.array([3.0])], [np.array([0.5])])
    assert (corner.cost, corner.loss) == (3.0, 0.5)
    assert list_corners([], [])[0].cost == 0
