from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.last_factor import HELD_OUT
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.outcome import Correction
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.passes.spatial import Spatial
from bottleneck_opt.passes.tucker import Tucker
from bottleneck_opt.patches import take_pixels
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import ask, make_step
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.refitting import Refitted, choose_positions, refit
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Pass, Weights
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.summary import list_enough_notes
from tests.networks import Computes, Repeated, classifier, conv, noise, seeded

X = noise(40, 3, 8, 8)


def chain(**options: Any) -> nn.Sequential:
    layers = conv(3, 16), nn.ReLU(), conv(16, 16, **options), nn.ReLU(), conv(16, 16, **options)
    return nn.Sequential(*layers).eval()


def compress(
    net: nn.Module, x: Tensor, rank: int, each: Pass
) -> tuple[Subject, Plan, dict[str, list[Weights]], Refitted]:
    """Every layer that the pass handles at one rank, before and after refitting."""
    subject = prepare_subject(net, Request(x[:1], [x], len(x), None, 0, None, None))
    layers = subject.candidates.layers
    statistics = collect_statistics(subject.working, layers, subject.data, Sampling(len(x), 4, 0))
    steps, weights, curvatures = [], {}, {}
    for site in make_sites(subject.working, subject.traced, subject.candidates, statistics):
        answer = ask(each, site)
        if not isinstance(answer, tuple):
            continue
        option = min(answer, key=lambda priced: abs(priced.option.ranks[0] - rank))
        steps.append(make_step(site, option))
        weights[site.path], curvatures[site.path] = list(option.option.fill()), site.curvature()
    cost = subject.traced.cost
    plan = Plan("Net", "", (), 0, cost, cost, 0.0, 0.0, tuple(steps))
    done = refit(subject.working, subject.traced, plan, weights, curvatures, subject.data)
    return subject, plan, weights, done


def change(subject: Subject, plan: Plan, weights: Any, x: Tensor) -> float:
    """Squared change of the output by rewriting, relative to its variance."""
    with torch.no_grad():
        before, after = subject.working(x), rewrite_model(subject.working, plan, weights)(x)
    return float((before - after).square().mean() / before.var())


@pytest.mark.parametrize("each", [Reduce(), Expand(), Spatial(), Tucker()], ids=lambda each: each.name)
def test_refitting_brings_the_output_nearer_also_on_new_inputs(each: Pass) -> None:
    subject, plan, weights, done = compress(seeded(chain), X, 6, each)
    assert all(correction.after < correction.before for correction in done.corrections if correction.accepted)
    new = noise(64, 3, 8, 8, seed=9)
    assert change(subject, plan, done.weights, new) < change(subject, plan, weights, new)


@pytest.mark.parametrize("options", [{"groups": 2}, {"stride": 2}, {"padding_mode": "circular"}], ids=str)
def test_refitting_handles_other_kinds_of_layers(options: dict[str, Any]) -> None:
    x = noise(60, 3, 16, 16)
    subject, plan, weights, done = compress(seeded(lambda: chain(**options)), x, 4, Expand())
    assert not done.skipped
    assert change(subject, plan, done.weights, x) < change(subject, plan, weights, x)


def test_a_transposed_layer_is_refitted() -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 16), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1)))
    subject, plan, weights, done = compress(net, X, 5, Expand())
    assert change(subject, plan, done.weights, X) < change(subject, plan, weights, X)


def test_a_factor_that_is_exact_already_stays_as_it_is() -> None:
    _, plan, weights, done = compress(seeded(chain), X, 16, Reduce())
    last = plan.steps[-1].path
    assert all(correction.before < 1e-8 for correction in done.corrections)
    torch.testing.assert_close(done.weights[last][-1].weight, weights[last][-1].weight, atol=1e-3, rtol=1e-3)


def test_first_factors_are_left_alone() -> None:
    _, plan, weights, done = compress(seeded(chain), X, 6, Reduce())
    assert all(done.weights[step.path][0] is weights[step.path][0] for step in plan.steps)


def test_a_layer_called_several_times_is_left_as_first_fitted() -> None:
    _, _, _, done = compress(seeded(lambda: Repeated(16)), X, 6, Reduce())
    assert "it is called several times" in done.skipped.values()


