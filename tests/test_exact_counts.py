from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bottleneck_opt.costs import OperationRecorder, add_costs, price_layers
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.layers import LayerSpec, describe_layer
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.plan import Plan, Step
from bottleneck_opt.rewriting import rewrite_structure
from bottleneck_opt.testing import full_rank_plan, rewrite_at_full_rank
from bottleneck_opt.tracing import trace
from tests.networks import Computes, measured
from tests.torchvision_models import build


def count_on_meta(make: Callable[[], nn.Module], shape: Sequence[int]) -> Cost:
    """The counter's total for a model without memory for its weights."""
    with torch.device("meta"):
        model, x = make().eval(), torch.empty(*shape)
        with torch.inference_mode(), OperationRecorder() as recorder:
            model(x)
    params = sum(parameter.numel() for parameter in model.parameters())
    return add_costs(recorder.operations) + Cost(params=params)


def conv(i: int, o: int, kernel: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, kernel, **options), nn.ReLU())


def conv_spec(name: str, i: int, o: int, kernel: int, *, bias: bool = True) -> LayerSpec:
    return LayerSpec(name, "Conv2d", i, o, (kernel,) * 2, (1, 1), (kernel // 2,) * 2, (1, 1), bias=bias)


# -- single layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "output", "params", "applications"), [(3, (1, 2, 4, 4), 56, 16), (1, (1, 2, 6, 6), 8, 36)]
)
def test_two_filters_on_six_by_six(kernel: int, output: tuple[int, ...], params: int, applications: int) -> None:
    traced = trace(conv(3, 2, kernel), torch.randn(1, 3, 6, 6))
    relu = traced.structure.node("_1")
    assert relu.operation == "ReLU"
    assert relu.output_shapes == (output,)
    assert traced.cost.params == params
    assert output[2] * output[3] == applications
    assert traced.cost.macs == (params - 2) * applications


def test_five_by_five_directly() -> None:
    assert price_layers([conv_spec("conv", 192, 32, 5)], [(1, 192, 28, 28)]).macs == 120_422_400


def test_five_by_five_through_a_one_by_one() -> None:
    reduce, kernel = conv_spec("reduce", 192, 16, 1, bias=False), conv_spec("conv", 16, 32, 5)
    assert price_layers([reduce], [(1, 192, 28, 28)]).macs == 2_408_448
    assert price_layers([kernel], [(1, 16, 28, 28)]).macs == 10_035_200
    both = price_layers([reduce, kernel], [(1, 192, 28, 28)]).macs
    assert both == 12_443_648
    assert round(120_422_400 / both, 2) == 9.68


@pytest.mark.parametrize(
    ("layers", "weights"),
    [
        ([(256, 64, 1), (64, 64, 3), (64, 256, 1)], 69_632),
        ([(64, 64, 3), (64, 64, 3)], 73_728),
        ([(256, 256, 3), (256, 256, 3)], 1_179_648),
    ],
)
def test_resnet_blocks(layers: Sequence[tuple[int, int, int]], weights: int) -> None:
    specs = [conv_spec(f"conv{n}", *layer, bias=False) for n, layer in enumerate(layers)]
    cost = price_layers(specs, [(1, layers[0][0], 1, 1)])
    assert cost == Cost(macs=weights, params=weights)


def test_a_multiply_add_is_one_mac_and_two_flops() -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 2, 3)), torch.randn(1, 3, 6, 6))
    assert traced.cost.macs == 2 * 3 * 9 * 16
    assert traced.cost.flops == 2 * traced.cost.macs


def test_macs_of_a_batch_are_macs_of_each_example() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 5))
    one, four = (trace(net, torch.randn(size, 3, 6, 6)).cost for size in (1, 4))
    assert four.macs == 4 * one.macs
    assert four.params == one.params


# -- whole networks -----------------------------------------------------------------------------------------------


def nin_block(i: int, kernel: int, widths: Sequence[int], **options: int) -> nn.Sequential:
    a, b, c = widths
    return nn.Sequential(conv(i, a, kernel, **options), conv(a, b, 1), conv(b, c, 1))


def nin_cifar() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nin_block(3, 5, (192, 160, 96), padding=2), pool(), nin_block(96, 5, (192, 192, 192), padding=2), pool(),
        nin_block(192, 3, (192, 192, 10), padding=1), nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip


def nin_imagenet() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2)

    return nn.Sequential(
        nin_block(3, 11, (96, 96, 96), stride=4), pool(), nin_block(96, 5, (256, 256, 256), padding=2), pool(),
        nin_block(256, 3, (384, 384, 384), padding=1), pool(), nin_block(384, 3, (1024, 1024, 1000), padding=1),
        nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip


def test_network_in_network_for_cifar() -> None:
    cost = count_on_meta(nin_cifar, (1, 3, 32, 32))
    assert (cost.params, cost.macs) == (966_986, 222_486_528)


def test_network_in_network_for_imagenet() -> None:
    cost = count_on_meta(nin_imagenet, (1, 3, 227, 227))
    assert (cost.params, cost.macs) == (7_595_176, 1_105_996_320)


def test_squeezenet() -> None:
    with torch.device("meta"):
        model = build("squeezenet1_0")
    fires = [module for module in model.features if type(module).__name__ == "Fire"]  # type: ignore[union-attr]
    sizes = [sum(parameter.numel() for parameter in fire.parameters()) for fire in fires]
    assert sizes == [11920, 12432, 45344, 49440, 104880, 111024, 188992, 197184]
    assert count_on_meta(lambda: build("squeezenet1_0"), (1, 3, 224, 224)).params == 1_248_424


@cache
def traced_resnet(name: str) -> Traced:
    return trace(build(name), torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize(
    ("name", "macs", "fvcore_total"),
    [("resnet18", 1_814_073_344, 1_819_065_856), ("resnet50", 4_089_184_256, 4_111_512_576)],
)
def test_resnet(name: str, macs: int, fvcore_total: int) -> None:
    traced = traced_resnet(name)
    assert traced.cost.macs == macs
    assert traced.cost.macs + traced.cost.other == fvcore_total
    assert sum(node.cost.macs for node in traced.structure.nodes) == macs


def test_vgg16() -> None:
    cost = count_on_meta(lambda: build("vgg16"), (1, 3, 224, 224))
    convolutions = count_on_meta(lambda: build("vgg16").get_submodule("features"), (1, 3, 224, 224))
    assert convolutions.macs == 15_346_630_656
    assert cost.macs == 15_470_264_320
    with torch.device("meta"):
        model = build("vgg16")
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1) == 138_344_128


# -- GoogLeNet ----------------------------------------------------------------------------------------------------

GOOGLENET = {
    "3a": (192, (64, 96, 128, 16, 32, 32), 28, 163_328, 128_049_152),
    "3b": (256, (128, 128, 192, 32, 96, 64), 28, 388_096, 304_267_264),
    "4a": (480, (192, 96, 208, 16, 48, 64), 14, 375_552, 73_608_192),
    "4b": (512, (160, 112, 224, 24, 64, 64), 14, 448_512, 87_908_352),
    "4c": (512, (128, 128, 256, 24, 64, 64), 14, 509_440, 99_850_240),
    "4d": (512, (112, 144, 288, 32, 64, 64), 14, 604_672, 118_515_712),
    "4e": (528, (256, 160, 320, 32, 128, 128), 14, 867_328, 169_996_288),
    "5a": (832, (256, 160, 320, 32, 128, 128), 7, 1_042_432, 51_079_168),
    "5b": (832, (384, 192, 384, 48, 128, 128), 7, 1_442_816, 70_697_984),
}
WIDTHS_3A = GOOGLENET["3a"][1]


def branch(i: int, reduced: int, o: int, kernel: int) -> nn.Sequential:
    """A kernel behind a 1x1, or alone where ``reduced`` is 0."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if reduced:
        layers["reduce"] = nn.Conv2d(i, reduced, 1, bias=False)
    layers["conv"] = nn.Conv2d(reduced or i, o, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layers)


class Inception(nn.Module):
    """GoogLeNet's module, linear; ``reduce=False`` leaves out the 1x1 before the 3x3 and the 5x5."""

    def __init__(self, i: int, widths: Sequence[int], *, reduce: bool = True) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.one = nn.Conv2d(i, one, 1, bias=False)
        self.three = branch(i, reduce3 if reduce else 0, three, 3)
        self.five = branch(i, reduce5 if reduce else 0, five, 5)
        self.pool = nn.Conv2d(i, pool, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(pooled)], 1)


@pytest.mark.parametrize("name", GOOGLENET)
def test_googlenet_module(name: str) -> None:
    i, widths, pixels, weights, macs = GOOGLENET[name]
    traced = trace(Inception(i, widths), torch.randn(1, i, pixels, pixels))
    assert (traced.cost.params, traced.cost.macs) == (weights, macs)


def branch_macs(name: str, *, reduce: bool) -> int:
    i, widths, pixels, _, _ = GOOGLENET[name]
    traced = trace(Inception(i, widths, reduce=reduce), torch.randn(1, i, pixels, pixels))
    return sum(node.cost.macs for node in traced.structure.nodes if node.path.startswith(("three", "five")))


