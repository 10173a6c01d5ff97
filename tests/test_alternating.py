from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bottleneck_opt as bo
from bottleneck_opt.alternating import MOST_MACS, Target, affordable_rounds, improve_projection, make_target
from bottleneck_opt.errors import InputError
from bottleneck_opt.factorization import find_basis, fit_factors, loss_of
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.sites import Site
from bottleneck_opt.tucker_factors import fit_tucker
from tests.layer_samples import correlated, double_conv, make_site, merged_weight, offers, random_curvature

RANK = 3
AFTER = pytest.mark.parametrize("after", [None, 4], ids=["two factors", "three factors"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _site() -> Site:
    x = correlated(torch.randn(8, 8, 9, 8, dtype=torch.float64))
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1)  # neighbours are alike, as in images
    return make_site(double_conv(8, 10, 3), smooth, curvature=random_curvature(10))


def _loss(site: Site, projection: Tensor, after: int | None) -> float:
    weight, covariance, curvature = site.offset_weight, site.covariance(), site.curvature()
    if after is None:
        factors = fit_factors(weight, covariance, projection)
        made = factors.second @ factors.first
    else:
        found = fit_tucker(weight, covariance, curvature, projection, after)
        made = torch.einsum("oa,aqr,ri->oqi", found.last, found.core, found.first)
    return loss_of(weight.flatten(1), made.flatten(1), covariance, curvature)


def _pose(site: Site) -> tuple[Target, Tensor]:
    weight, covariance, curvature = site.offset_weight, site.covariance(), site.curvature()
    return make_target(weight, covariance, curvature), find_basis(weight, covariance, curvature)[:RANK]


@AFTER
def test_no_round_raises_the_loss(after: int | None) -> None:
    site = _site()
    target, start = _pose(site)
    losses = [_loss(site, improve_projection(target, start, rounds=n, after=after), after) for n in range(8)]
    assert losses[3] < losses[0]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(losses))


@AFTER
def test_few_rounds_are_near_the_best_of_random_starts(after: int | None) -> None:
    near = []
    for seed in range(4):
        torch.manual_seed(seed)
        site = _site()
        _, start = _pose(site)
        best, third, last = (_best_of_five(site, after), *(_after(site, start, n, after) for n in (3, 100)))
        near.append(third / best)
        assert last <= 1.01 * best
    assert sum(near) / len(near) <= 1.02


def _best_of_five(site: Site, after: int | None) -> float:
    starts = [torch.randn(RANK, 8, dtype=torch.float64) for _ in range(5)]
    return min(_after(site, start, 100, after) for start in starts)


def _after(site: Site, start: Tensor, rounds: int, after: int | None) -> float:
    return _loss(site, improve_projection(_pose(site)[0], start, rounds=rounds, after=after), after)


def test_the_first_factor_solves_its_linear_equations() -> None:
    site = _site()
    target, start = _pose(site)
    found = improve_projection(target, start, rounds=200)
    second = fit_factors(site.offset_weight, target.covariance, found)
    difference = (site.offset_weight - second.second @ second.first).flatten(1)
    slope = (target.curvature @ difference @ target.covariance).view_as(site.offset_weight)
    gradient = torch.einsum("oqr,oqi->ri", second.second, slope)
    whole = torch.einsum("oqr,qio,ox->rix", second.second, target.crossed, target.curvature).sum(2)
    assert float(gradient.norm()) < 1e-3 * float(whole.norm())


@pytest.mark.parametrize("name", ["reduce", "spatial", "tucker"])
def test_rounds_improve_what_a_pass_fills_in(name: str) -> None:
    plain = _site()
    improved = replace(plain, rounds=3)
    for before, after in zip(offers(plain, name), offers(improved, name), strict=True):
        losses = [plain.predict_loss(merged_weight(each, plain.layer)) for each in (before, after)]
        assert losses[1] <= losses[0] * (1 + 1e-9)
        assert before.predicted_loss == after.predicted_loss


def test_a_layer_too_wide_for_one_round_gets_none() -> None:
    assert affordable_rounds(3, out=512, width=4608, rank=64) == 0
    assert affordable_rounds(3, out=8, width=72, rank=4) == 3
    assert affordable_rounds(3, out=1, width=1, rank=int(MOST_MACS) // 20) == 2


def test_a_negative_number_of_rounds_is_refused() -> None:
    with pytest.raises(InputError, match="rounds"):
        Recipe(rounds=-1)


def test_the_recipe_reaches_the_factors() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(12, 24, 3), torch.nn.ReLU(), torch.nn.Conv2d(24, 24, 3))
    data = correlated(torch.randn(8, 12, 10, 10))
    weights = [
        bo.optimize(
            net, data[:1], calibration=data, passes=["reduce"], budget=0.5, progress=False,
            recipe=Recipe(refit=False, joint=0, rounds=rounds),
        ).model.state_dict()
        for rounds in (0, 0, 3)
    ]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
