from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt.factored import Factored
from bottleneck_opt.layers import build_layer, shape_attributes
from bottleneck_opt.testing import rewrite_at_full_rank
from tests.layer_samples import Cached, convolutions, has_form, input_shape, relative_gap, spec_of
from tests.networks import Computes, ReadsLayer, conv, noise, seeded

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def make_factored(width: int = 3) -> Factored:
    """A 3x3 convolution (4 -> 6) as a 1x1 and a thin kernel, float64."""
    spec = spec_of(conv(4, 6))
    parts = [spec.pointwise("reduce", 4, width, bias=False), spec.named("conv", in_channels=width)]
    layers = OrderedDict((p.name, build_layer(p, device=torch.device("cpu"), dtype=torch.float64)) for p in parts)
    made = Factored(spec, layers, core=1)
    for number, parameter in enumerate(made.parameters()):
        parameter.data = noise(*parameter.shape, seed=number)
    return made


@contextmanager
def counted_merges(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Factored]]:
    """Inside, every layer whose factors are multiplied out is written down."""
    merged: list[Factored] = []
    merge = Factored.merge

    def counting(self: Factored) -> Tensor:
        merged.append(self)
        return merge(self)

    with monkeypatch.context() as patch:
        patch.setattr(Factored, "merge", counting)
        yield merged


# -- questions about the weight -----------------------------------------------------------------------------------

QUESTIONS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "dtype": (lambda w: w.dtype, torch.float64),
    "shape": (lambda w: tuple(w.shape), (6, 4, 3, 3)),
    "device": (lambda w: w.device, torch.device("cpu")),
    "size": (lambda w: (w.size(1), *w.size()), (4, 6, 4, 3, 3)),
    "axes": (lambda w: (w.dim(), w.ndim, len(w.shape)), (4, 4, 4)),
    "entries": (lambda w: (w.numel(), torch.numel(w)), (216, 216)),
    "requires_grad": (lambda w: w.requires_grad, True),
    "kind": (lambda w: (w.is_floating_point(), torch.is_floating_point(w), w.is_complex()), (True, True, False)),
    "place": (lambda w: (w.is_cuda, w.is_cpu, w.is_meta, w.is_sparse, w.is_quantized), (False, True, *[False] * 3)),
    "layout": (lambda w: w.layout, torch.strided),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_about_the_weight_cost_no_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    question, answer = QUESTIONS[name]
    with counted_merges(monkeypatch) as merged:
        assert question(make_factored().weight) == answer
    assert not merged


def test_a_call_of_the_layer_costs_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rewrite_at_full_rank(seeded(ReadsLayer), noise(1, 8, 8, 8))
    with counted_merges(monkeypatch) as merged:
        made(noise(1, 8, 8, 8))
    assert not merged


@given(convolutions(), st.sampled_from(["reduce", "expand"]))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_the_replacement_answers_as_the_old_layer_did(layer: nn.Module, form: str) -> None:
    assume(has_form(layer, form))
    made = rewrite_at_full_rank(nn.Sequential(layer), noise(*input_shape(layer)), passes=[form]).get_submodule("0")
    assert isinstance(made, Factored)
    old, new = layer.get_parameter("weight"), made.weight
    assert (new.shape, new.dtype, new.device, new.dim()) == (old.shape, old.dtype, old.device, old.dim())
    assert relative_gap(new, old) < 1e-8
    for name in shape_attributes(spec_of(layer)):
        assert getattr(made, name) == getattr(layer, name), name


# -- use of the weight --------------------------------------------------------------------------------------------

USES: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda w: F.conv2d(noise(2, 4, 8, 8), w, padding=1),
    "method": lambda w: w.flatten(1).t(),
    "operator": lambda w: 2 * w + 1,
    "index": lambda w: w[0, 1],
    "list": lambda w: torch.stack([w, w]).sum(0),
    "permutation": lambda w: w.permute(1, 0, 2, 3).contiguous(),
    "conversion": lambda w: w.to(torch.float32).double(),
    "norm": torch.linalg.vector_norm,
    "einsum": lambda w: torch.einsum("oihw,oihw->o", w, w),
}


