"""Models on the meta device have shapes and no values: they can be counted and drawn, and need no memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import InputError, ModelError, draw, profile, trace
from tests.networks import Computes, Repeated, Residual, classifier, conv, noise, seeded
from tests.torchvision_models import build

X = noise(1, 3, 8, 8, dtype=torch.float32)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make().eval()


def computes(function: Callable[..., Any]) -> nn.Module:
    return on_meta(lambda: Computes(function, c=conv(3, 3)))


@pytest.mark.parametrize("inputs", [X, X.to("meta"), (X,)], ids=["values", "meta", "tuple"])
@pytest.mark.parametrize("make", [classifier, Residual, Repeated])
def test_costs_and_graph_are_those_of_the_model_with_values(make: Callable[[], nn.Module], inputs: Any) -> None:
    traced, expected = trace(on_meta(make), inputs), trace(make().eval(), X)
    assert traced.structure == expected.structure
    assert str(traced.graph) == str(expected.graph)
    assert traced.cost == expected.cost


def test_the_graph_is_not_replayed_and_the_reason_is_named() -> None:
    replay = trace(on_meta(classifier), X).replay
    assert not replay.exact
    assert "on the meta device holds no values" in replay.reason


def test_a_profile_has_no_milliseconds_and_says_why() -> None:
    table = profile(on_meta(classifier), X)
    assert table.milliseconds == {}
    assert "not timed: a model on the meta device holds no values" in str(table)
    assert "ms" not in str(table).splitlines()[0].split()


def test_the_picture_is_that_of_the_model_with_values() -> None:
    assert draw(on_meta(Residual), X).source == draw(seeded(Residual, dtype=torch.float32), X).source


def test_inputs_are_inferred() -> None:
    traced = trace(on_meta(lambda: build("resnet18")))
    assert traced.inputs.describe() == "Tensor 1x3x224x224 float32"
    assert traced.cost.params == 11_689_512


def test_seventy_huge_layers_take_no_memory() -> None:
    net = on_meta(lambda: nn.Sequential(*(nn.Linear(50_000, 50_000) for _ in range(70))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    traced = trace(net, torch.zeros(1, 50_000))
    assert traced.cost.macs == 70 * 50_000**2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kB


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.c(x) + torch.zeros(8) + torch.arange(8),
        lambda net, x: net.c(x) + torch.tensor([1.0, 2.0, 3.0])[:, None, None] + torch.as_tensor(2.0),
        lambda net, x: net.c(x) + torch.ones(8, device=x.device),
        lambda net, x: net.c(x) + net.shift,
    ],
    ids=["made without a device", "made from numbers", "made on the input's device", "plain attribute"],
)
def test_tensors_made_in_forward_are_made_without_values(function: Callable[..., Any]) -> None:
    net = computes(function)
    net.shift = torch.ones(8)
    assert trace(net, X).cost.macs == 64 * 81


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.c(x) * x.max().item(),
        lambda net, x: net.c(x) if x.mean() > 0 else x,
        lambda net, x: net.c(x)[x > 0],
        lambda net, x: net.c(x) + torch.zeros(8, device="cpu"),
        lambda net, x: net.c(x) + torch.from_numpy(np.zeros(8, np.float32)),
        lambda net, x: net.c(x) * float(x.numpy().max()),
    ],
    ids=["item", "condition", "mask", "other device", "numpy array", "to numpy"],
)
def test_a_model_that_needs_values_is_told_how_to_get_them(function: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"in the model itself \(Computes\).*meta device.*to_empty\(device='cpu'\)"):
        trace(computes(function), X)


def test_a_model_with_values_still_needs_inputs_with_values() -> None:
    with pytest.raises(InputError, match="on the meta device, which holds no values"):
        trace(classifier(), X.to("meta"))


def test_a_model_with_some_values_is_traced_without_them() -> None:
    net = nn.Sequential(conv(3, 3), conv(3, 3).to("meta"))
    assert trace(net, X).cost.macs == 2 * 64 * 81
    assert not net[0].weight.is_meta


def test_lazy_layers_without_values_are_built() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3, device="meta"))
    assert trace(net, X).cost.macs == 36 * 4 * 27


def test_half_precision_and_integers_are_read() -> None:
    assert trace(on_meta(classifier).half(), X.half()).cost == trace(classifier(), X).cost
    words = on_meta(lambda: nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3)))
    assert trace(words, torch.zeros(2, 3, dtype=torch.long)).cost.macs == 2 * 3 * 12


def test_when_no_guess_fits_the_user_is_asked() -> None:
    with pytest.raises(ModelError, match=r"none of the guesses ran.*Pass inputs="):
        trace(computes(lambda net, x: net.c(x) * x.max().item()))


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "swin_t", "vit_b_16", "raft_small"])
def test_whole_torchvision_models_are_traced(name: str) -> None:
    model = on_meta(lambda: build(name))
    pictures: Tensor = torch.zeros(1, 3, 224, 224)
    traced = trace(model, (pictures, pictures) if name == "raft_small" else pictures)
    assert traced.cost.params == sum(parameter.numel() for parameter in model.parameters())
    assert traced.cost.macs > 1e9
