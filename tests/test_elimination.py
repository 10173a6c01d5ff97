"""Which channels can go: losses are those of the refitted weight, and redundant channels go first."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bottleneck_opt.elimination import eliminate_channels, refit_kept
from bottleneck_opt.factorization import loss_of
from tests.networks import noise


def spread(weight: Tensor, kept: Tensor, width: int) -> Tensor:
    """A refitted weight ``(out, offsets, kept)`` among zeros ``(out, offsets, in)``."""
    full = weight.new_zeros(*weight.shape[:2], width)
    full[..., kept] = weight
    return full


def problem(out: int, offsets: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, a covariance and a curvature."""
    mixing = noise(offsets * width, offsets * width, seed=seed + 1)
    covariance = mixing @ mixing.T / len(mixing) + 0.1 * torch.eye(len(mixing), dtype=torch.float64)
    root = noise(out, out, seed=seed + 2)
    return noise(out, offsets, width, seed=seed), covariance, root @ root.T + torch.eye(out, dtype=torch.float64)


def loss_of_keeping(kept: Tensor, weight: Tensor, covariance: Tensor, curvature: Tensor) -> float:
    fitted = spread(refit_kept(weight, covariance, kept), kept, weight.shape[2])
    return loss_of(weight.flatten(1), fitted.flatten(1), covariance, curvature)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 3, 9]), st.integers(1, 8), st.integers(0, 1000))
def test_losses_are_those_of_the_refitted_weights(out: int, offsets: int, width: int, seed: int) -> None:
    weight, covariance, curvature = problem(out, offsets, width, seed)
    found = eliminate_channels(weight, covariance, curvature)
    assert sorted(found.order.tolist()) == list(range(width))
    for count in range(1, width + 1):
        kept = torch.tensor(found.kept(count))
        expected = loss_of_keeping(kept, weight, covariance, curvature)
        assert float(found.losses[count]) == pytest.approx(expected, rel=1e-6, abs=1e-9 * float(found.losses[0]))


def test_more_channels_never_lose_more() -> None:
    losses = eliminate_channels(*problem(5, 9, 12)).losses
    assert bool((losses.diff() <= 1e-12).all())


def test_the_first_channel_to_go_is_the_one_that_costs_least() -> None:
    weight, covariance, curvature = problem(4, 3, 6)
    found = eliminate_channels(weight, covariance, curvature)
    every = itertools.combinations(range(6), 5)
    least = min(loss_of_keeping(torch.tensor(kept), weight, covariance, curvature) for kept in every)
    assert float(found.losses[5]) == pytest.approx(least)


@pytest.mark.parametrize("most_exact", [4096, 0])
def test_channels_that_repeat_others_go_for_nothing(most_exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck_opt.elimination.MOST_EXACT", most_exact)
    weight, small, curvature = problem(4, 9, 5)
    twice = torch.cat([torch.eye(5, dtype=torch.float64)] * 2)
    repeat = torch.block_diag(*[twice] * 9)
    covariance = repeat @ small @ repeat.T + 1e-9 * torch.eye(90, dtype=torch.float64)
    found = eliminate_channels(torch.cat([weight, weight], 2), covariance, curvature)
    assert {channel % 5 for channel in found.kept(5)} == set(range(5))
    assert float(found.losses[5]) < 1e-6 * float(found.losses[0])


def test_a_channel_that_nobody_reads_goes_first() -> None:
    weight, covariance, curvature = problem(3, 9, 4)
    weight[..., 2] = 0
    covariance = torch.eye(len(covariance), dtype=torch.float64)
    assert eliminate_channels(weight, covariance, curvature).order[-1] == 2
