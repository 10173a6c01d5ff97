from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bottleneck_opt.costs import list_uncounted, price_layers, price_operation
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.layers import describe_layer
from bottleneck_opt.testing import rewrite_everything
from bottleneck_opt.tracing import trace
from tests.layer_samples import Covering, convolutions, has_form, input_shape, spec_of
from tests.networks import Computes, Repeated, Residual, Upsampling, classifier, conv, counted_by_torch, noise, seeded
from tests.torchvision_models import build

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
MODELS = {
    "resnet18": 64, "googlenet": 64, "mobilenet_v3_small": 64, "densenet121": 64, "convnext_tiny": 32, "swin_t": 64,
    "efficientnet_b0": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "inception_v3": 96,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_macs_agree_with_torch_and_params_with_the_model(name: str) -> None:
    model, x = build(name), noise(1, 3, MODELS[name], MODELS[name], dtype=torch.float32)
    traced = trace(model, x)
    assert traced.cost.macs == counted_by_torch(model, x)
    assert traced.cost.params == sum(parameter.numel() for parameter in model.parameters())
    assert sum(node.cost.macs for node in traced.structure.nodes) == traced.cost.macs
    assert traced.replay.exact, traced.replay.reason


@pytest.mark.parametrize("make", [classifier, Residual, Repeated])
def test_macs_of_small_networks_agree_with_torch(make: Any) -> None:
    net, x = seeded(make), noise(2, 3, 8, 8)
    assert trace(net, x).cost.macs == counted_by_torch(net, x)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "same padding": (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 7)),
    "valid padding": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 7)),
    "reflect padding": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 9, 7)),
    "circular padding": (nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="circular"), (2, 4, 9, 7)),
    "dilation": (nn.Conv2d(4, 6, 3, dilation=2, stride=2), (2, 4, 9, 7)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 9, 7)),
    "unbatched": (nn.Conv2d(4, 6, 3), (4, 9, 7)),
    "1d": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "3d": (nn.Conv3d(4, 6, 3), (1, 4, 5, 6, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 7)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5)),
    "linear": (nn.Linear(5, 7), (2, 5)),
    "linear of rows": (nn.Linear(5, 7, bias=False), (2, 3, 5)),
    "linear of a vector": (nn.Linear(5, 7), (5,)),
    "bilinear": (nn.Bilinear(3, 4, 5), (2, 3)),
    "attention": (nn.MultiheadAttention(8, 2), (3, 2, 8)),
}


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("bilinear", "attention")])
def test_single_layers_agree_with_torch(name: str) -> None:
    layer, shape = LAYERS[name]
    x = noise(*shape, dtype=torch.float32)
    assert trace(nn.Sequential(layer), x).cost.macs == counted_by_torch(layer, x)


def in_words(function: Any, *inputs: Tensor) -> Traced:
    return trace(Computes(function), tuple(inputs))


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        (lambda net, a, b: a @ b, 2 * 3 * 4 * 5),
        (lambda net, a, b: torch.bmm(a, b), 2 * 3 * 4 * 5),
        (lambda net, a, b: torch.einsum("bij,bjk->bik", a, b), 2 * 3 * 4 * 5),
        (lambda net, a, b: torch.baddbmm(a.new_zeros(2, 3, 5), a, b), 2 * 3 * 4 * 5),
        (lambda net, a, b: torch.addmm(a.new_zeros(3, 5), a[0], b[0]), 3 * 4 * 5),
        (lambda net, a, b: torch.mv(a[0], b[0, :, 0]), 3 * 4),
        (lambda net, a, b: a[0] @ b[0, :, 0], 3 * 4),
        (lambda net, a, b: torch.dot(a[0, 0], b[0, :, 0]), 4),
        (lambda net, a, b: F.linear(a, b[0].T), 2 * 3 * 4 * 5),
        (lambda net, a, b: F.scaled_dot_product_attention(a, b.mT, b.mT), 2 * 3 * 5 * 8),
        (lambda net, a, b: a.sum() + b.sum(), 0),
    ],
)  # fmt: skip
def test_matrix_products_in_functions_are_counted(function: Any, macs: int) -> None:
    assert in_words(function, noise(2, 3, 4), noise(2, 4, 5)).cost.macs == macs


def test_flops_are_twice_the_multiply_adds() -> None:
    assert Cost(macs=21).flops == 42


def test_normalisation_and_pooling_are_not_multiply_adds() -> None:
    traced = trace(
        seeded(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(8), nn.AdaptiveAvgPool2d(1))), noise(1, 3, 8, 8)
    )
    assert traced.cost.macs == 0
    assert traced.cost.other > 0


