from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.errors import InputError, RewriteError
from bottleneck_opt.evaluating import run_evaluate
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.verification import measure_change
from tests.networks import Computes, noise

X = noise(6, 4)
DATA = CalibrationData((Inputs((X[:2],)), Inputs((X[2:],))), 6, "six")
UNIT = (OutputScale(1.0, 4.0, 1),)


def same(net: Any, x: Tensor) -> Tensor:
    return x


def change(before: Any, after: Any, scales: tuple[OutputScale, ...] = UNIT) -> Any:
    return measure_change(Computes(before), Computes(after), DATA, scales)


def test_no_change_is_measured_as_none() -> None:
    assert vars(change(same, same)) == {"relative": 0.0, "kl": 0.0, "agreement": 1.0}


def test_the_change_is_relative_to_the_outputs_spread() -> None:
    assert change(same, lambda net, x: x + 0.5).relative == pytest.approx(0.25)
    assert change(same, lambda net, x: x + 0.5, (OutputScale(2.0, 4.0, 1),)).relative == pytest.approx(0.25 / 4)


def test_the_divergence_is_that_of_the_softmax() -> None:
    measured = change(same, lambda net, x: 2 * x)
    p, q = X.softmax(1), (2 * X).softmax(1)
    assert measured.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    assert measured.agreement == 1.0
    assert change(same, lambda net, x: -x).agreement == 0.0


def test_outputs_of_other_shapes_have_no_divergence() -> None:
    maps = change(lambda net, x: x[:, :, None], lambda net, x: x[:, :, None] + 1)
    assert maps.kl is None
    assert maps.agreement is None
    assert maps.relative == pytest.approx(1.0)


def test_every_leaf_of_the_output_counts() -> None:
    scales = (OutputScale(1.0, 4.0, 2), OutputScale(3.0, 4.0, 2))
    measured = change(lambda net, x: {"a": x, "b": [x]}, lambda net, x: {"a": x + 1, "b": [x + 3]}, scales)
    assert measured.relative == pytest.approx(1.0)


def test_a_change_of_shape_is_refused() -> None:
    with pytest.raises(RewriteError, match=r"outputs have shapes \[\(2, 3\)\]; expected \[\(2, 4\)\]"):
        change(same, lambda net, x: x[:, :3])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_no_longer_finite_is_refused(value: float) -> None:
    with pytest.raises(RewriteError, match="the rewritten model's output is not finite"):
        change(same, lambda net, x: x * value)


def test_an_output_that_never_was_finite_is_not_held_against_it() -> None:
    def masked(net: Any, x: Tensor) -> Tensor:
        return x[:, :, None].masked_fill(x[:, :, None] > 0, -math.inf)

    assert change(masked, masked).relative == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [(0.5, 0.5), (1, 1.0), (True, 1.0), ([0, 1], 0.5), (torch.tensor([1.0, 3.0]), 2.0), (torch.tensor(4), 4.0)],
)
def test_scores_are_numbers_or_their_mean(answer: Any, score: float) -> None:
    assert run_evaluate(lambda model: answer, nn.Identity(), "before") == score


@pytest.mark.parametrize("answer", ["0.5", None, math.nan, [], [None], (1.0, "a"), {"a": 1.0}])
def test_anything_else_is_refused(answer: Any) -> None:
    with pytest.raises(
        InputError, match=r"^evaluate: returned .* for the model after; expected a finite number, or one"
    ):
        run_evaluate(lambda model: answer, nn.Identity(), "after")


def test_an_evaluation_that_fails_is_told_with_its_own_error() -> None:
    def failing(model: nn.Module) -> float:
        raise KeyError("labels")

    with pytest.raises(InputError, match=r"^evaluate: failed on the model after: KeyError: 'labels'\.") as told:
        run_evaluate(failing, nn.Identity(), "after")
    assert isinstance(told.value.__cause__, KeyError)


def test_a_long_answer_is_not_repeated() -> None:
    with pytest.raises(InputError, match="returned str for the model after"):
        run_evaluate(lambda model: "x" * 1000, nn.Identity(), "after")
