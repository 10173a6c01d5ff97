from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.joint.fitting import HELD_OUT, Effort, Joint, find_layers, fit_jointly, split_data, thin_data
from bottleneck_opt.joint.metric import measure_metric
from bottleneck_opt.joint.problem import Problem, square
from bottleneck_opt.joint.vectors import add, dot
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.rewriting import correct_layers
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.working_copy import copy_model
from tests.networks import Computes, Repeated, Residual, Tied, conv, noise, seeded

X = noise(40, 3, 8, 8)


def data(x: Tensor = X, size: int = 16) -> CalibrationData:
    return CalibrationData(tuple(Inputs((part,)) for part in x.split(size)), len(x), "")


def scales(net: nn.Module, x: Tensor = X) -> tuple[OutputScale, ...]:
    with torch.no_grad():
        y = net(x)
    return (OutputScale(float(y.std()), y[0].numel(), 1),)


def disturbed(net: nn.Module, amount: float = 0.1) -> nn.Module:
    """A copy with other weights."""
    made = copy_model(net)
    with torch.no_grad():
        for number, each in enumerate(made.parameters()):
            each.add_(amount * float(each.std()) * noise(*each.shape, seed=number) if each.numel() > 1 else 0)
    return made.requires_grad_(False)


def fit(net: nn.Module, other: nn.Module, x: Tensor = X, iterations: int = 8) -> Joint:
    paths = [path for path, _ in net.named_modules()]
    return fit_jointly(net, other, paths, data(x), scales(net, x), Effort(iterations))


def change(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net(x) - other(x)).square().mean() / net(x).var())


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4)),
    "strided and grouped": lambda: nn.Sequential(conv(3, 8, stride=2), nn.ReLU(), conv(8, 8, groups=2)),
    "depthwise": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), conv(8, 4, 1)),
    "transposed": lambda: nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1)),
    "residual": lambda: Residual(8),
    "called three times": lambda: Repeated(8),
}


@pytest.mark.parametrize("kind", NETS)
def test_the_output_comes_nearer_also_on_new_inputs(kind: str) -> None:
    net = seeded(NETS[kind]).requires_grad_(False)
    other = disturbed(net)
    found = fit(net, other)
    assert not found.skipped
    assert found.after < found.before
    new, before = noise(40, 3, 8, 8, seed=9), copy_model(other)
    correct_layers(other, found.weights)
    assert change(net, other, new) < 0.7 * change(net, before, new)


def test_one_linear_layer_is_solved_exactly() -> None:
    net = seeded(lambda: nn.Linear(6, 4)).requires_grad_(False)
    x, other = noise(200, 6), disturbed(net)
    found = fit_jointly(net, other, [""], data(x, 64), scales(net, x), Effort(16, ridge=0.0))
    assert found.after < 1e-9 * found.before
    torch.testing.assert_close(found.weights[""].weight, net.weight, atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    net = seeded(NETS["chain"]).requires_grad_(False)
    other = disturbed(net)
    before = {name: each.clone() for name, each in other.state_dict().items()}
    fit(net, other)
    assert all(torch.equal(before[name], each) for name, each in other.state_dict().items())
    assert not any(each.requires_grad for each in other.parameters())


def test_nothing_is_changed_where_nothing_helps() -> None:
    net = seeded(NETS["chain"]).requires_grad_(False)
    found = fit(net, copy_model(net))
    assert found.weights == {}
    assert found.after == found.before == 0


def test_the_slopes_are_those_of_the_outputs() -> None:
    net = seeded(NETS["strided and grouped"]).requires_grad_(False)
    problem = Problem(net, net, find_layers(net, ["0", "2"]), data(), scales(net), 0)
    start, outputs = problem.weights(), problem.outputs()
    pull = [noise(*each.shape, seed=5) for each in outputs]
    direction = {path: noise(*each.shape, seed=6) for path, each in start.items()}
    slope = dot(problem.pull_back(pull), direction)
    problem.load(add(start, 1e-6, direction))
    pushed = [(after - before) / 1e-6 for after, before in zip(problem.outputs(), outputs, strict=True)]
    assert slope == pytest.approx(float(sum((a * b).sum() for a, b in zip(pull, pushed, strict=True))), rel=1e-3)


def test_the_metric_is_undone_by_its_inverse() -> None:
    net = seeded(NETS["depthwise"]).requires_grad_(False)
    layers = find_layers(net, ["0", "2", "3"])
    metric = measure_metric(net, layers, data(), scales(net), 0)
    vector = {path: noise(*each.shape) for path, each in Problem(net, net, layers, data(), (), 0).weights().items()}
    back = metric.solve(metric.apply(vector))
    assert all(torch.allclose(back[path], each, atol=1e-6) for path, each in vector.items())


def test_the_metric_predicts_the_change_of_a_single_linear_layer() -> None:
    net = seeded(lambda: nn.Linear(5, 3)).requires_grad_(False)
    x = noise(4000, 5) + 1.0
    layers = find_layers(net, [""])
    metric = measure_metric(net, layers, data(x, 500), scales(net, x), 0)
    problem = Problem(net, net, layers, data(x, 500), scales(net, x), 0)
    start, outputs = problem.weights(), problem.outputs()
    moved = {"": noise(*start[""].shape, seed=3)}
    problem.load(add(start, 1.0, moved))
    measured = square([a - b for a, b in zip(problem.outputs(), outputs, strict=True)])
    assert dot(moved, metric.apply(moved)) == pytest.approx(measured, rel=0.1)


def test_layers_that_share_their_weight_or_are_no_stock_layers_stay() -> None:
    class Own(nn.Conv2d):
        pass

    normed = torch.nn.utils.parametrizations.weight_norm(conv(8, 8))
    net = nn.Sequential(Tied(8), Own(8, 8, 3), normed, conv(8, 8), conv(8, 8))
    assert list(find_layers(net, ["0", "1", "2", "3"])) == ["3"]


def test_every_fifth_example_is_held_out() -> None:
    fitting, held_out = split_data(data(torch.arange(12.0)[:, None], 5))
    assert torch.cat([batch.args[0] for batch in held_out.batches]).flatten().tolist() == [0, 5, 10]
    assert (fitting.examples, held_out.examples) == (9, 3)


def test_a_model_that_takes_one_batch_size_only_is_left_with_a_reason() -> None:
    def fixed(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.b(net.a(x).relu().view(8, 8, 8, 8))
        return y

    net = seeded(lambda: Computes(fixed, a=conv(3, 8), b=conv(8, 8)))
    result = optimize(net, X[:8], calibration=list(X.split(8)), budget=0.6, progress=False)
    assert any("not fitted together" in note and "shape" in note for note in result.notes)


def test_made_up_inputs_are_not_fitted_to() -> None:
    result = optimize(seeded(NETS["chain"]), X[:1], budget=0.6, progress=False)
    assert any("not fitted together" in note and "made up" in note for note in result.notes)


def test_large_models_are_left_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bottleneck_opt.joint.fitting.MOST_MACS", 1e5)
    result = optimize(seeded(NETS["chain"]), X[:1], calibration=X, budget=0.6, progress=False)
    assert any("not fitted together" in note and "too large" in note for note in result.notes)


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 200))
def test_a_part_of_the_examples_is_spread_evenly_in_whole_fives(examples: int, size: int, wanted: int) -> None:
    numbers = torch.arange(examples, dtype=torch.float64)
    found = thin_data(data(numbers, size), wanted)
    taken = torch.cat([batch.args[0] for batch in found.batches])
    assert found.examples == len(taken)
    if found.examples == examples:
        assert wanted > examples - 2 * HELD_OUT
        return
    assert wanted <= len(taken) < wanted + HELD_OUT
    fives = taken.reshape(-1, HELD_OUT)
    assert (fives % HELD_OUT == torch.arange(HELD_OUT)).all()
    gaps = fives[:, 0].diff() / HELD_OUT
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_mixes_are_not_thinned() -> None:
    mixed = replace(data(), mixes=10)
    assert thin_data(mixed, 5) is mixed


