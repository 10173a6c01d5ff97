from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bottleneck_opt.errors import InputError
from bottleneck_opt.evaluating import Answer
from bottleneck_opt.floor import Floor, bound_mean, check_max_drop


def test_one_number_is_held_against_the_floor_itself() -> None:
    floor = Floor((0.9,), 0.1)
    assert floor.judge(Answer((0.9 - 0.1,))).held
    assert not floor.judge(Answer((math.nextafter(0.9 - 0.1, 0.0),))).held


def test_scores_of_samples_hold_only_where_the_mean_difference_surely_does() -> None:
    before = tuple(np.random.default_rng(0).normal(10, 5, 100))  # the samples differ far more than the models
    steady = Floor(before, 0.1).judge(Answer(tuple(each - 0.05 for each in before)))
    assert steady.held
    assert steady.worst == pytest.approx(np.mean(before) - 0.05)
    lucky = tuple(each - 0.05 + (10.0 if index % 2 else -10.0) for index, each in enumerate(before))
    unsteady = Floor(before, 0.1).judge(Answer(lucky))
    assert unsteady.metric == pytest.approx(steady.metric)
    assert not unsteady.held
    assert unsteady.worst is not None
    assert unsteady.worst < np.mean(before) - 1


def test_another_number_of_scores_does_not_hold() -> None:
    verdict = Floor((1.0, 1.0), 0.5).judge(Answer((2.0,)))
    assert not verdict.held
    assert verdict.fault == "evaluate returned 1 scores; expected 2, as for the original"


def test_an_evaluation_that_failed_does_not_hold() -> None:
    assert not Floor((1.0,), 1e9).judge(Answer(fault="returned nan")).held


def test_the_bound_lies_below_the_true_mean_about_as_often_as_it_should() -> None:
    random = np.random.default_rng(0)
    below = [bound_mean(random.normal(0, 1, 60).tolist(), seed) <= 0 for seed in range(300)]
    assert 0.9 < np.mean(below) < 0.99


def test_the_bound_is_never_above_the_mean_and_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(1).exponential(1.0, 25).tolist()
    assert bound_mean(values, 3) == bound_mean(values, 3) <= np.mean(values)
    assert bound_mean([-0.01] * 7, 0) == np.mean([-0.01] * 7)


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, "0.01", True])
def test_what_is_no_drop_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^max_drop: got .*; expected a finite number of at least 0"):
        check_max_drop(wrong, measurable=True)


def test_a_drop_of_nothing_is_allowed_and_one_without_a_metric_is_not() -> None:
    check_max_drop(0, measurable=True)
    with pytest.raises(InputError, match=r"^max_drop: got 0.01 without evaluate=; expected a function"):
        check_max_drop(0.01, measurable=False)
