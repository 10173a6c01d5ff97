from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt import Recovery
from bottleneck_opt.recovery import distil
from bottleneck_opt.recovery.step_sizes import (
    LARGEST_RATE,
    PROBED,
    RATE_OF_OWN_LOSS,
    choose_rate,
    measure_agreement,
    pace,
)
from tests.recovery.samples import QUICK, X, data


@given(st.floats(0.05, 0.95), st.integers(0, 5))
def test_agreement_is_the_share_that_gradients_have_in_common(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    common, *own = torch.randn(9, 20_000, generator=generator)
    batches = [[part.reshape(100, -1) for part in (share**0.5 * common + (1 - share) ** 0.5 * each).split(10_000)]
               for each in own]  # fmt: skip
    assert measure_agreement(batches) == pytest.approx(share, abs=0.03)


def test_agreement_of_equal_gradients_is_whole() -> None:
    assert measure_agreement([[torch.tensor([1.0, 2.0]), torch.tensor([3.0])]] * 3) == pytest.approx(1)


def test_agreement_of_opposite_gradients_is_none_at_all() -> None:
    assert measure_agreement([[torch.ones(3)], [-torch.ones(3)]]) == 0


@pytest.mark.parametrize(
    "gradients", [[], [[torch.ones(3)]], [[torch.zeros(3)]] * 2, [[torch.full((3,), math.nan)]] * 2]
)
def test_agreement_is_unknown_without_two_finite_gradients(gradients: list[list[Tensor]]) -> None:
    assert measure_agreement(gradients) is None


@pytest.mark.parametrize(
    ("options", "start", "agreement", "expected"),
    [
        ({}, 1e-4, 0.5, 3e-3),
        ({}, 1e-4, 0.2, 1.5e-3),
        ({}, 1e-4, None, 1.5e-3),
        ({}, 1e-4, 0.0, 3e-3 * math.sqrt(0.02 / 0.98)),
        ({}, 1e-4, 1.0, 9e-3),
        ({}, 0.0, 0.5, 0.0),
        ({}, 1.0, 0.5, LARGEST_RATE),
        ({}, math.inf, 0.5, LARGEST_RATE),
        ({"learning_rate": 0.1}, 1e-4, 0.5, 0.1),
        ({"loss": lambda got, expected, batch: got.sum()}, 1e-4, None, RATE_OF_OWN_LOSS),
    ],
)
def test_the_step_size_follows_the_start_and_the_agreement_unless_one_or_a_loss_is_given(
    options: dict[str, Any], start: float, agreement: float | None, expected: float
) -> None:
    assert choose_rate(replace(QUICK, **options), start, agreement) == pytest.approx(expected)


def test_steps_grow_then_shrink_to_nothing() -> None:
    shares = [pace(Recovery(steps=100), step) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[-1] < 0.001


@pytest.mark.parametrize(
    ("examples", "options", "expected"),
    [
        (160, {}, PROBED),
        (60, {}, 3),
        (20, {}, 1),
        (60, {"mixes": True}, None),
        (60, {"learning_rate": 1e-3}, None),
        (60, {"loss": lambda got, expected, batch: (got - expected).square().mean()}, None),
    ],
)
def test_agreement_is_measured_on_batches_that_share_no_example(
    pair: tuple[nn.Module, nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    examples: int,
    options: dict[str, Any],
    expected: int | None,
) -> None:
    probed: list[int] = []

    def count(gradients: Iterable[Sequence[Tensor]]) -> float | None:
        listed = list(gradients)
        probed.append(len(listed))
        return measure_agreement(listed)

    monkeypatch.setattr("bottleneck_opt.recovery.distilling.measure_agreement", count)
    many = torch.cat([X + 0.1 * number for number in range(math.ceil(examples / len(X)))])[:examples]
    settings = replace(QUICK, steps=2, batch=16, **options)
    distil(pair[0], copy.deepcopy(pair[1]), data(many), settings)
    assert probed == ([] if expected is None else [expected])
