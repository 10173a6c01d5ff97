"""What an optimisation hands over for the report beside what it did."""

import json

import pytest
import torch
from torch import nn

from bottleneck_opt import Result, optimize
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.latency import compare_layers
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.report import report_json
from tests.networks import Residual, noise, seeded


@pytest.fixture(scope="module")
def result() -> Result:
    recipe = Recipe(refit=False, joint=0, rounds=0)
    return optimize(seeded(Residual), noise(2, 3, 8, 8), budget=0.6, recipe=recipe, progress=False)


def test_the_frontier_leads_from_the_smallest_plan_to_the_whole_model(result: Result) -> None:
    costs, losses = [each.cost.macs for each in result.frontier], [each.loss for each in result.frontier]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert (losses[-1], costs[-1]) == (0.0, result.before.cost.macs)


def test_the_chosen_plan_is_not_better_than_the_frontier(result: Result) -> None:
    cheaper = [each.loss for each in result.frontier if each.cost.macs >= result.plan.after.macs]
    assert result.plan.predicted_loss >= min(cheaper)


def test_each_curve_holds_the_chosen_rank_and_falls(result: Result) -> None:
    curves = {curve.path: curve for curve in result.curves}
    assert curves
    for step in result.plan.steps:
        if step.path in curves:
            curve = curves[step.path]
            assert curve.losses[curve.ranks.index(step.ranks)] == step.predicted_loss
            assert curve.costs[curve.ranks.index(step.ranks)] == step.after
            assert list(curve.losses) == sorted(curve.losses, reverse=True)


def test_the_time_in_each_rewritten_layer_is_known_before_and_after(result: Result) -> None:
    speed = result.verification.speed
    assert speed is not None
    assert [path for path, _, _ in speed.layers] == [step.path for step in result.plan.steps]
    assert all(before > 0 and after > 0 for _, before, after in speed.layers)


def test_layers_are_not_timed_where_they_return_before_their_work_is_done() -> None:
    net, inputs = nn.Sequential(nn.Linear(2, 2)), Inputs((torch.zeros(1, 2),))
    assert compare_layers(net, net, inputs, ["0"], device=torch.device("cuda")) == ()
    assert [path for path, _, _ in compare_layers(net, net, inputs, ["0"], device=torch.device("cpu"))] == ["0"]


def test_frontier_and_curves_are_in_the_json(result: Result) -> None:
    found = json.loads(report_json(result))
    assert found["frontier"][-1]["predicted_loss"] == 0
    assert len(found["curves"]) == len(result.curves)
