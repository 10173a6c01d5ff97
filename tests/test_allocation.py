from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from bottleneck_opt.allocation import Allocation, allocate
from bottleneck_opt.budget import Budget
from bottleneck_opt.errors import BudgetError
from bottleneck_opt.graph import Cost
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.proposing import Priced, Proposal
from bottleneck_opt.sites import Option, Site
from tests.layer_samples import make_site
from tests.networks import classifier, noise, seeded

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
TEMPLATE = make_site(nn.Linear(2, 2, dtype=torch.float64), noise(4, 2))
Entry = tuple[int, int, float]


def priced(macs: int, params: int, loss: float) -> Priced:
    return Priced("expand", Option("expand", (1,), (2,), (), loss, tuple), Cost(macs, params))


def proposal(number: int, cost: Cost, options: Sequence[Entry]) -> Proposal:
    site: Site = replace(TEMPLATE, path=f"layer{number}", cost=cost)
    return Proposal(site, tuple(priced(*option) for option in options), ())


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Proposal], Cost]:
    """Proposals whose options pay, and the cost of a model that also holds something else."""
    made = []
    for number in range(draw(st.integers(1, 5))):
        macs, params = draw(st.integers(1, 30)), draw(st.integers(1, 30))
        entry = st.tuples(st.integers(0, macs), st.integers(0, params), st.integers(0, 50).map(float))
        made.append(proposal(number, Cost(macs, params), draw(st.lists(entry, max_size=4))))
    rest = Cost(draw(st.integers(0, 20)), draw(st.integers(0, 20)), 7)
    return made, sum((each.site.cost for each in made), rest)


def all_choices(proposals: Sequence[Proposal], total: Cost) -> list[tuple[Cost, float]]:
    """Cost and loss of every possible choice."""
    dense = [Priced("", Option("", (), (), (), 0.0, tuple), each.site.cost) for each in proposals]
    lists = [(leave, *each.options) for leave, each in zip(dense, proposals, strict=True)]
    rest = total - sum((each.site.cost for each in proposals), Cost())
    return [
        (sum((one.cost for one in picked), rest), sum(one.option.predicted_loss for one in picked))
        for picked in itertools.product(*lists)
    ]


def brute_force(proposals: Sequence[Proposal], total: Cost, limits: Mapping[str, int]) -> float | None:
    """The least loss within the limits."""
    return min((loss for cost, loss in all_choices(proposals, total) if within(cost, limits)), default=None)


def within(cost: Cost, limits: Mapping[str, int]) -> bool:
    return all(getattr(cost, unit) <= limit for unit, limit in limits.items())


def check(found: Allocation, proposals: Sequence[Proposal], total: Cost) -> None:
    """The allocation adds up to what it says."""
    chosen = [one for one in found.chosen if one is not None]
    replaced = [each.site.cost for each, one in zip(proposals, found.chosen, strict=True) if one is not None]
    cost = sum((one.cost for one in chosen), total) - sum(replaced, Cost())
    assert (found.cost.macs, found.cost.params) == (cost.macs, cost.params)
    assert found.cost.other == total.other
    assert found.loss == pytest.approx(sum(one.option.predicted_loss for one in chosen))
    for each, one in zip(proposals, found.chosen, strict=True):
        assert one is None or one in each.options


def allocate_beside_brute_force(
    proposals: list[Proposal], total: Cost, limits: dict[str, int]
) -> tuple[Allocation, float] | None:
    """A sound allocation with brute force's least loss, or None where both say that the limits cannot be reached."""
    best = brute_force(proposals, total, limits)
    if best is None:
        with pytest.raises(BudgetError, match="cannot be reached"):
            allocate(proposals, total, limits, contract=True)
        return None
    found = allocate(proposals, total, limits, contract=True)
    check(found, proposals, total)
    assert within(found.cost, limits)
    assert found.met
    return found, best


@PROPERTY
@given(models(), st.sampled_from(["macs", "params"]), st.floats(0, 1))
def test_one_budget_equals_brute_force(model: tuple[list[Proposal], Cost], unit: str, share: float) -> None:
    proposals, total = model
    limits = {unit: int(share * getattr(total, unit))}
    answer = allocate_beside_brute_force(proposals, total, limits)
    if answer is None:
        return
    found, best = answer
    assert found.gap == 0
    assert found.loss == pytest.approx(best)


@PROPERTY
@given(models(), st.floats(0, 1), st.floats(0, 1))
def test_two_budgets_are_within_the_gap_of_brute_force(
    model: tuple[list[Proposal], Cost], macs: float, params: float
) -> None:
    proposals, total = model
    limits = {"macs": int(macs * total.macs), "params": int(params * total.params)}
    answer = allocate_beside_brute_force(proposals, total, limits)
    if answer is None:
        return
    found, best = answer
    assert best - 1e-9 <= found.loss <= best + found.gap + 1e-9


