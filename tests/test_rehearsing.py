from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck_opt import rehearsing
from bottleneck_opt.eligibility import find_candidates
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.probing import Probe
from bottleneck_opt.rehearsing import rehearse
from bottleneck_opt.sites import Skip
from bottleneck_opt.tracing import trace_working
from bottleneck_opt.working_copy import working_copy
from tests.layer_samples import Scaled, bias_of, plain_kernel, spec_of
from tests.networks import Computes, Residual, classifier, conv, noise, seeded

X = noise(2, 3, 8, 8, seed=4)
Use = Callable[[Any, nn.Module, Tensor], Tensor]


def find_refused(net: nn.Module, *inputs: Tensor) -> dict[str, Skip]:
    """The layers that may be rewritten as far as one can see, and may not after all."""
    working = working_copy(net)
    traced = trace_working(working, Inputs(inputs or (X,)))
    return rehearse(working, traced.inputs, find_candidates(working, traced))


def three_layers(use: Use, odd: nn.Module | None = None) -> nn.Module:
    """Layers ``first``, ``odd`` and ``last``, of which the middle one is used by this function."""

    def run(net: Any, x: Tensor) -> Any:
        return net.last(use(net, net.odd, net.first(x)))

    def make() -> nn.Module:
        return Computes(run, first=conv(3, 8), odd=odd or conv(8, 8), last=conv(8, 4))

    net = seeded(make)
    net.hidden = [net.odd]  # type: ignore[assignment]
    net.get_submodule("odd").tag = 2.0  # type: ignore[assignment]
    return net


def dispatch(net: Any, odd: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = {nn.Conv2d: lambda: odd(x)}[type(odd)]()  # type: ignore[index]
    return out


NOTICING: dict[str, tuple[Use, str]] = {
    "a list": (lambda net, odd, x: net.hidden[0](x), "called 0 times instead of 1"),
    "both at once": (lambda net, odd, x: odd(x) + net.hidden[0](x), "called 1 times instead of 2"),
    "its type": (lambda net, odd, x: odd(x) if isinstance(odd, nn.Conv2d) else x, "called 0 times instead of 1"),
    "identity": (lambda net, odd, x: odd(x) if odd is net.hidden[0] else x, "called 0 times instead of 1"),
    "a dict of types": (dispatch, "the model fails when it is replaced: KeyError"),
    "an attribute": (lambda net, odd, x: odd(x) * odd.tag, "the model fails when it is replaced: AttributeError"),
    "its input's channels": (lambda net, odd, x: odd(x * len(list(odd.modules()))), "another input"),
}


@pytest.mark.parametrize("name", NOTICING)
def test_the_layer_that_is_noticed_is_refused_and_no_other(name: str) -> None:
    use, reason = NOTICING[name]
    refused = find_refused(three_layers(use))
    assert list(refused) == ["odd"], refused
    assert reason in refused["odd"].reason


NOTICED_AFTERWARDS: dict[str, Use] = {
    "a default": lambda net, odd, x: odd(x) * getattr(odd, "tag", 1.0),
    "its class's name": lambda net, odd, x: odd(x) + sum(map(ord, type(odd).__name__)),
    "its parameters": lambda net, odd, x: odd(x) * len(list(odd.parameters())),
    "another layer instead": lambda net, odd, x: odd(x) if isinstance(odd, nn.Conv2d) else net.first(x[:, :3]),
}


@pytest.mark.parametrize("name", NOTICED_AFTERWARDS)
def test_a_layer_that_changes_what_others_are_given_is_refused_and_not_they(name: str) -> None:
    refused = find_refused(three_layers(NOTICED_AFTERWARDS[name]))
    assert list(refused) == ["odd"], refused


@pytest.mark.parametrize("name", NOTICED_AFTERWARDS)
def test_whatever_else_is_refused_the_cause_is(name: str) -> None:
    assert "odd" in find_refused(three_layers(NOTICED_AFTERWARDS[name]))


HARMLESS: dict[str, Use] = {
    "nothing": lambda net, odd, x: odd(x),
    "its shape": lambda net, odd, x: odd(x)[..., : odd.kernel_size[0]] * odd.weight.shape[0],  # type: ignore
    "random numbers": lambda net, odd, x: odd(x) + torch.rand_like(x),
    "dropout": lambda net, odd, x: F.dropout(odd(x), 0.5, training=True),
    "a choice by chance": lambda net, odd, x: odd(x) if torch.rand(()) > 0.5 else odd(-x),
    "the largest": lambda net, odd, x: odd(x) * odd(x).argmax(1, keepdim=True),
    "NaN": lambda net, odd, x: odd(x) / odd(x).relu().sign(),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_asks_or_throws_dice_is_no_fault(name: str) -> None:
    assert not find_refused(three_layers(HARMLESS[name]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [classifier, Residual])
def test_ordinary_networks_pass(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    assert not find_refused(seeded(make, dtype=dtype), X.to(dtype))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1),
        nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4, bias=False), nn.Conv2d(8, 8, 1, groups=2, bias=False),
        nn.Conv2d(8, 16, 3, padding=1, groups=8), Scaled(8, 8, 3, padding=1),
    ],
    ids=["grouped", "transposed", "1x1", "grouped transposed", "grouped 1x1", "multiplier", "own forward"],
)  # fmt: skip
def test_stand_ins_of_every_kind_compute_the_same(layer: nn.Module) -> None:
    assert not find_refused(three_layers(lambda net, odd, x: odd(x)[:, :8], copy.deepcopy(layer)))


