from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from bottleneck_opt import Result, load, optimize, recover
from bottleneck_opt.errors import InputError, RewriteError
from bottleneck_opt.recovery import recovering
from bottleneck_opt.working_copy import working_copy
from tests.networks import Residual, seeded
from tests.recovery.samples import QUICK, UNFITTED, X, change, same, state


def test_a_recovered_model_is_nearer_to_the_original(net: nn.Module, small: Result) -> None:
    better = recover(small, X, teacher=net, recovery=QUICK, progress=False)
    before, after = small.verification, better.verification
    assert before.measured_change is not None
    assert after.measured_change is not None
    assert after.measured_change < 0.8 * before.measured_change
    assert after.measured_change == pytest.approx(change(working_copy(net), better.model.eval()), rel=1e-4)
    assert after.kl is not None
    assert before.kl is not None
    assert after.kl < before.kl
    assert any(
        note.startswith("recovery: 40 steps on 16 examples, judged on 4 held out: loss") for note in better.notes
    )


def test_neither_the_result_nor_the_original_is_changed(net: nn.Module, small: Result) -> None:
    before = state(net), state(small.model), small.notes
    better = recover(small, X, teacher=net, recovery=QUICK, progress=False)
    assert same(net, before[0])
    assert same(small.model, before[1])
    assert small.notes == before[2]
    assert not same(better.model, small.model)
    assert type(better.model) is type(net)


def test_the_graph_module_has_the_new_parameters(net: nn.Module, small: Result) -> None:
    better = recover(small, X, teacher=net, recovery=QUICK, progress=False)
    assert better.graph_module is not None
    assert torch.equal(better.graph_module(X[:1]), better.model(X[:1]))
    assert {id(p) for p in better.graph_module.parameters()} <= {id(p) for p in better.model.parameters()}


def test_a_recovered_result_is_saved_and_loaded_bit_for_bit(net: nn.Module, small: Result, tmp_path: Path) -> None:
    better = recover(small, X, teacher=net, recovery=QUICK, progress=False)
    assert same(load(better.save(tmp_path / "out"), net), better.model)


def test_a_labelled_loader_works_and_half_precision_stays(net: nn.Module) -> None:
    half = copy.deepcopy(net).to(torch.bfloat16)
    small = optimize(half, X[:1].bfloat16(), calibration=X, budget=0.3, recipe=UNFITTED, progress=False)
    batches = [(X[:10], torch.zeros(10)), (X[10:], torch.zeros(10))]
    better = recover(small, batches, teacher=half, recovery=QUICK, progress=False)
    assert {p.dtype for p in better.model.parameters()} == {torch.bfloat16}
    assert change(working_copy(half), working_copy(better.model)) < change(
        working_copy(half), working_copy(small.model)
    )


def test_noise_is_for_results_that_were_fitted_to_noise_only(net: nn.Module, small: Result) -> None:
    with pytest.raises(InputError, match="got None for a result that was fitted to real inputs; expected real inputs"):
        recover(small, teacher=net, recovery=5, progress=False)
    made_up = optimize(net, X[:1], budget=0.3, calibration_limit=10, progress=False)
    better = recover(made_up, teacher=net, recovery=5, calibration_limit=10, progress=False)
    assert any("recovered on noise" in note for note in better.notes)
    best = recover(better, X, teacher=net, recovery=5, progress=False)
    with pytest.raises(InputError, match="got None"):
        recover(best, teacher=net, recovery=5, progress=False)


def test_the_metric_is_measured_again_or_dropped(net: nn.Module) -> None:
    def evaluate(model: nn.Module) -> float:
        return -change(net, model)

    small = optimize(net, X[:1], calibration=X, budget=0.3, evaluate=evaluate, recipe=UNFITTED, progress=False)
    unknown = recover(small, X, teacher=net, recovery=QUICK, progress=False)
    assert unknown.verification.metric_after is None
    assert any("the metric was not measured again" in note for note in unknown.notes)
    known = recover(small, X, teacher=net, recovery=QUICK, evaluate=evaluate, progress=False)
    assert known.verification.metric_after == pytest.approx(-change(net, known.model))


def test_another_models_result_is_refused(net: nn.Module, small: Result) -> None:
    with pytest.raises(RewriteError, match="Pass the model that the plan was made for"):
        recover(small, X, teacher=seeded(lambda: Residual(width=8), dtype=torch.float32), progress=False)
    with pytest.raises(RewriteError, match="got Factored"):
        recover(small, X, teacher=small.model, progress=False)


def test_of_many_examples_the_first_are_measured(
    net: nn.Module, small: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovering, "MEASURED", 8)
    better = recover(small, list(X.split(4)), teacher=net, recovery=QUICK, progress=False)
    assert better.verification.examples == 8
    assert better.verification.data.startswith("the first 8 of 20 unlabelled examples")