@pytest.mark.parametrize("name", USES)
def test_used_values_and_gradients_are_those_of_the_product(name: str) -> None:
    lazy, plain = make_factored(), make_factored()
    got, expected = USES[name](lazy.weight), USES[name](plain.merge())
    assert type(got) is Tensor
    assert torch.equal(got, expected)
    got.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(lazy.parameters(), plain.parameters(), strict=True):
        gradients = [each.grad for each in (mine, theirs) if each.grad is not None]
        assert len(gradients) in (0, 2)
        assert not gradients or torch.equal(*gradients)


def test_without_gradient_it_is_the_product_too() -> None:
    made = make_factored()
    readers: list[Callable[[Tensor], Tensor]] = [lambda w: w.data, lambda w: w.detach(), copy.deepcopy]
    for read in readers:
        with torch.no_grad():
            assert torch.equal(read(made.weight) * 1, made.merge())


def test_it_can_be_printed_and_made_an_array() -> None:
    made = make_factored()
    assert repr(made.weight.detach()) == repr(made.merge().detach())
    assert torch.equal(torch.from_numpy(made.weight.detach().numpy()), made.merge().detach())


def test_the_weight_follows_the_factors() -> None:
    made = make_factored()
    weight = made.weight
    made.get_parameter("reduce.weight").data *= 2
    assert torch.equal(weight * 1, made.merge())


def test_the_merged_weight_is_no_state() -> None:
    made = make_factored()
    weight = made.weight
    assert list(made.state_dict()) == ["reduce.weight", "conv.weight", "conv.bias"]
    assert weight.shape == (6, 4, 3, 3)
    assert torch.equal(copy.deepcopy(made)(noise(1, 4, 5, 5)), made(noise(1, 4, 5, 5)))


def test_frozen_factors_have_a_frozen_weight() -> None:
    made = make_factored().requires_grad_(False)
    assert made.weight.requires_grad is made.merge().requires_grad is False


# -- compiled and exported ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def use_weight(net: Any, x: Tensor) -> Tensor:
    out: Tensor = F.conv2d(net.conv(x), net.conv.weight.flip(0).transpose(0, 1), padding=1)
    return out


def rewritten(make: Callable[[], nn.Module]) -> nn.Module:
    made = seeded(make)
    layer = made.get_submodule("conv")
    replaced = rewrite_at_full_rank(nn.Sequential(layer), noise(1, 8, 8, 8), passes=["reduce"]).get_submodule("0")
    made.add_module("conv", replaced)
    return made


MODELS: dict[str, Callable[[], nn.Module]] = {
    "reads dtype": ReadsLayer,
    "uses values": lambda: Computes(use_weight, conv=conv(8, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_reads_the_weight_compiles_in_one_graph(name: str) -> None:
    made, x = rewritten(MODELS[name]), noise(2, 8, 8, 8)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_reads_the_weight_compiles_in_pieces(name: str) -> None:
    made, x = rewritten(MODELS[name]), noise(2, 8, 8, 8)
    torch.testing.assert_close(torch.compile(made, backend="eager")(x), made(x))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_reads_the_weight_exports(name: str) -> None:
    made, x = rewritten(MODELS[name]), noise(2, 8, 8, 8)
    program = torch.export.export(made, (x,))
    assert set(program.state_dict) == set(made.state_dict())
    torch.testing.assert_close(program.module()(x), made(x))


# -- further arguments --------------------------------------------------------------------------------------------


def test_further_arguments_reach_the_layer_with_the_kernel() -> None:
    layer = Cached(4, 6, 3).double()
    spec = spec_of(layer)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=layer, expand=nn.Conv1d(6, 2, 1).double())
    made = Factored(spec.named("conv", out_channels=2), parts)
    x, cache = noise(2, 4, 9), noise(2, 4, 2, seed=1)
    expected = parts["expand"](layer(x, cache))
    for got in (made(x, cache), made(x, cache=cache), made(input=x, cache=cache)):
        assert torch.equal(got, expected)
    assert not torch.equal(made(x), expected)


def test_an_output_size_reaches_the_transposed_layer_in_the_middle() -> None:
    net = seeded(lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2)))
    made = rewrite_at_full_rank(net, noise(1, 4, 5, 5), passes=["reduce"]).get_submodule("0")
    assert made(noise(1, 4, 5, 5), output_size=[12, 11]).shape == (1, 6, 12, 11)
    assert made(noise(1, 4, 5, 5)).shape == (1, 6, 11, 11)


def test_printed_it_says_what_it_stands_for() -> None:
    assert "in place of conv 3x3, 4 -> 6" in repr(make_factored())
