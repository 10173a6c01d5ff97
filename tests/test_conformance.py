from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.errors import PassError
from bottleneck_opt.passes.select import Select
from bottleneck_opt.passes.shared import Shared
from bottleneck_opt.registry import find_passes
from bottleneck_opt.sites import Site
from bottleneck_opt.testing import ConformanceError, check_pass, rewrite_everything
from tests import broken_passes as broken

STRIDED = [nn.Conv2d(8, 12, 3, stride=2, padding=1)]


@pytest.mark.parametrize("name", ["expand", "reduce", "select", "shared", "spatial", "tucker"])
def test_every_built_in_pass_keeps_all_promises(name: str) -> None:
    found = check_pass(find_passes([name])[0])
    assert len(found.accepted) >= 10
    assert any(ran.steps for ran in found.runs.values())


@pytest.mark.parametrize(
    ("pass_", "message"),
    [
        (broken.ForgetsStride(), r"'conv 3x3/2 8 -> 12': wrong shape: got output size .*Keep the layer's stride"),
        (broken.MixesUpShapes(), r"ranks \(1,\): wrong shape: fill\(\) gave weights .*expected .*\(12, 1, 1, 1\)"),
        (broken.Grows(), r"ranks \(11,\): grows the layer: .* -> .* multiply-adds.*Offer only ranks that save"),
        (broken.Inexact(), r"wrong at full rank: its output is off by 0\.00.*expected at most 1e-07"),
        (broken.OverwritesWeight(), r"changes what it is shown: site\.weight is not what it was\. A pass only looks"),
        (broken.CentersStatisticsWhenFilled(), r"changes what it is shown: site\.statistics\.inputs\.total"),
        (broken.Counts(), r"keeps state: asked again .*Keep nothing between calls"),
        (broken.Dices(), r"keeps state: .*draw random numbers from a torch\.Generator"),
        (broken.Raises(), r"'conv 3x3/2 8 -> 12': raises: IndexError: list index out of range\. Answer None"),
        (broken.CannotFill(), r"raises: fill\(\) failed with RuntimeError: did not converge"),
        (broken.Understates(), r"wrong cost: .*2 parameters; the rewritten layer was counted with .* and 96"),
        (broken.Optimistic(), r"wrong predicted loss: it predicts .* was measured"),
        (broken.KeepsTensors(), r"cannot be saved: the plan: .*predicted_loss a finite float"),
        (broken.BareRank(), r"cannot be drawn: .*\.ranks, .* two tuples of int"),
        (broken.OddOption(), r"bad options: its field 'ranks' has no plain default value\. A pass is a @dataclass"),
        (broken.WrongDefault(), r"bad options: its field 'steps: int' has the default 0\.5"),
        (broken.Thawed(), r"bad options: its dataclass is not frozen"),
        (broken.OnlyPartly(), r"no full rank: form 'expand' has ranks .*expected \(12,\) among them"),
        (broken.Shy(), r"accepts nothing: it declined all of 1 sample layers\. Pass layers="),
    ],
)
def test_a_broken_promise_is_named_with_the_layer_and_what_to_do(pass_: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=rf"^pass '{pass_.name}'.*{message}"):
        check_pass(pass_, layers=STRIDED)


def test_a_broken_promise_is_a_failed_assertion_and_knows_its_fault() -> None:
    with pytest.raises(AssertionError) as caught:
        check_pass(broken.Raises(), layers=STRIDED)
    assert isinstance(caught.value, ConformanceError)
    assert caught.value.fault == "raises"


def test_the_sound_pass_that_the_broken_ones_are_made_of_passes() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = check_pass(broken.Sound(), layers=STRIDED)
    assert torch.equal(torch.rand(3), expected)
    assert list(found.accepted) == ["conv 3x3/2 8 -> 12"]
    assert "exact at full rank" in str(found)
    assert "saved, loaded, exported, drawn" in str(found)


def test_a_pass_that_is_never_exact_says_so_and_is_checked_by_its_losses() -> None:
    found = check_pass(broken.NeverExact(), layers=STRIDED)
    assert found.worst is None
    assert "no option claims to be exact" in str(found)
    net, x = nn.Sequential(nn.Conv2d(8, 12, 3)), torch.randn(24, 8, 9, 9)
    assert list(rewrite_everything(net, x[:1], passes=[broken.NeverExact()]).refused) == ["0"]
    result = bo.optimize(net, x[:1], calibration=x, passes=[broken.NeverExact()], progress=False)
    rank = result.plan.steps[0].ranks[0]
    assert f"rank {rank} |" in result.draw().source or f"rank {rank}<" in result.draw().source
    assert f"{rank} of" not in str(result)


@dataclass(frozen=True)
class Backwards(Select):
    """Keeps the channels that matter least, and hopes that nobody looks at the losses."""

    name: ClassVar[str] = "backwards"

    def eliminate(self, site: Site) -> Any:
        found = super().eliminate(site)
        return Elimination(found.order, found.losses.flip(0)) if isinstance(found, Elimination) else found


@dataclass(frozen=True)
class LosesRank(Shared):
    """Leaves out the last direction."""

    name: ClassVar[str] = "loses-rank"

    def share(self, sites: Any, most: int) -> Any:
        return super().share(sites, most - 1)


@pytest.mark.parametrize(
    ("pass_", "message"),
    [
        (Backwards(), "wrong predicted loss: its losses are not finite, below zero, or rise"),
        (LosesRank(), r"'twice conv 3x3/2 8 -> 12': wrong shape: its projection is \(7, 8\)"),
    ],
)
def test_passes_that_drop_or_share_channels_are_checked_too(pass_: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_pass(pass_, layers=STRIDED)


def test_what_is_no_pass_or_no_layer_is_refused() -> None:
    with pytest.raises(PassError, match="is a class; expected a pass object"):
        check_pass(broken.Sound)  # type: ignore[arg-type]
    with pytest.raises(PassError, match=r"layers: got a ReLU; expected convolutions and Linears"):
        check_pass(broken.Sound(), layers=[nn.ReLU()])
    with pytest.raises(PassError, match="cannot be rewritten by any pass: depthwise"):
        check_pass(broken.Sound(), layers=[nn.Conv2d(8, 8, 3, groups=8)])