def test_too_few_examples_leave_all_as_first_fitted() -> None:
    _, plan, weights, done = compress(seeded(chain), X[: HELD_OUT - 1], 6, Reduce())
    assert done.weights == weights
    assert set(done.skipped.values()) == {"fewer than 5 examples of one shape"}
    assert set(done.skipped) == {step.path for step in plan.steps}


def test_a_model_that_takes_one_batch_size_only_is_left_as_first_fitted() -> None:
    def fixed(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.b(net.a(x).relu().view(4, 16, 8, 8))
        return y

    net = seeded(lambda: Computes(fixed, a=conv(3, 16), b=conv(16, 16)))
    result = optimize(net, X[:4], calibration=list(X.split(4)), budget=0.6, progress=False)
    assert not result.corrections
    assert any("the model does not take 240 examples at once" in note for note in result.notes)


def test_examples_of_the_most_common_shape_are_joined() -> None:
    net = seeded(chain)
    data = [noise(6, 3, 8, 8), noise(2, 3, 12, 12), noise(6, 3, 8, 8, seed=2)]
    result = optimize(net, data[0][:1], calibration=data, budget=0.6, progress=False)
    assert result.corrections


def test_the_callers_model_and_the_working_copy_are_not_touched() -> None:
    net = seeded(chain)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    subject, _, _, _ = compress(net, X, 6, Reduce())
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.working.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_refitting_is_the_same_twice() -> None:
    first, second = (compress(seeded(chain), X, 6, Reduce())[3] for _ in range(2))
    assert first.corrections == second.corrections
    for path in first.weights:
        assert torch.equal(first.weights[path][-1].weight, second.weights[path][-1].weight)


def test_the_result_tells_what_was_corrected() -> None:
    result = optimize(seeded(chain), X[:1], calibration=X, budget=0.5, progress=False)
    assert [each.path for each in result.corrections] == [step.path for step in result.plan.steps]


def test_data_without_a_batch_axis_is_left() -> None:
    data = CalibrationData((Inputs((torch.ones(()), X)),), 40, "")
    subject = prepare_subject(seeded(chain), Request(X[:1], [X], 40, None, 0, None, None))
    cost = subject.traced.cost
    done = refit(subject.working, subject.traced, Plan("", "", (), 0, cost, cost, 0.0, 0.0, ()), {}, {}, data)
    assert done.weights == {}


def test_notes_say_that_many_examples_were_enough() -> None:
    net, x = seeded(lambda: classifier(width=16), dtype=torch.float32), noise(240, 3, 8, 8, dtype=torch.float32)
    result = optimize(net, x[:1], calibration=x, budget=0.4, recipe=Recipe(joint=0), progress=False)
    assert any(note.startswith("240 examples were enough") for note in result.notes)


def test_notes_say_when_half_of_the_examples_did_much_worse() -> None:
    refitted = Refitted({}, (Correction("a", 0.5, 0.1, True, halved=0.2), Correction("b", 0.5, 0.7, False, 9.0)), {})
    assert list_enough_notes(refitted, 16) == [
        "more examples would help: fitted to only half of them, the refitted layers' error on held-out examples was "
        "100% larger"
    ]


def test_examples_are_looked_at_in_other_places_so_that_together_they_tell_of_all() -> None:
    chosen = choose_positions(100, 8, 64, seed=0)
    assert chosen.shape == (64, 8)
    assert (chosen.diff(dim=1) > 0).all()
    assert len(chosen.unique()) > 95
    assert not torch.equal(chosen, choose_positions(100, 8, 64, seed=1))


def test_all_positions_are_looked_at_where_they_are_few() -> None:
    assert torch.equal(choose_positions(9, 9, 64, seed=0), torch.arange(9))


def test_layers_are_refitted_to_other_positions_of_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record(layer: LayerSpec, y: Tensor, positions: Tensor) -> Tensor:
        seen.append(positions)
        return take_pixels(layer, y, positions)

    monkeypatch.setattr("bottleneck_opt.refitting.take_pixels", record)
    monkeypatch.setattr("bottleneck_opt.refitting.MOST_SAMPLES", 3 * len(X))
    compress(seeded(chain), X, 8, Reduce())
    assert [each.shape for each in seen] == [(len(X), 3)] * 3
    assert all(len(each.unique(dim=0)) > len(X) // 2 for each in seen)