@PROPERTY
@given(models(), st.sampled_from(["macs", "params"]))
def test_more_budget_never_loses_more(model: tuple[list[Proposal], Cost], unit: str) -> None:
    proposals, total = model
    least = min(getattr(cost, unit) for cost, _ in all_choices(proposals, total))
    limits = range(least, getattr(total, unit) + 1)
    losses = [allocate(proposals, total, {unit: limit}, contract=True).loss for limit in limits]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


@PROPERTY
@given(models(), st.sampled_from(["macs", "params"]))
def test_an_unreachable_budget_names_the_smallest_reachable(model: tuple[list[Proposal], Cost], unit: str) -> None:
    proposals, total = model
    least = min(getattr(cost, unit) for cost, _ in all_choices(proposals, total))
    assume(least > 0)
    with pytest.raises(BudgetError, match=f"smallest reachable is {unit}=") as caught:
        allocate(proposals, total, {unit: least - 1}, contract=True)
    assert caught.value.smallest == {unit: least / getattr(total, unit)}
    named = float(str(caught.value).partition("reachable is ")[2].partition(f"{unit}=")[2].split()[0].rstrip("."))
    again = Budget(**{unit: named}).limits(total)
    assert allocate(proposals, total, again, contract=True).met


@PROPERTY
@given(models(), st.sampled_from(["macs", "params"]))
def test_an_aim_out_of_reach_gives_the_smallest_plan(model: tuple[list[Proposal], Cost], unit: str) -> None:
    proposals, total = model
    choices = all_choices(proposals, total)
    least = min(getattr(cost, unit) for cost, _ in choices)
    found = allocate(proposals, total, {unit: least - 1}, contract=False)
    check(found, proposals, total)
    assert not found.met
    assert getattr(found.cost, unit) == least
    assert found.loss == min(loss for cost, loss in choices if getattr(cost, unit) == least)


def test_two_budgets_that_only_a_detour_meets() -> None:
    """Either layer alone must take the option that another unit makes look worse."""
    options = [(1, 9, 1.0), (9, 1, 1.0)]
    proposals = [proposal(number, Cost(10, 10), options) for number in range(2)]
    found = allocate(proposals, Cost(20, 20), {"macs": 10, "params": 10}, contract=True)
    assert found.met
    assert sorted(one.cost.macs for one in found.chosen if one is not None) == [1, 9]


def test_no_room_in_one_unit_is_no_room() -> None:
    proposals = [proposal(0, Cost(10, 10), [(5, 1, 0.0), (6, 0, 9.0)])]
    found = allocate(proposals, Cost(10, 10), {"macs": 6, "params": 0}, contract=True)
    assert found.cost.params == 0
    assert found.loss == 9


def test_two_budgets_of_realistic_size_leave_a_small_gap() -> None:
    generator = torch.Generator().manual_seed(0)
    proposals = []
    for number in range(20):
        scale = 10 ** (4 + 3 * torch.rand(2, generator=generator))
        ratios = [
            (step / 12, 0.2 * (1 - step / 12) ** 3 * float(torch.rand((), generator=generator)))
            for step in range(1, 12)
        ]
        options = [(int(scale[0] * 100 * r), int(scale[1] * r**0.8), loss) for r, loss in ratios]
        proposals.append(proposal(number, Cost(int(scale[0] * 100), int(scale[1])), options))
    total = sum((each.site.cost for each in proposals), Cost())
    found = allocate(proposals, total, {"macs": total.macs // 2, "params": total.params // 2}, contract=True)
    assert found.met
    assert found.gap <= 0.1 * found.loss


def test_a_budget_of_everything_changes_nothing() -> None:
    net, x = seeded(classifier), noise(1, 3, 8, 8)
    result = optimize(net, x, budget=1.0, progress=False)
    assert result.plan.steps == ()
    assert result.after.cost == result.before.cost


@pytest.mark.parametrize(
    ("budget", "ratios"),
    [
        (0.7, {"macs": 0.7}),
        ("params=0.6", {"params": 0.6}),
        ("macs=0.6, params=0.7", {"macs": 0.6, "params": 0.7}),
    ],
)
def test_the_results_cost_is_within_the_budget(budget: Any, ratios: Mapping[str, float]) -> None:
    result = optimize(seeded(classifier), noise(1, 3, 8, 8), budget=budget, progress=False)
    before, after = result.before.cost, result.after.cost
    assert all(getattr(after, unit) <= ratio * getattr(before, unit) for unit, ratio in ratios.items())
    assert result.budget_met
    assert (result.plan.after.macs, result.plan.after.params) == (after.macs, after.params)


def test_optimize_names_the_smallest_reachable_budget() -> None:
    with pytest.raises(BudgetError, match=r"macs of at most 145 .* smallest reachable is macs=0\.\d+\. Ask for that"):
        optimize(seeded(classifier), noise(1, 3, 8, 8), budget=0.001, progress=False)
