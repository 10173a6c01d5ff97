from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.passes.tucker import Tucker
from bottleneck_opt.plan import Plan
from bottleneck_opt.reading import read_report
from tests.networks import Branches, Residual, classifier, conv, measured, noise, seeded
from tests.test_cli import run

X = noise(12, 3, 8, 8)


def compress(make: Callable[[], nn.Module], seed: int = 0, **options: Any) -> bo.Result:
    return bo.optimize(seeded(make, seed), X[:2], **{"calibration": X, "budget": 0.5, "progress": False, **options})


def transfer(plan: Plan | str | Path, make: Callable[[], nn.Module], seed: int = 1, **options: Any) -> bo.Result:
    return bo.apply(plan, seeded(make, seed), X[:2], **{"calibration": X, "progress": False, **options})


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "all passes": (classifier, {}),
    "residual": (Residual, {}),
    "dropped channels": (lambda: classifier(16), {"passes": ["select"]}),
    "channels and kernels": (lambda: classifier(24), {"passes": ["select", "reduce", "tucker"], "budget": 0.3}),
    "shared": (Branches, {"passes": ["shared"], "budget": 0.7}),
}


@pytest.mark.parametrize("case", CASES)
def test_on_the_weights_and_data_it_was_made_for_it_gives_the_very_same_model(case: str) -> None:
    make, options = CASES[case]
    made = compress(make, **options)
    again = transfer(made.plan, make, seed=0)
    assert made.plan.steps
    assert [each.layers for each in again.plan.steps] == [each.layers for each in made.plan.steps]
    losses = [[each.predicted_loss for each in plan.steps] for plan in (again.plan, made.plan)]
    assert losses[0] == pytest.approx(losses[1])
    assert again.plan.after == made.plan.after
    assert [each.kept for each in again.plan.selections] == [each.kept for each in made.plan.selections]
    assert torch.equal(again.model(X), made.model(X))
    assert again.budget_met is made.budget_met is True


@pytest.mark.parametrize("case", CASES)
def test_on_other_weights_it_has_the_planned_layers_and_fits_the_model_at_hand(case: str) -> None:
    make, options = CASES[case]
    made = compress(make, **options)
    other = transfer(made.plan, make)
    shapes = {name: value.shape for name, value in made.model.state_dict().items()}
    assert {name: value.shape for name, value in other.model.state_dict().items()} == shapes
    assert other.after.cost == made.after.cost
    assert type(other.model) is type(made.model) or options.get("passes") == ["shared"]
    alone = transfer(made.plan, make, calibration=None)
    assert measured(other.verification) < 1
    with torch.no_grad():
        expected = seeded(make, 1)(X)
        errors = [float((each.model(X) - expected).square().mean()) for each in (other, alone)]
    assert errors[0] < errors[1]


def test_without_data_it_is_the_truncated_svd_of_the_weights_and_says_so() -> None:
    nets = [nn.Sequential(nn.Linear(24, 20)).double() for _ in range(2)]
    made = bo.optimize(nets[0], noise(2, 24), calibration=noise(40, 24), passes=["expand"], progress=False)
    result = bo.apply(made.plan, nets[1], noise(2, 24), progress=False)
    (step,) = made.plan.steps
    first, second = map(result.model.get_submodule, step.layer_paths)
    u, s, v = torch.linalg.svd(nets[1].get_parameter("0.weight").detach())
    rank = step.ranks[0]
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    assert torch.allclose(second.get_parameter("weight") @ first.get_parameter("weight"), best, atol=1e-6)
    lost = float(s[rank:].square().sum() / s.square().sum())
    assert result.plan.predicted_loss == pytest.approx(lost, rel=2e-3)  # the curvature is damped by a thousandth
    assert any("G = S = I" in note and "calibration=" in note for note in result.notes)
    assert "noise" in result.verification.data


def test_the_provenance_tells_weights_and_data_apart() -> None:
    made = compress(classifier)
    same, other = transfer(made.plan, classifier, seed=0).provenance, transfer(made.plan, classifier).provenance
    assert (same.weights_sha256, same.data_sha256) == (made.provenance.weights_sha256, made.provenance.data_sha256)
    assert other.weights_sha256 != same.weights_sha256
    assert other.data_sha256 == same.data_sha256
    assert transfer(made.plan, classifier, calibration=X[:5]).provenance.data_sha256 != same.data_sha256
    assert len(same.data_sha256) == len(same.weights_sha256) == 64