def test_what_nobody_counts_is_listed_and_how_often() -> None:
    traced = in_words(lambda net, x: torch.fft.fft(torch.fft.fft(x)).real.relu(), noise(4, 4))
    assert traced.uncounted["aten::_fft_r2c"] + traced.uncounted.get("aten::_fft_c2c", 0) == 2
    assert traced.uncounted["aten::relu"] == 1


def test_views_cost_nothing_and_are_not_listed() -> None:
    traced = in_words(lambda net, x: x.reshape(2, 8).transpose(0, 1)[1:].unsqueeze(0), noise(4, 4))
    assert not traced.uncounted
    assert traced.cost == Cost()


def test_left_out_arguments_have_their_defaults() -> None:
    traced = in_words(lambda net, x: F.layer_norm(F.batch_norm(x, None, None, training=True), (4,)), noise(2, 3, 4))
    assert traced.cost.other > 0


def test_a_shape_that_a_formula_refuses_is_uncounted_not_wrong() -> None:
    operation = price_operation("aten::mm", (torch.zeros(2, 3), torch.zeros(4, 5)), torch.zeros(2, 5))
    assert not operation.counted
    assert list_uncounted([operation]) == {"aten::mm": 1}


@pytest.mark.parametrize(
    "layer",
    [
        conv(4, 6), conv(4, 6, stride=2), nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), conv(4, 6, 1, stride=3),
        nn.Conv2d(4, 6, 2, padding="valid"), conv(4, 6, bias=False), nn.Linear(7, 3),
    ],
)  # fmt: skip
def test_prices_of_layers_without_running_them_are_those_of_a_run(layer: nn.Module) -> None:
    spec, x = describe_layer(layer), noise(2, 4, 9, 7, dtype=torch.float32)
    assert spec is not None
    ran = trace(nn.Sequential(layer), x).cost
    assert price_layers([spec], [x.shape]) == Cost(ran.macs, ran.params)


@given(convolutions())
@settings(deadline=None, max_examples=80, derandomize=True)
def test_prices_of_convolutions_of_every_kind_are_those_of_torch(layer: nn.Module) -> None:
    x = noise(*input_shape(layer))
    params = sum(parameter.numel() for parameter in layer.parameters())
    assert price_layers([spec_of(layer)], [x.shape]) == Cost(counted_by_torch(layer, x), params)


@given(convolutions(), st.sampled_from(["reduce", "expand"]))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_prices_of_replacements_of_every_kind_are_those_of_torch(layer: nn.Module, form: str) -> None:
    assume(has_form(layer, form))
    x = noise(*input_shape(layer))
    done = rewrite_everything(nn.Sequential(layer), x, passes=[form])
    assert done.plan.after.macs == counted_by_torch(done.model, x)
    assert done.plan.after.params == sum(parameter.numel() for parameter in done.model.parameters())


SIZED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a size asked for": (Upsampling, (1, 8, 8, 8)),
    "padding of its own": (lambda: Covering(8, 6, 4, 3), (1, 8, 8, 9)),
}


@pytest.mark.parametrize("form", ["reduce", "expand"])
@pytest.mark.parametrize("name", SIZED)
def test_prices_follow_the_sizes_that_really_came_out(name: str, form: str) -> None:
    make, shape = SIZED[name]
    net, x = seeded(lambda: nn.Sequential(make())), noise(*shape)
    done = rewrite_everything(net, x, passes=[form])
    assert done.plan.steps
    assert done.plan.before.macs == counted_by_torch(net, x)
    assert done.plan.after.macs == counted_by_torch(done.model, x)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_the_plan_counts_what_a_normalised_layer_really_had(norm: Any) -> None:
    net, x = seeded(lambda: nn.Sequential(norm(conv(4, 6)))), noise(1, 4, 8, 8)
    done = rewrite_everything(net, x)
    made = trace(done.model, x).cost
    assert (done.plan.before.params, done.plan.before.macs) == (trace(net, x).cost.params, trace(net, x).cost.macs)
    assert (done.plan.after.params, done.plan.after.macs) == (made.params, made.macs)


def test_prices_of_layers_in_a_row_add_up_over_calls() -> None:
    first, second = conv(4, 2, stride=2), conv(2, 6, 1)
    specs = [describe_layer(first, "a"), describe_layer(second, "b")]
    x = noise(1, 4, 8, 8, dtype=torch.float32)
    once = trace(nn.Sequential(first, second), x).cost
    priced = price_layers([spec for spec in specs if spec], [x.shape, x.shape])
    assert priced == Cost(2 * once.macs, once.params)
