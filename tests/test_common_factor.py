"""One first factor for several layers: what it predicts, what it keeps, and that nothing is lost at full rank."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bottleneck_opt.common_factor import Consumer, fit_common, refit_to_common
from bottleneck_opt.conditioning import shrink
from bottleneck_opt.factorization import fit_factors, fit_reduce, loss_of
from tests.networks import noise

WIDTH = 6


def consumer(out: int, offsets: int, seed: int, weight: Tensor | None = None, rank: int | None = None) -> Consumer:
    """A layer with random weight, covariance and curvature; ``rank`` confines its inputs to the same few directions."""
    w = noise(out, offsets, WIDTH, seed=seed) if weight is None else weight
    span = noise(WIDTH, rank, seed=99) if rank else torch.eye(WIDTH, dtype=torch.float64)
    samples = torch.einsum("nqr,ir->nqi", noise(200, offsets, span.shape[1], seed=seed + 1), span).flatten(1)
    curvature = noise(out, 3 * out, seed=seed + 2)
    return lambda: (w, shrink(samples.T @ samples / 200, 1e-10), curvature @ curvature.T)


def losses_at(consumers: Sequence[Consumer], projection: Tensor) -> list[float]:
    """``tr(G D S D^T)`` of each layer with this first factor, its second refitted."""
    first, seconds = refit_to_common(consumers, projection)
    made = [(each(), (second @ first).flatten(1)) for each, second in zip(consumers, seconds, strict=True)]
    return [loss_of(weight.flatten(1), product, s, g) for (weight, s, g), product in made]


def test_the_losses_are_those_of_the_factors_at_every_rank() -> None:
    consumers = [consumer(5, 1, 0), consumer(4, 9, 1)]
    found = fit_common(consumers, WIDTH)
    for rank in range(1, WIDTH + 1):
        measured = losses_at(consumers, found.projection[:rank])
        assert measured == pytest.approx(found.losses[:, rank].tolist(), rel=1e-6, abs=1e-8)


def test_two_identical_layers_equal_one() -> None:
    one = consumer(5, 9, 0)
    alone, both = fit_reduce(*one()), fit_common([one, one], WIDTH)
    assert torch.allclose(both.losses, alone.losses.expand(2, -1), rtol=1e-6, atol=1e-9)
    twice = refit_to_common([one, one], both.projection[:3])
    once = fit_factors(*one()[:2], alone.projection[:3])
    assert torch.allclose(twice[1][0] @ twice[0], once.second @ once.first)
    assert torch.allclose(twice[1][0], twice[1][1])


def test_inputs_confined_to_two_directions_need_rank_two() -> None:
    consumers = [consumer(5, 1, 0, rank=2), consumer(4, 9, 1, rank=2)]
    found = fit_common(consumers, WIDTH)
    assert bool((found.losses[:, 2] < 1e-7 * found.losses[:, 0]).all())
    assert bool((found.losses[:, 1] > 1e-3 * found.losses[:, 0]).all())


def test_weights_that_read_two_directions_need_rank_two() -> None:
    span = noise(2, WIDTH, seed=7)
    consumers = [
        consumer(out, offsets, seed, noise(out, offsets, 2, seed=seed) @ span)
        for seed, (out, offsets) in enumerate([(5, 1), (4, 9)])
    ]
    found = fit_common(consumers, WIDTH)
    assert bool((found.losses[:, 2] < 1e-7 * found.losses[:, 0]).all())


def test_it_loses_more_than_separate_first_factors_and_less_than_one_made_for_another_layer() -> None:
    consumers = [consumer(5, 1, 0), consumer(4, 9, 10)]
    together = fit_common(consumers, WIDTH).losses.sum(0)[3]
    separate = sum(float(fit_reduce(*each()).losses[3]) for each in consumers)
    foreign = [sum(losses_at(consumers, fit_reduce(*each()).projection[:3])) for each in consumers]
    assert separate < together < min(foreign)


def test_the_factors_are_balanced() -> None:
    consumers = [consumer(5, 1, 0), consumer(4, 9, 1)]
    first, seconds = refit_to_common(consumers, fit_common(consumers, WIDTH).projection[:4])
    stacked = torch.cat([each.flatten(0, 1) for each in seconds])
    assert torch.allclose(first.norm(dim=1), stacked.norm(dim=0))
