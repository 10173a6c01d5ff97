from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt.kernels import spread_groups
from bottleneck_opt.patches import count_examples, count_positions, pad_input, take_patches, take_pixels
from tests.layer_samples import bias_of, convolutions, input_shape, plain_kernel, spec_of
from tests.networks import conv, noise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)


def outputs_by_patches(layer: nn.Module, x: Tensor, positions: Tensor) -> Tensor:
    """The layer's output pixels as its input patches times its plain kernel."""
    spec, bias = spec_of(layer), bias_of(layer)
    kernel = spread_groups(plain_kernel(layer), spec.groups)
    flat = kernel.reshape(spec.out_channels, spec.in_channels, spec.offsets).transpose(1, 2).flatten(1)
    products = take_patches(spec, x, positions) @ flat.T
    return products if bias is None else products + bias


@given(convolutions(), st.booleans())
@PROPERTY
def test_weight_times_patch_is_the_layers_output_everywhere(layer: nn.Module, batched: bool) -> None:
    spec = spec_of(layer)
    assume(batched or spec.padding_mode != "circular")  # torch itself wants a batch there
    x = noise(*input_shape(layer)[0 if batched else 1 :])
    y = layer(x).detach()
    everywhere = torch.arange(count_positions(spec, y))
    assert everywhere.numel() * spec.out_channels * (len(x) if batched else 1) == y.numel()
    torch.testing.assert_close(outputs_by_patches(layer, x, everywhere), take_pixels(spec, y, everywhere))


@given(convolutions(), st.integers(0, 9))
@PROPERTY
def test_some_positions_are_some_of_all(layer: nn.Module, seed: int) -> None:
    spec, x = spec_of(layer), noise(*input_shape(layer))
    count = count_positions(spec, layer(x))
    some = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:5]
    every = take_patches(spec, x, torch.arange(count)).view(len(x), count, -1)
    assert torch.equal(take_patches(spec, x, some), every[:, some].flatten(0, 1))


@given(convolutions(), st.integers(0, 9))
@PROPERTY
def test_each_example_may_have_positions_of_its_own(layer: nn.Module, seed: int) -> None:
    spec, x = spec_of(layer), noise(*input_shape(layer))
    y = layer(x).detach()
    count = count_positions(spec, y)
    own = torch.randint(count, (len(x), 5), generator=torch.Generator().manual_seed(seed))
    assert count_examples(spec, y) == len(x)
    for take, values in ((take_patches, x), (take_pixels, y)):
        every = take(spec, values, torch.arange(count)).view(len(x), count, -1)
        expected = every[torch.arange(len(x))[:, None], own].flatten(0, 1)
        assert torch.equal(take(spec, values, own), expected)


@given(convolutions(axes=(2,), kinds=("plain",)))
@PROPERTY
def test_patches_are_those_of_unfold(layer: nn.Module) -> None:
    spec, x = spec_of(layer), noise(*input_shape(layer))
    positions = torch.arange(count_positions(spec, layer(x)))
    patches = take_patches(spec, x, positions)
    unfolded = F.unfold(pad_input(spec, x), spec.kernel, spec.dilation, 0, spec.stride)
    by_channel = unfolded.view(2, spec.in_channels, spec.offsets, -1)
    torch.testing.assert_close(patches, by_channel.permute(0, 3, 2, 1).reshape(patches.shape))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 5, 4), (2, 3, 5, 4)])
def test_rows_of_a_linear(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(4, 2, dtype=torch.float64), noise(*shape)
    spec, y = spec_of(layer), layer(x).detach()
    everywhere = torch.arange(count_positions(spec, y))
    computed = outputs_by_patches(layer, x, everywhere)
    torch.testing.assert_close(computed, take_pixels(spec, y, everywhere))
    assert computed.numel() == y.numel()
    examples = count_examples(spec, y)
    repeated = everywhere.repeat(examples, 1)
    assert torch.equal(take_pixels(spec, y, repeated), take_pixels(spec, y, everywhere))


def test_an_image_without_a_batch_axis() -> None:
    layer, x = conv(3, 2).double(), noise(3, 6, 6)
    spec, y = spec_of(layer), layer(x).detach()
    everywhere = torch.arange(36)
    torch.testing.assert_close(take_patches(spec, x, everywhere), take_patches(spec, x[None], everywhere))
    torch.testing.assert_close(take_pixels(spec, y, everywhere), take_pixels(spec, y[None], everywhere))
