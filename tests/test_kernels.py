from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt.kernels import merge_kernels, spread_groups, to_module, to_plain
from bottleneck_opt.layers import LayerSpec
from tests.layer_samples import bias_of, compute_layer, convolutions, input_shape, plain_kernel, relative_gap, spec_of
from tests.networks import noise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
PROPERTY = settings(deadline=None, max_examples=100, derandomize=True)


@given(convolutions())
@PROPERTY
def test_the_plain_kernel_has_its_shape_and_turns_back_into_the_weight(layer: nn.Module) -> None:
    spec, weight = spec_of(layer), layer.get_parameter("weight")
    kernel = to_plain(spec, weight)
    assert kernel.shape == spec.weight_shape
    assert torch.equal(to_module(spec, kernel), weight)


@given(convolutions())
@PROPERTY
def test_every_weight_of_the_modules_shape_comes_from_one_plain_kernel(layer: nn.Module) -> None:
    spec = spec_of(layer)
    kernel = noise(*spec.weight_shape)
    weight = to_module(spec, kernel)
    assert weight.shape == layer.get_parameter("weight").shape
    assert torch.equal(to_plain(spec, weight), kernel)


def spread_input(spec: LayerSpec, x: Tensor) -> Tensor:
    """The input of a transposed convolution with zeros in between and around, written entry by entry."""
    paddings = [before for before, _ in spec.padding_amounts()]
    margins = [d * (k - 1) - p for d, k, p in zip(spec.dilation, spec.kernel, paddings, strict=True)]
    sizes = [
        (n - 1) * s + 1 + 2 * m + extra
        for n, s, m, extra in zip(x.shape[2:], spec.stride, margins, spec.output_padding, strict=True)
    ]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[2:])).view(-1, len(margins)).tolist():
        to = tuple(a * s + m for a, s, m in zip(at, spec.stride, margins, strict=True))
        if all(0 <= t < size for t, size in zip(to, sizes, strict=True)):
            spread.movedim((0, 1), (-2, -1))[to] = x.movedim((0, 1), (-2, -1))[tuple(at)]
    return spread


@given(convolutions(kinds=("transposed",)))
@settings(PROPERTY, max_examples=60)
def test_a_transposed_layer_is_the_plain_convolution_of_its_spread_input(layer: nn.Module) -> None:
    spec, x = spec_of(layer), noise(*input_shape(layer, 1))
    ones, zeros = (1,) * len(spec.kernel), (0,) * len(spec.kernel)
    kind = spec.kind.replace("Transpose", "")
    plain = spec.named("plain", kind=kind, stride=ones, padding=zeros, output_padding=())
    computed = compute_layer(plain, spread_input(spec, x), plain_kernel(layer), bias_of(layer))
    torch.testing.assert_close(computed, layer(x).detach())


@given(convolutions(kinds=("plain",)))
@PROPERTY
def test_a_grouped_layer_is_the_full_convolution_with_zeros_between_groups(layer: nn.Module) -> None:
    spec, x = spec_of(layer), noise(*input_shape(layer))
    full = spread_groups(plain_kernel(layer), spec.groups)
    assert full.shape[1] == spec.in_channels
    assert int((full != 0).sum()) == plain_kernel(layer).numel()
    torch.testing.assert_close(compute_layer(spec.named("full", groups=1), x, full, bias_of(layer)), layer(x).detach())


def run_all(specs: list[LayerSpec], kernels: list[Tensor], x: Tensor) -> Tensor:
    for spec, kernel in zip(specs, kernels, strict=True):
        x = compute_layer(spec, x, kernel, None)
    return x


@given(convolutions(), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["before", "after", "both"]))
@PROPERTY
def test_merged_kernels_compute_what_the_layers_compute(layer: nn.Module, i: int, o: int, where: str) -> None:
    spec, x = spec_of(layer), noise(*input_shape(layer, 1))
    before = spec.pointwise("before", spec.in_channels, i * spec.groups, bias=False)
    after = spec.pointwise("after", o * spec.groups, spec.out_channels, bias=False)
    core = spec.named("core", bias=False)
    if where != "after":
        core = core.named("core", in_channels=before.out_channels)
    if where != "before":
        core = core.named("core", out_channels=after.in_channels)
    specs = {"before": [before, core], "after": [core, after], "both": [before, core, after]}[where]
    kernels = [noise(*each.weight_shape, seed=number) for number, each in enumerate(specs)]
    whole = spec.named("whole", bias=False)
    merged = merge_kernels(specs, kernels)
    assert merged.shape == whole.weight_shape
    assert relative_gap(compute_layer(whole, x, merged, None), run_all(specs, kernels, x)) < 1e-12


def test_merged_linears_are_their_product() -> None:
    specs = [LayerSpec("a", "Linear", 4, 2), LayerSpec("b", "Linear", 2, 3), LayerSpec("c", "Linear", 3, 5)]
    a, b, c = (noise(*spec.weight_shape, seed=seed) for seed, spec in enumerate(specs))
    torch.testing.assert_close(merge_kernels(specs, [a, b, c]), c @ b @ a)