def test_reductions_of_module_3a() -> None:
    assert branch_macs("3a", reduce=True) == 113_598_464
    assert branch_macs("3a", reduce=False) == 293_830_656


@pytest.mark.parametrize(("name", "ratio"), [("3a", 2.59), ("3b", 3.12), ("4a", 5.84), ("5a", 7.00)])
def test_saving_by_reductions(name: str, ratio: float) -> None:
    assert round(branch_macs(name, reduce=False) / branch_macs(name, reduce=True), 2) == ratio


def reduce_plan(model: nn.Module, ranks: dict[str, int]) -> Plan:
    """A plan, made by hand, that puts a 1x1 of these ranks before the convolutions at these paths; no biases."""
    steps = tuple(_reduce_step(model.get_submodule(path), path, rank) for path, rank in ranks.items())
    return Plan("Inception", "by hand", ("reduce",), 0, Cost(), Cost(), 0.0, 0.0, steps)


def _reduce_step(module: nn.Module, path: str, rank: int) -> Step:
    layer = describe_layer(module)
    assert layer is not None
    layers = (layer.pointwise("reduce", layer.in_channels, rank, bias=False), layer.named("conv", in_channels=rank))
    return Step(path, (path,), "reduce", "reduce", (rank,), (layer.in_channels,), layer, layers, Cost(), Cost(), 0.0)


def test_module_3a_without_reductions_rewritten_at_96_and_16_is_module_3a() -> None:
    bare, x = Inception(192, WIDTHS_3A, reduce=False), torch.randn(1, 192, 28, 28)
    plan = reduce_plan(bare, {"three.conv": 96, "five.conv": 16})
    rewritten, whole = trace(rewrite_structure(bare, plan), x), trace(Inception(192, WIDTHS_3A), x)
    assert _convolutions(rewritten) == _convolutions(whole)
    assert rewritten.cost == whole.cost
    assert rewritten.cost.macs == 128_049_152


def _convolutions(traced: Traced) -> list[tuple[tuple[int, ...], ...]]:
    """Kernel, input and output shape of every convolution that ran, sorted."""
    return sorted(
        (node.layer.kernel, *node.input_shapes, *node.output_shapes)
        for node in traced.structure.nodes
        if node.layer is not None
    )


def planted(model: Inception, ranks: dict[str, int]) -> Inception:
    """The module with its kernels made of a 1x1 and a kernel of these ranks."""
    generator = torch.Generator().manual_seed(0)
    for path, rank in ranks.items():
        weight = model.get_parameter(f"{path}.weight").data
        o, i, *kernel = weight.shape
        first = torch.randn(rank, i, generator=generator) / i**0.5
        second = torch.randn(o, rank, *kernel, generator=generator) / (rank * weight[0, 0].numel()) ** 0.5
        weight.copy_(torch.einsum("orhw,ri->oihw", second, first))
    return model


def test_allocation_finds_the_planted_ranks_of_module_3a() -> None:
    torch.manual_seed(0)
    bare = planted(Inception(192, WIDTHS_3A, reduce=False), {"three.conv": 96, "five.conv": 16})
    x = torch.randn(1, 192, 6, 6)
    budget = trace(Inception(192, WIDTHS_3A), x).cost.macs
    result = optimize(bare, x, budget=f"macs={budget}", progress=False)
    assert {step.path: (step.form, step.ranks) for step in result.plan.steps} == {
        "three.conv": ("reduce", (96,)),
        "five.conv": ("reduce", (16,)),
    }
    assert result.after.cost.macs == budget
    assert measured(result.verification) < 1e-9


# -- Kim et al. 2016 ----------------------------------------------------------------------------------------------

VGG16_LAYERS = {  # name: in, out, pixels
    "1_1": (3, 64, 224), "1_2": (64, 64, 224), "2_1": (64, 128, 112), "2_2": (128, 128, 112),
    "3_1": (128, 256, 56), "3_2": (256, 256, 56), "3_3": (256, 256, 56), "4_1": (256, 512, 28),
    "4_2": (512, 512, 28), "4_3": (512, 512, 28), "5_1": (512, 512, 14), "5_2": (512, 512, 14), "5_3": (512, 512, 14),
}  # fmt: skip
KIM_RANKS = {  # name: r1, r2, weights
    "1_2": (11, 18, 3638), "2_1": (22, 34, 12492), "2_2": (39, 36, 22236), "3_1": (58, 117, 98450),
    "3_2": (138, 132, 233064), "3_3": (124, 119, 195012), "4_1": (148, 194, 395624), "4_2": (212, 207, 609484),
    "4_3": (178, 163, 435718), "5_1": (185, 164, 451748), "5_2": (172, 170, 438264), "5_3": (120, 120, 252480),
}  # fmt: skip
VGG16_LINEAR_WEIGHTS = 25088 * 4096 + 4096 * 4096 + 4096 * 1000


