from __future__ import annotations

import pytest
import torch
from bottleneck_opt_nonlinear import NetworkInNetwork
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.sites import Pass
from bottleneck_opt.testing import check_pass, rewrite_everything


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


X = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def test_it_keeps_all_promises() -> None:
    found = check_pass(NetworkInNetwork())
    assert found.worst is not None
    assert found.worst < 1e-8
    assert len(found.accepted) == 15
    assert found.accepted["conv 1x1 12 -> 16"].endswith("(mlpconv)")
    assert found.accepted["conv 3x3 8 -> 12"].endswith("(nin, mlpconv)")


@pytest.mark.parametrize(("chosen", "linear"), [({"after": False}, Reduce()), ({"before": False}, Expand())])
def test_before_training_it_computes_what_the_linear_form_does(chosen: dict[str, bool], linear: Pass) -> None:
    plain = Recipe(refit=False, joint=0)
    results = [
        bo.optimize(
            small(), X[:1], calibration=X, passes=[each], budget=0.5, recipe=plain, allow_slower=True, progress=False
        )
        for each in (NetworkInNetwork(**chosen), linear)
    ]
    activated, straight = (result.model(X).detach() for result in results)
    assert results[0].plan.after.macs == results[1].plan.after.macs
    assert float((activated - straight).abs().max()) < 1e-4 * float(straight.abs().max())
    assert float((small()(X) - straight).detach().abs().max()) > 1e-3


def test_the_activation_bends_at_the_mean_of_what_it_reads() -> None:
    model = small()
    done = rewrite_everything(model, X[:4], passes=[NetworkInNetwork(before=False)])
    linear = rewrite_everything(model, X[:4], passes=[Expand()])
    with torch.no_grad():
        hidden = model[1](model[0](torch.randn(64, 3, 10, 10)))
        read, before = (each.model.get_submodule("2.conv")(hidden).mean((0, 2, 3)) for each in (done, linear))
    assert float(read.abs().mean()) < 0.5 * float(before.abs().mean())


def test_recovery_learns_slopes() -> None:
    result = bo.optimize(
        small(), X[:1], calibration=X, passes=[NetworkInNetwork()], budget=0.3, recover=60, allow_slower=True,
        progress=False,
    )  # fmt: skip
    slopes = [layer.weight.detach() for layer in result.model.modules() if isinstance(layer, nn.PReLU)]
    assert slopes
    assert max(float((each - 1).abs().max()) for each in slopes) > 1e-3
    assert result.recovery is not None
    assert result.recovery.after < result.recovery.before


def test_it_says_why_it_has_nothing_to_offer() -> None:
    done = rewrite_everything(nn.Sequential(nn.Conv2d(1, 1, 3)), torch.randn(1, 1, 5, 5), passes=[NetworkInNetwork()])
    assert not done.plan.steps
    assert done.refused
