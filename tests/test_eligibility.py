from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bottleneck_opt.eligibility import Candidates, find_candidates
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.sites import Skip
from bottleneck_opt.tracing import trace_working
from bottleneck_opt.working_copy import working_copy
from tests.layer_samples import Activated, Adapted, Noisy, OwnKernel, Standardised, StandardisedCovering, spec_of
from tests.networks import Computes, ReadsLayer, Repeated, Tied, classifier, conv, noise, seeded

X = noise(2, 8, 9, 10, seed=4)


def find(net: nn.Module, x: Tensor = X, **patterns: Any) -> Candidates:
    working = working_copy(net)
    return find_candidates(working, trace_working(working, Inputs((x,))), **patterns)


def alone(layer: nn.Module, x: Tensor = X) -> Candidates:
    """The layer as path 0 of a network."""
    return find(nn.Sequential(layer).double().eval(), x)


# -- those that may -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(8, 6, 3), (2, 8, 9)), (nn.Conv2d(8, 6, 3, groups=2), (2, 8, 9, 9)),
        (nn.Conv3d(8, 6, 3), (2, 8, 4, 4, 4)),
        (nn.ConvTranspose1d(8, 6, 3), (2, 8, 9)), (nn.ConvTranspose2d(8, 6, 3, groups=2), (2, 8, 4, 4)),
        (nn.ConvTranspose3d(8, 6, 3), (2, 8, 4, 4, 4)), (nn.Linear(8, 6), (2, 3, 8)),
        (nn.Conv2d(8, 16, 3, groups=8), (2, 8, 9, 9)),
    ],
)  # fmt: skip
def test_stock_layers_of_every_kind_may_be_rewritten(layer: nn.Module, shape: tuple[int, ...]) -> None:
    found = alone(layer, noise(*shape))
    assert found.layers == {"0": spec_of(layer)}
    assert not found.probes
    assert not found.refused


def test_layers_come_in_the_order_they_run() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.a(net.b(x)), a=conv(8, 8), b=conv(8, 8)))
    assert list(find(net).layers) == ["b", "a"]


def test_an_alias_is_one_layer_under_all_its_names() -> None:
    found = find(seeded(Repeated), noise(1, 3, 8, 8))
    assert list(found.layers) == ["stem", "loop", "first"]
    assert found.names["first"] == ("first", "second")


def test_tied_twins_are_one_layer_under_all_their_names() -> None:
    found = find(seeded(Tied))
    assert list(found.layers) == ["first"]
    assert found.names["first"] == ("first", "second")
    assert not found.refused


def test_a_layer_that_computes_its_weight_is_told_by_what_it_computes() -> None:
    found = alone(Standardised(8, 6, 3, groups=2))
    assert found.layers["0"] == spec_of(nn.Conv2d(8, 6, 3, groups=2))
    assert found.probes["0"].mixable_output


def test_a_layer_whose_forward_is_kept_stays_of_its_class() -> None:
    found = alone(Activated(8, 6, 3))
    assert found.layers["0"].subclass == "tests.layer_samples.Activated"
    assert not found.probes["0"].mixable_output


def test_a_module_of_ones_own_may_be_a_layer() -> None:
    found = alone(OwnKernel(8, 6))
    assert found.layers["0"] == spec_of(conv(8, 6))


def test_code_of_the_model_may_ask_a_layer_for_its_shape() -> None:
    assert list(find(seeded(ReadsLayer), noise(1, 8, 8, 8)).layers) == ["conv"]


# -- those that may not -------------------------------------------------------------------------------------------


class Unequal(nn.Module):
    """Two convolutions that share their weight but not their stride."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8, bias=False), conv(8, 8, bias=False, stride=2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


class TiedToEmbedding(nn.Module):
    """A head that shares its weight with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(x[0, 0, 0].abs().long()))
        return out


def inner_call(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.layer._conv_forward(net.layer(x), net.layer.weight, None)
    return out


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "depthwise": (lambda: Computes(lambda net, x: net.layer(x), layer=conv(8, 8, groups=8)),
                  {"layer": "depthwise (groups=8): each channel has its own small kernel"}),
    "shared unequally": (Unequal, {"a": "shares its weight with b", "b": "shares its weight with a"}),
    "tied to an embedding": (TiedToEmbedding, {"head": "shares its weight with embedding"}),
    "not executed": (lambda: Computes(lambda net, x: x.relu(), layer=conv(8, 8)), {"layer": "not executed"}),
    "weight and borders": (lambda: nn.Sequential(StandardisedCovering(8, 6, 3)), {"0": "computes its weight and also"}),
    "two convolutions": (lambda: nn.Sequential(Adapted(8, 6, 3)), {"0": "does not run exactly one convolution"}),
    "random weight": (lambda: nn.Sequential(Noisy(8, 6, 3)), {"0": "Noisy"}),
    "private parts": (lambda: Computes(inner_call, layer=conv(8, 8)), {"layer": "reads its weight and may use it"}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_reason(name: str) -> None:
    make, reasons = REFUSED[name]
    found = find(seeded(make))
    assert not found.layers
    assert found.refused.keys() == reasons.keys()
    assert all(reason in found.refused[path].reason for path, reason in reasons.items())


class Small(nn.Linear):
    """A Linear with a weight of small whole numbers and a scale."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o)
        self.weight = nn.Parameter(torch.randint(-9, 9, (o, i), dtype=torch.int8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return nn.functional.linear(input, self.weight.to(input) / 9, self.bias)


def test_a_weight_of_whole_numbers_is_refused_and_other_layers_are_not() -> None:
    found = find(seeded(lambda: nn.Sequential(nn.Linear(8, 8), Small(8, 8))), noise(3, 8))
    assert list(found.layers) == ["0"]
    assert found.refused == {"1": Skip("its weight is torch.int8")}


def test_weights_behind_fused_attention_are_refused_with_their_reader() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    refused = find(nn.Sequential(block).eval(), noise(2, 3, 8, dtype=torch.float32)).refused
    assert refused.keys() == {"0.self_attn.out_proj", "0.linear1", "0.linear2"}
    assert all(skip.reason for skip in refused.values())


def test_a_layer_that_is_parametrized_and_depthwise_is_refused_too() -> None:
    found = alone(parametrizations.weight_norm(conv(8, 8, groups=8)))
    assert "depthwise" in found.refused["0"].reason


# -- choice -------------------------------------------------------------------------------------------------------


def test_patterns_choose_among_all_layers() -> None:
    net, x = seeded(classifier), noise(1, 3, 8, 8)
    assert list(find(net, x, include=["0", "2"]).layers) == ["0", "2"]
    found = find(net, x, exclude="[04]")
    assert list(found.layers) == ["2", "8"]
    assert found.refused["0"].reason == "excluded by exclude='[04]'"


def test_layers_of_ones_own_are_chosen_by_patterns_too() -> None:
    net = seeded(lambda: nn.Sequential(OwnKernel(8, 6), conv(6, 4)))
    assert list(find(net, include="0").layers) == ["0"]


def test_refusing_more_takes_them_out_of_the_layers() -> None:
    found = find(seeded(classifier), noise(1, 3, 8, 8)).without({"2": Skip("no")})
    assert list(found.layers) == list(found.names) == ["0", "4", "8"]
    assert found.refused == {"2": Skip("no")}