def tucker_cost(name: str) -> Cost:
    i, o, pixels = VGG16_LAYERS[name]
    if name not in KIM_RANKS:
        return price_layers([conv_spec("conv", i, o, 3, bias=False)], [(1, i, pixels, pixels)])
    r1, r2, _ = KIM_RANKS[name]
    layers = [
        conv_spec("reduce", i, r1, 1, bias=False),
        conv_spec("core", r1, r2, 3, bias=False),
        conv_spec("expand", r2, o, 1, bias=False),
    ]
    return price_layers(layers, [(1, i, pixels, pixels)])


@pytest.mark.parametrize("name", KIM_RANKS)
def test_tucker_layer_of_vgg16(name: str) -> None:
    assert tucker_cost(name).params == KIM_RANKS[name][2]


def test_tucker_vgg16() -> None:
    cost = sum((tucker_cost(name) for name in VGG16_LAYERS), Cost())
    assert cost.macs == 3_709_594_000
    assert round(15_346_630_656 / cost.macs, 3) == 4.137
    assert cost.params + VGG16_LINEAR_WEIGHTS == 126_783_602


# -- other counters -----------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Grouped, depthwise, dilated, transposed, 1d and 3d convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding="same", groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=2, dilation=2, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.line = nn.Conv1d(6, 5, 3)
        self.solid = nn.Conv3d(1, 2, 2)
        self.linear = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.depthwise(self.grouped(x)))
        line = self.line(y.flatten(2))
        rows = y.mean(2).transpose(1, 2)
        weights = rows @ rows.transpose(1, 2)
        extra = self.linear(line[..., :7]).sum() + self.solid(y[:, None]).sum() + torch.mm(y[0, 0], y[0, 1]).sum()
        scores: Tensor = weights.sum() + extra + torch.einsum("bij,bjk->bik", rows, rows.transpose(1, 2)).sum()
        return scores


def flops_by_torch(model: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(x)
    return int(counter.get_total_flops())


def test_mixed_operations_agree_with_torch() -> None:
    x = torch.randn(2, 4, 8, 8)
    assert trace(Mixed(), x).cost.flops == flops_by_torch(Mixed(), x)


def test_attention_counts_its_two_products() -> None:
    def fused(net: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x[:, :, :5], x[:, :, :5])

    def spelt_out(net: nn.Module, x: Tensor) -> Tensor:
        return (x @ x[:, :, :5].transpose(2, 3)).softmax(3) @ x[:, :, :5]

    x = torch.randn(2, 3, 7, 4)
    assert trace(Computes(fused), x).cost.flops == flops_by_torch(Computes(spelt_out), x)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("resnet18", 64), ("mobilenet_v3_small", 64), ("shufflenet_v2_x0_5", 64), ("googlenet", 64), ("vit_b_32", 224)],
)
def test_torchvision_models_agree_with_torch(name: str, pixels: int) -> None:
    counted = count_on_meta(lambda: build(name), (1, 3, pixels, pixels))
    with torch.device("meta"):
        assert counted.flops == flops_by_torch(build(name), torch.empty(1, 3, pixels, pixels))


def test_a_traced_model_agrees_with_torch() -> None:
    model, x = build("shufflenet_v2_x0_5"), torch.randn(2, 3, 64, 64)
    assert trace(model, x).cost.flops == flops_by_torch(model, x)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_torchvision_models_agree_with_fvcore(name: str) -> None:
    model, x = build(name), torch.randn(1, 3, 64, 64)
    cost = trace(model, x).cost
    assert cost.macs + cost.other == fvcore_total(model, x)


def fvcore_total(model: nn.Module, x: Tensor) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit, when imported and when it traces
        from fvcore.nn import FlopCountAnalysis  # noqa: PLC0415  (it warns when imported, too)

        analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def test_rewritten_model_costs_what_the_plan_says() -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, (1, 3)), nn.Flatten(), nn.Linear(40, 3))
    x = torch.randn(2, 4, 8, 8)
    for passes in (["reduce"], ["expand"], ["reduce", "expand"]):
        plan, rewritten = full_rank_plan(net, x, passes=passes), rewrite_at_full_rank(net, x, passes=passes)
        cost = trace(rewritten, x).cost
        assert cost == plan.after
        assert cost.flops == flops_by_torch(rewritten, x)