def test_many_examples_are_fitted_to_in_part_rather_than_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(160, 3, 8, 8)

    def run(recipe: Recipe | None) -> tuple[str, ...]:
        net = seeded(NETS["chain"])
        return optimize(net, x[:1], calibration=x, budget=0.6, recipe=recipe, progress=False).notes

    macs = optimize(seeded(NETS["chain"]), x[:1], calibration=x, budget=0.6, progress=False).plan.after.macs
    monkeypatch.setattr("bottleneck_opt.joint.fitting.MOST_MACS", 4.2 * macs * 16 * 80)
    assert any("together to the original's outputs on 80 of the examples" in note for note in run(None))
    assert any("together to the original's outputs: on" in note for note in run(Recipe(joint=16)))


def test_excluded_layers_keep_their_weights() -> None:
    net = seeded(NETS["chain"])
    result = optimize(net, X[:1], calibration=X, budget=0.7, exclude="4", progress=False)
    last = result.model.get_submodule("4")
    assert torch.equal(last.get_parameter("weight"), net.get_submodule("4").get_parameter("weight"))


def test_layers_that_are_not_rewritten_are_fitted_too() -> None:
    net = seeded(NETS["chain"])
    result = optimize(net, X[:1], calibration=X, budget=0.7, progress=False)
    dense = next(path for path in ("0", "2", "4") if path not in {step.path for step in result.plan.steps})
    assert not torch.equal(
        result.model.get_submodule(dense).get_parameter("weight"), net.get_parameter(f"{dense}.weight")
    )


def test_a_run_with_it_is_nearer_and_the_same_twice() -> None:
    net = seeded(NETS["chain"])
    runs = [
        optimize(net, X[:1], calibration=X, budget=0.5, recipe=recipe, progress=False)
        for recipe in (Recipe(joint=0), None, None)
    ]
    changes = [run.verification.measured_change for run in runs]
    assert changes[0] is not None
    assert changes[1] is not None
    assert changes[1] < 0.9 * changes[0]
    assert changes[1] == changes[2]
    assert any("recipe= leaves it out" in note for note in runs[0].notes)
    assert any("fitted together to" in note for note in runs[1].notes)


def test_a_layer_with_very_wide_inputs_is_fitted_in_little_memory() -> None:
    net = seeded(lambda: nn.Sequential(conv(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 32 * 32, 3)))
    seen, layers = data(noise(10, 2, 32, 32)), {"3": LayerSpec("linear", "Linear", 4096, 3)}
    metric = measure_metric(net, layers, seen, (OutputScale(1.0, 3.0, 1),), seed=0)
    assert metric.inner["3"].shape == (1, 4097)
    direction = {"3": noise(1, 3, 4097)}
    back = metric.solve(metric.apply(direction))["3"]
    torch.testing.assert_close(back, direction["3"])