def test_a_saved_plan_is_applied_saved_and_loaded(tmp_path: Path) -> None:
    made = compress(Residual)
    folder = made.save(tmp_path / "out")
    for place in (folder, str(folder / "plan.json")):
        other = transfer(place, Residual)
        loaded = bo.load(other.save(tmp_path / "out2"), seeded(Residual, 2))
        assert torch.equal(loaded(X), other.model(X))


def test_without_inputs_or_data_a_saved_plan_knows_the_size_it_was_made_for(tmp_path: Path) -> None:
    folder = compress(classifier).save(tmp_path / "o")
    result = bo.apply(folder, seeded(classifier, 1, torch.float32), progress=False)
    assert result.provenance.inputs == "Tensor 2x3x8x8 float32"


def test_a_recorded_graph_is_made_again_without_an_example() -> None:
    made = compress(Branches, passes=["shared"], budget=0.7)
    again = bo.apply(made.plan, seeded(Branches), calibration=X, progress=False)
    assert torch.allclose(again.model(X[:2]), made.model(X[:2]))


def test_the_metric_is_measured_before_and_after() -> None:
    made = transfer(compress(classifier).plan, classifier, evaluate=lambda model: float(model(X).detach().mean()))
    assert made.verification.metric_before == float(seeded(classifier, 1)(X).detach().mean())
    assert made.verification.metric_after == float(made.model(X).detach().mean())


def test_a_plan_that_changes_nothing_gives_a_copy() -> None:
    plan = replace(compress(classifier, budget=1.0).plan, steps=(), selections=())
    result = transfer(plan, classifier)
    assert torch.equal(result.model(X), seeded(classifier, 1)(X))


class Reading(nn.Module):
    """The layers of ``Chained``, but the first one's output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 32), conv(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        out: Tensor = self.second(y) + y
        return out


class Chained(Reading):
    """Two convolutions in a row."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def test_channels_that_another_reader_needs_are_not_dropped() -> None:
    plan = compress(Chained, passes=["select"], budget=0.6).plan
    assert plan.selections
    with pytest.raises(bo.RewriteError, match=r"drops channels between 'first' and 'second', which cannot be done"):
        transfer(plan, Reading)


def test_a_model_of_other_widths_is_refused() -> None:
    with pytest.raises(bo.RewriteError, match=r"the plan rewrites '\d': got .*; expected .* built with the same"):
        transfer(compress(classifier).plan, lambda: classifier(16))


def test_layers_that_are_not_reached_are_refused() -> None:
    plan = compress(Chained, passes=["reduce"], budget=0.7).plan
    with pytest.raises(bo.RewriteError, match=r"cannot be done in this model: not executed"):
        transfer(plan, Unused)


class Unused(Reading):
    """Calls its first layer only."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x)
        return out


def test_a_pass_that_is_missing_or_has_other_options_is_named() -> None:
    plan = compress(lambda: classifier(24), passes=[Tucker(steps=7)], budget=0.4).plan
    assert transfer(plan, lambda: classifier(24), passes=[Tucker(steps=7)]).plan.steps
    with pytest.raises(bo.RewriteError, match=r"with its present options\. Pass passes= with the options"):
        transfer(plan, lambda: classifier(24), passes=[Tucker(steps=1)])
    with pytest.raises(bo.PassError, match=r"by the pass 'tucker', which is not among reduce\. Pass it in passes="):
        transfer(plan, lambda: classifier(24), passes=["reduce"])


FACTORY = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
"""


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(FACTORY, encoding="utf-8")
    model, data = f"{tmp_path / 'net.py'}:net", tmp_path / "data.npy"
    np.save(data, X.float().numpy())
    net = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16))
    bo.optimize(net, X[:2].float(), progress=False).save(tmp_path / "out")
    safetensors.torch.save_file(net.state_dict(), tmp_path / "again.safetensors")
    arguments = ("--weights", tmp_path / "again.safetensors", "--out", tmp_path / "out2")
    assert run("apply", tmp_path / "out" / "plan.json", model, *arguments, "--calibration", data) == 0
    assert "report.html" in capsys.readouterr().out
    assert read_report(tmp_path / "out2").provenance.inputs == "Tensor 2x3x8x8 float32"
    assert bo.load(tmp_path / "out2", net)(X.float()).shape == (12, 16, 8, 8)
    assert run("apply", tmp_path / "nowhere", model) == 1
    assert "the plan cannot be read" in capsys.readouterr().err