def test_several_layers_are_found_one_after_the_other() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        for layer in net.children():
            x = layer(x) * (layer.tag if hasattr(layer, "tags") else 1.0)
        return x

    net = seeded(lambda: Computes(run, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4), d=conv(4, 4), e=conv(4, 4)))
    for path in ("b", "d"):
        net.get_submodule(path).tags, net.get_submodule(path).tag = (), 3.0  # type: ignore[assignment]
    assert sorted(find_refused(net)) == ["b", "d"]


def needs_tags(net: Any, x: Tensor) -> Tensor:
    for layer in net.children():
        x = layer(x) * layer.tag
    return x


@pytest.mark.parametrize(("most", "told"), [(8, 4), (2, 2)])
def test_trial_runs_are_bounded_and_what_is_not_told_is_left_alone(
    most: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsing, "MOST_RUNS", most)
    net = seeded(lambda: Computes(needs_tags, a=conv(3, 4), b=conv(4, 4), c=conv(4, 4), d=conv(4, 4)))
    for layer in net.children():
        layer.tag = 1.0  # type: ignore[assignment]
    refused = find_refused(net)
    assert sorted(refused) == ["a", "b", "c", "d"]
    assert sum("AttributeError" in skip.reason for skip in refused.values()) == told
    assert sum(f"in {most} trial runs" in skip.reason for skip in refused.values()) == 4 - told


def test_parameters_of_whole_numbers_are_no_obstacle() -> None:
    net = three_layers(lambda net, odd, x: odd(x) * net.factor)
    net.factor = nn.Parameter(torch.tensor(2), requires_grad=False)
    assert not find_refused(net)


# -- weights that are used behind the back ------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_fused_attention_keeps_its_layers_and_the_others_go_on(batch_first: bool) -> None:
    def make() -> nn.Module:
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        return nn.Sequential(nn.Linear(5, 8), block, nn.Linear(8, 4))

    working = working_copy(seeded(make, dtype=torch.float32))
    traced = trace_working(working, Inputs((noise(2, 3, 5, dtype=torch.float32),)))
    candidates = find_candidates(working, traced)
    assert {"0", "2"} <= set(candidates.layers)
    assert not {"0", "2"} & set(rehearse(working, traced.inputs, candidates))


def use_own_weight(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.last(net.first(x)) + F.conv2d(x, net.first.weight, padding=1).mean()
    return out


def test_a_weight_that_is_multiplied_out_when_used_is_no_fault() -> None:
    assert not find_refused(seeded(lambda: Computes(use_own_weight, first=conv(3, 8), last=conv(8, 4))))


# -- decisions ----------------------------------------------------------------------------------------------------


def detect(net: Any, x: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of the places that score best and do not overlap better ones, with their classes."""
    features = torch.relu(net.backbone(x))
    scores, boxes = net.scores(features).flatten(2).transpose(1, 2), net.boxes(features).flatten(2).transpose(1, 2)
    found = []
    for score, box in zip(scores, boxes, strict=True):
        best, label = score.max(1)
        kept: list[int] = []
        for index in best.argsort(descending=True).tolist():
            if best[index] > 0 and all(bool((box[index] - box[other]).abs().sum() > 1.5) for other in kept):
                kept.append(index)
        found.append({"boxes": box[kept], "labels": label[kept], "scores": best[kept]})
    return found


def detector() -> nn.Module:
    return Computes(detect, backbone=conv(3, 8), scores=conv(8, 4), boxes=conv(8, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_detector_with_decisions_passes(dtype: torch.dtype) -> None:
    net = seeded(detector, dtype=dtype)
    assert len(net(X.to(dtype))[0]["boxes"]) > 1
    assert not find_refused(net, X.to(dtype))


def test_outputs_of_whole_numbers_are_compared() -> None:
    def run(net: Any, x: Tensor) -> Any:
        return net.last(net.first(x)).argmax(1) + sum(map(ord, type(net.first).__name__))

    assert not find_refused(seeded(lambda: Computes(lambda net, x: net.first(x).argmax(1), first=conv(3, 8))))
    assert list(find_refused(seeded(lambda: Computes(run, first=conv(3, 8), last=conv(8, 4))))) == ["first"]


@pytest.mark.parametrize(("factor", "refused"), [(1.0, []), (1.01, ["odd"])])
def test_a_layer_that_was_misjudged_is_found(factor: float, refused: list[str]) -> None:
    working = working_copy(three_layers(lambda net, odd, x: odd(x)))
    traced = trace_working(working, Inputs((X,)))
    odd, candidates = working.get_submodule("odd"), find_candidates(working, traced)
    probe = Probe(spec_of(odd), factor * plain_kernel(odd), bias_of(odd))
    assert list(rehearse(working, traced.inputs, replace(candidates, probes={"odd": probe}))) == refused


# -- the working copy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Residual, lambda: three_layers(NOTICING["an attribute"][0])])
def test_the_working_copy_stays_as_it_is(make: Callable[[], nn.Module]) -> None:
    working = working_copy(seeded(make))
    traced = trace_working(working, Inputs((X,)))
    modules, state = dict(working.named_modules()), copy.deepcopy(working.state_dict())
    rehearse(working, traced.inputs, find_candidates(working, traced))
    assert dict(working.named_modules()) == modules
    assert all(torch.equal(value, state[name]) for name, value in working.state_dict().items())
    assert not any(module._forward_hooks for module in working.modules())


def test_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    working = working_copy(seeded(Residual))
    traced = trace_working(working, Inputs((X,)))
    candidates = find_candidates(working, traced)
    torch.manual_seed(3)
    rehearse(working, traced.inputs, candidates)
    assert torch.equal(torch.randn(2), expected)
