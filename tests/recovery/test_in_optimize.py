from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import InputError, Recipe, Recovery, Result, load, optimize
from bottleneck_opt.report import report_json
from bottleneck_opt.working_copy import working_copy
from tests.networks import Computes, conv
from tests.recovery.samples import QUICK, UNFITTED, X, change, same, state


def run(net: nn.Module, **options: Any) -> Result:
    return optimize(
        net, **{"inputs": X[:1], "calibration": X, "budget": 0.3, "recipe": UNFITTED, "progress": False, **options}
    )


@pytest.fixture(scope="module")
def trained(net: nn.Module) -> Result:
    return run(net, recover=QUICK)


def test_training_brings_the_outputs_nearer(net: nn.Module, small: Result, trained: Result) -> None:
    before, after = small.verification, trained.verification
    assert before.measured_change is not None
    assert after.measured_change is not None
    assert after.measured_change < 0.8 * before.measured_change
    assert after.measured_change == pytest.approx(change(working_copy(net), working_copy(trained.model)), rel=1e-4)
    assert after.data == "20 unlabelled examples (the ones used for fitting and recovery)"
    assert trained.plan == small.plan


def test_what_it_did_is_told(trained: Result) -> None:
    found = trained.recovery
    assert found is not None
    assert found.accepted
    assert found.after < found.before
    assert (found.steps, found.trained_on, found.held_out, found.noise) == (40, 16, 4, False)
    assert json.loads(report_json(trained))["recovery"]["accepted"] is True
    assert any(note.startswith("recovery: 40 steps on 16 examples") for note in trained.notes)
    assert "recover" in dict(trained.seconds)


def test_without_being_asked_nothing_is_trained(small: Result) -> None:
    assert small.recovery is None
    assert json.loads(report_json(small))["recovery"] is None
    assert "recover" not in dict(small.seconds)


def test_the_same_seed_gives_the_same_weights_and_the_callers_model_stays(net: nn.Module) -> None:
    before = state(net)
    first, second, other = (run(net, recover=20, seed=seed) for seed in (0, 0, 1))
    assert same(net, before)
    assert same(first.model, second.model)
    assert not same(first.model, other.model)


def test_a_trained_model_is_saved_and_loaded_bit_for_bit(net: nn.Module, trained: Result, tmp_path: Path) -> None:
    assert same(load(trained.save(tmp_path / "out"), net), trained.model)


def test_the_graph_module_has_the_trained_parameters(trained: Result) -> None:
    assert trained.graph_module is not None
    assert torch.equal(trained.graph_module(X[:1]), trained.model(X[:1]))
    assert {id(p) for p in trained.graph_module.parameters()} <= {id(p) for p in trained.model.parameters()}
    assert any("module and rewritten graph agree" in check for check in trained.verification.checks)


def test_half_precision_is_measured_as_it_is_rounded(net: nn.Module) -> None:
    half = copy.deepcopy(net).to(torch.bfloat16)
    small, better = (run(half, inputs=X[:1].bfloat16(), recover=steps) for steps in (None, 40))
    assert {p.dtype for p in better.model.parameters()} == {torch.bfloat16}
    measured = better.verification.measured_change
    assert measured is not None
    assert measured == pytest.approx(change(working_copy(half), working_copy(better.model)), rel=1e-4)
    assert measured < change(working_copy(half), working_copy(small.model))
    assert better.graph_module is not None


def test_what_calibration_was_without_images_recovery_is_too(net: nn.Module) -> None:
    better = run(net, calibration=None, calibration_limit=10, recover=5)
    assert better.recovery is not None
    assert better.recovery.noise
    assert any("recovered on noise" in note for note in better.notes)


def test_where_nothing_helps_the_weights_are_those_without_recovery(net: nn.Module, small: Result) -> None:
    same_start = run(net, recover=replace(QUICK, learning_rate=30.0, reestimate_norms=False))
    assert same_start.recovery is not None
    assert not same_start.recovery.accepted
    assert same(same_start.model, small.model)


def test_the_metric_is_that_of_the_trained_model(net: nn.Module) -> None:
    result = run(net, recover=20, evaluate=lambda model: -change(net, model))
    assert result.verification.metric_after == pytest.approx(-change(net, result.model))


def remembering(net: nn.Module, x: Tensor) -> Any:
    """A forward that keeps a tensor of its last call, as cached anchors are kept."""
    kept = vars(net).get("kept")
    if kept is None or kept.shape != x.shape:
        vars(net)["kept"] = kept = torch.ones_like(x)
    return net.get_submodule("a")(x * kept).relu()


def test_a_model_that_keeps_tensors_of_its_calls_is_trained() -> None:
    assert run(Computes(remembering, a=conv(3, 16)).float(), recover=5, budget=0.5).recovery is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recover": 0}, "recover: got 0; expected a number of training steps"),
        ({"recover": 5, "calibration": X[:1]}, "got 1 example to recover with"),
        ({"recover": Recovery(crop=9)}, "crop: got 9; expected at most 8"),
    ],
)
def test_what_cannot_work_is_told_before_the_work(
    net: nn.Module, capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(net, progress=True, **options)
    assert "calibrate" not in capsys.readouterr().err


def test_few_examples_are_fitted_to_and_trained_on_in_mixes(net: nn.Module) -> None:
    alone, trained = (run(net, recipe=Recipe(joint=0), recover=steps) for steps in (None, 60))
    found = trained.recovery
    assert found is not None
    assert (found.trained_on, found.held_out, found.mixed) == (20, 100, True)  # four times twenty new mixes
    assert found.accepted
    assert any("60 steps on mixes of 20 examples, judged on those and 80 new mixes" in note for note in trained.notes)
    before, after = alone.verification, trained.verification
    assert before.held_out_change is not None
    assert after.held_out_change is not None
    assert after.held_out_change < before.held_out_change  # on mixes that neither training nor its judge saw


def test_training_on_examples_alone_is_judged_by_some_of_which_no_mixes_were_fitted_to(net: nn.Module) -> None:
    def own(got: Tensor, expected: Tensor, batch: Any) -> Tensor:
        return (got - expected).square().mean()

    for recovery in (QUICK, Recovery(steps=4, loss=own)):
        assert not any("mixes" in note for note in run(net, recipe=Recipe(joint=0), recover=recovery).notes)
