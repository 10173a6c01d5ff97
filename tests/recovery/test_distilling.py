from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import Recipe, Result, optimize
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.outcome import Recovered
from bottleneck_opt.progress import Shown
from bottleneck_opt.recovery import distil, list_recovery_notes
from bottleneck_opt.recovery.weights import copy_weights
from bottleneck_opt.working_copy import working_copy
from tests.networks import classifier, seeded
from tests.recovery.samples import QUICK, X, data, same, state


def test_where_nothing_does_better_the_start_is_kept_bit_for_bit(pair: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = pair
    before = state(student)
    found = distil(teacher, student, data(), replace(QUICK, learning_rate=30.0, reestimate_norms=False))
    assert not found.accepted
    assert found.after == found.before
    assert same(student, before)
    assert "nothing did better than the start" in list_recovery_notes(found)[0]


def test_the_best_weights_on_the_held_out_examples_are_kept(pair: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = pair
    looks: list[float] = []

    def loss(got: Tensor, expected: Tensor, batch: Inputs) -> Tensor:
        answer = (got - expected).square().mean()
        if not got.requires_grad:
            looks.append(float(answer))
        return answer

    found = distil(teacher, student, data(), replace(QUICK, loss=loss, learning_rate=0.02, reestimate_norms=False))
    assert len(looks) == 5
    assert found.before == looks[0]
    assert found.after == min(looks) < looks[0]
    assert found.best_step == 10 * looks.index(min(looks))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_training_with_the_best_so_far(
    pair: tuple[nn.Module, nn.Module], value: float
) -> None:
    teacher, student = pair
    steps = 0

    def loss(got: Tensor, expected: Tensor, batch: Inputs) -> Tensor:
        nonlocal steps
        steps += got.requires_grad
        return (got - expected).square().mean() * (value if steps > 25 else 1)

    found = distil(teacher, student, data(), replace(QUICK, loss=loss, reestimate_norms=False))
    assert (found.steps, found.stopped) == (26, "the loss was not finite")
    assert 0 < found.best_step <= 20
    assert found.after < found.before
    assert all(torch.isfinite(each).all() for each in student.parameters())


def test_a_model_that_is_almost_there_is_trained_in_smaller_steps(net: nn.Module) -> None:
    def train(rate: float | None) -> Recovered:
        student = working_copy(net)
        with torch.no_grad():
            for each in student.parameters():
                each.mul_(1 + 1e-4)
        return distil(working_copy(net), student, data(), replace(QUICK, learning_rate=rate, reestimate_norms=False))

    assert not train(0.004).accepted
    assert train(None).after < 0.5 * train(None).before


def test_steps_that_brought_nothing_are_taken_again_an_eighth_as_large(
    pair: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = pair
    too_large, told, smaller = 0.2, list[None](), copy.deepcopy(student)
    usual = replace(QUICK, reestimate_norms=False)
    assert not distil(teacher, copy.deepcopy(student), data(), replace(usual, learning_rate=too_large)).accepted
    expected = distil(teacher, smaller, data(), replace(usual, learning_rate=too_large / 8))
    assert expected.accepted
    monkeypatch.setattr("bottleneck_opt.recovery.distilling.choose_rate", lambda *given: too_large)
    found = distil(teacher, student, data(), usual, shown=Shown(lambda: told.append(None)))
    assert found == replace(expected, in_vain=40)
    assert same(student, smaller)
    assert len(told) == 40
    assert list_recovery_notes(found)[-1] == (
        "recovery: 40 steps of the usual size brought nothing, these are an eighth of it"
    )


@pytest.mark.parametrize("size", [{"learning_rate": 1.0}, {"loss": lambda got, expected, batch: 0 * got.sum()}])
def test_nothing_is_tried_twice_with_a_size_or_a_loss_that_was_given(
    pair: tuple[nn.Module, nn.Module], size: dict[str, Any]
) -> None:
    found = distil(*pair, data(), replace(QUICK, reestimate_norms=False, **size))
    assert (found.accepted, found.steps, found.in_vain) == (False, 40, 0)


def test_the_mean_of_weights_that_swing_is_better_than_the_last_ones(
    pair: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(memory: float) -> Recovered:
        monkeypatch.setattr("bottleneck_opt.recovery.distilling.MEMORY", memory)
        options = replace(QUICK, steps=400, batch=2, patience=4, learning_rate=0.03, reestimate_norms=False)
        return distil(pair[0], copy.deepcopy(pair[1]), data(), options)

    assert train(0.95).after < 0.7 * train(0.0).after


def test_training_ends_early_without_improvement(pair: tuple[nn.Module, nn.Module]) -> None:
    found = distil(*pair, data(), replace(QUICK, steps=500, learning_rate=1.0, patience=2))
    assert (found.steps, found.stopped) == (20, "no improvement in 20 steps")


def test_without_patience_all_steps_are_taken(pair: tuple[nn.Module, nn.Module]) -> None:
    found = distil(*pair, data(), replace(QUICK, steps=200, check_every=1, learning_rate=1.0))
    assert (found.steps, found.stopped) == (200, "")


def test_training_that_ran_to_its_end_did_not_end_early(pair: tuple[nn.Module, nn.Module]) -> None:
    found = distil(*pair, data(), replace(QUICK, steps=20, learning_rate=1.0, patience=2))
    assert (found.steps, found.stopped) == (20, "")


def test_equal_seeds_give_equal_weights_and_leave_the_global_random_state(
    net: nn.Module, pair: tuple[nn.Module, nn.Module]
) -> None:
    students = [copy.deepcopy(pair[1]) for _ in range(3)]
    found: list[Recovered] = []
    for student, seed in zip(students, (0, 0, 1), strict=True):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        found.append(distil(pair[0], student, data(), replace(QUICK, steps=40, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(students[0], students[1])
    assert not same(students[0], students[2])
    assert same(pair[0], working_copy(net))


def test_the_student_is_left_as_a_working_copy_is(pair: tuple[nn.Module, nn.Module]) -> None:
    distil(*pair, data(), replace(QUICK, steps=2))
    for model in pair:
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        assert not any(module.training or module._forward_hooks for module in model.modules())


def test_the_weights_can_be_put_into_another_copy(small: Result, pair: tuple[nn.Module, nn.Module]) -> None:
    model = copy.deepcopy(small.model)
    distil(*pair, data(), replace(QUICK, steps=10))
    copy_weights(pair[1], model)
    assert same(model, pair[1])


def test_following_the_blocks_brings_them_nearer(pair: tuple[nn.Module, nn.Module]) -> None:
    def inside(features: bool) -> float:
        teacher, student = pair[0], copy.deepcopy(pair[1])
        distil(teacher, student, data(), replace(QUICK, features=features, learning_rate=0.004))
        wanted, found = (model.get_submodule("blocks")(model.get_submodule("stem")(X)) for model in (teacher, student))
        return float((wanted - found).square().mean())

    assert inside(features=True) < 0.8 * inside(features=False)


def test_advance_is_called_for_every_step(pair: tuple[nn.Module, nn.Module]) -> None:
    calls: list[None] = []
    assert distil(*pair, data(), QUICK, shown=Shown(lambda: calls.append(None))).steps == len(calls) == 40


def test_every_look_at_the_held_out_examples_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    net, x = seeded(classifier, dtype=torch.float32), torch.randn(20, 3, 8, 8)
    given = replace(QUICK, learning_rate=0.004)
    optimize(net, x[:1], calibration=x, budget=0.4, recipe=Recipe(joint=0), recover=given, progress=True)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recover: step")]
    assert len(told) == 4
    assert "held-out loss" in told[0]
    optimize(net, x[:1], calibration=x, budget=0.4, recipe=Recipe(joint=0), recover=20, progress=True)
    assert "recover: step 20, loss on examples and new mixes" in capsys.readouterr().err
