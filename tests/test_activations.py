"""An activation between the layers of a replacement: described, built, priced, saved, and the identity at first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.errors import FileError, PassError, RewriteError
from bottleneck_opt.factored import Factored
from bottleneck_opt.layers import LayerSpec, find_fault, find_order_fault
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.plan import Plan
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.sites import Option, Site, Skip, Weights
from bottleneck_opt.testing import rewrite_everything
from tests.layer_samples import relative_gap
from tests.networks import measured, noise

LAYER = LayerSpec("conv", "Conv2d", 6, 8, (3, 3), (1, 1), (1, 1), (1, 1))


@dataclass(frozen=True)
class Bent(Expand):
    """``expand`` with a PReLU of a given slope after the kernel."""

    name: ClassVar[str] = "bent"
    slope: float = 1.0
    own: bool = True
    place: int = 1

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        answer = super().propose(site)
        return [self.bend(option) for option in answer] if isinstance(answer, list) else answer

    def bend(self, option: Option) -> Option:
        layers, first = list(option.layers), option.layers[0]
        layers.insert(self.place, first.activation("act", slopes=first.out_channels if self.own else 1))
        return replace(option, layers=tuple(layers), fill=partial(self.fill, option, layers[self.place]))

    def fill(self, option: Option, act: LayerSpec) -> list[Weights]:
        weights = list(option.fill())
        weights.insert(self.place, Weights(torch.full(act.weight_shape, self.slope, dtype=torch.float64)))
        return weights


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1)).double()


X = noise(64, 6, 8, 8)


def optimized(pass_: Bent, recipe: Recipe = Recipe(joint=0), recover: int | None = None) -> bo.Result:  # noqa: B008
    return bo.optimize(
        small(), X[:1], calibration=X, passes=[pass_], recover=recover, progress=False, recipe=recipe
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (LAYER.activation("act"), ""),
        (LAYER.activation("act", slopes=8), ""),
        (LAYER.activation("act", slopes=2), "one slope, or one for each channel"),
        (LAYER.activation("act").named("act", bias=True), "neither kernel nor bias"),
        (LAYER.activation("act").named("act", out_channels=4), "has one width"),
        (LAYER.named("conv", kind="PReLU"), "has one width"),
        (LAYER.named("conv", kind="ReLU"), "kind 'ReLU' is none of Linear, Conv1d, .*, PReLU"),
    ],
)
def test_an_activation_has_one_width_and_one_slope_or_one_a_channel(spec: LayerSpec, fault: str) -> None:
    found = find_fault(spec)
    assert (found == "") == (fault == "")
    if fault:
        with pytest.raises(AssertionError, match=fault):
            raise AssertionError(found)


def test_it_stands_between_others_only() -> None:
    act = LAYER.activation("act")
    assert find_order_fault([LAYER, act, LAYER]) == ""
    assert "'act' is an activation before or after all others" in find_order_fault([LAYER, act])
    with pytest.raises(PassError, match=r"cannot be built: 'act' is an activation before or after all others"):
        optimized(Bent(place=2))


@pytest.mark.parametrize("own", [True, False])
def test_with_slopes_of_one_nothing_changes(own: bool) -> None:
    linear, bent = (rewrite_everything(small(), X[:2], passes=[each]) for each in (Expand(), Bent(own=own)))
    assert [type(layer).__name__ for layer in bent.model[0]] == ["Conv2d", "PReLU", "Conv2d"]  # type: ignore[index]
    assert relative_gap(bent.model(X), small()(X)) < 1e-8
    assert bent.plan.after.macs == linear.plan.after.macs
    assert bent.plan.after.params == linear.plan.after.params + (20 if own else 2)


def test_with_other_slopes_it_does() -> None:
    bent = rewrite_everything(small(), X[:2], passes=[Bent(slope=0.5)])
    assert relative_gap(bent.model(X), small()(X)) > 1e-2


def test_the_last_layer_is_fitted_again_to_what_a_bent_one_gives() -> None:
    bent = Bent(slope=0.7)
    refitted, plain = optimized(bent), optimized(bent, Recipe(joint=0, refit=False))
    assert any(each.accepted for each in refitted.corrections)
    assert measured(refitted.verification) < 0.9 * measured(plain.verification)


def test_it_is_counted_drawn_saved_and_loaded(tmp_path: Path) -> None:
    result = optimized(Bent(slope=0.7))
    assert result.plan.steps
    assert result.after.cost.macs == result.plan.after.macs
    assert result.after.cost.params == result.plan.after.params
    assert "PReLU" in result.draw("after").source
    assert result.graph_module is not None
    assert relative_gap(result.graph_module(X[:1]), result.model(X[:1])) < 1e-12
    result.save(tmp_path)
    loaded = bo.load(tmp_path, small())
    assert torch.equal(loaded(X), result.model(X))
    assert Plan.from_json(result.plan.to_json()) == result.plan


def test_recovery_bends_it_and_the_result_is_saved_as_learnt(tmp_path: Path) -> None:
    result = optimized(Bent(), Recipe(joint=0, refit=False), recover=60)
    slopes = [layer.weight for layer in result.model.modules() if isinstance(layer, nn.PReLU)]
    assert result.recovery is not None
    assert result.recovery.accepted
    assert any(float((each.detach() - 1).abs().max()) > 1e-3 for each in slopes)
    result.save(tmp_path)
    assert torch.equal(bo.load(tmp_path, small())(X), result.model(X))


def test_a_plan_with_an_activation_out_of_place_is_refused() -> None:
    data = json.loads(optimized(Bent()).plan.to_json())
    layers = data["steps"][0]["layers"]
    data["steps"][0]["layers"] = [layers[0], {**layers[1], "name": "act2"}, *layers[1:]]
    assert len(Plan.from_json(json.dumps(data)).steps[0].layers) == 4
    data["steps"][0]["layers"] = layers[:2]
    with pytest.raises(FileError, match="'act' is an activation before or after all others"):
        Plan.from_json(json.dumps(data))


def test_slopes_for_each_channel_are_refused_where_channels_are_not_on_axis_one() -> None:
    rows = nn.Sequential(nn.Linear(12, 12)).double()
    with pytest.raises(PassError, match=r"slope for each channel; expected one slope.*Ask site\.channels_second"):
        rewrite_everything(rows, noise(2, 5, 12), passes=[Bent()])
    done = rewrite_everything(rows, noise(2, 5, 12), passes=[Bent(own=False)])
    assert relative_gap(done.model(noise(2, 5, 12)), rows(noise(2, 5, 12))) < 1e-8


def test_the_merged_weight_has_a_shape_but_no_values() -> None:
    layer = rewrite_everything(small(), X[:2], passes=[Bent()]).model.get_submodule("0")
    assert isinstance(layer, Factored)
    assert layer.weight.shape == (12, 6, 3, 3)
    assert layer.weight.dtype == torch.float64
    with pytest.raises(RewriteError, match=r"a conv 3x3 was replaced by conv -> act -> expand: an activation stands"):
        layer.weight.sum()
