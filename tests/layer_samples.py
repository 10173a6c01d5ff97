"""Single layers with statistics taken from data, for tests of fitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt.costs import price_layers
from bottleneck_opt.kernels import merge_kernels, spread_groups, to_module, to_plain
from bottleneck_opt.layers import LINEAR, LayerSpec, describe_layer
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.passes.spatial import Spatial
from bottleneck_opt.passes.tucker import Tucker
from bottleneck_opt.patches import count_positions, pad_input, take_patches, take_pixels
from bottleneck_opt.sites import Option, Pass, Site
from bottleneck_opt.statistics import LayerStatistics, Moments

PASSES: dict[str, Pass] = {each.name: each for each in (Reduce(), Expand(), Tucker(), Spatial())}


_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_SIZES = {1: (11,), 2: (9, 8), 3: (7, 8, 7)}
MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def convolutions(
    draw: st.DrawFn, *, axes: Sequence[int] = (1, 2, 3), groups: Sequence[int] = (1, 2, 3),
    kinds: Sequence[str] = ("plain", "transposed"),
) -> nn.Module:  # fmt: skip
    """Any stock convolution in float64 that runs on an input of :func:`input_shape`.

    Args:
        draw: Hypothesis hands it over.
        axes: Numbers of spatial axes to choose from.
        groups: Numbers of groups to choose from.
        kinds: ``plain``, ``transposed`` or both.
    """
    count, number = draw(st.sampled_from(axes)), draw(st.sampled_from(groups))

    def numbers(lowest: int, highest: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(lowest, highest)) for _ in range(count))

    turned = draw(st.sampled_from(kinds)) == "transposed"
    stride, dilation = numbers(1, 3), numbers(1, 2)
    options: dict[str, Any] = {"padding": numbers(0, 2), "stride": stride, "dilation": dilation}
    if turned:
        extra = draw(st.booleans())
        options["output_padding"] = tuple(
            extra * (max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)
        )  # torch allows less than the larger of both
    else:
        named = draw(st.sampled_from(["", "", "valid", "same"]))
        options |= {"padding_mode": draw(st.sampled_from(MODES)), "padding": named or options["padding"]}
        options["stride"] = (1,) * count if named == "same" else stride
    kernel = numbers(1, 4 if count < 3 else 3)
    widths = draw(st.integers(1, 3)) * number, draw(st.integers(1, 3)) * number
    torch.manual_seed(draw(st.integers(0, 9)))
    kind = f"Conv{'Transpose' * turned}{count}d"
    made: nn.Module = getattr(nn, kind)(
        *widths, kernel, groups=number, bias=draw(st.booleans()), dtype=torch.float64, **options
    )
    return made


def spec_of(layer: nn.Module) -> LayerSpec:
    """The description of a layer that has one."""
    spec = describe_layer(layer)
    assert spec is not None
    return spec


def input_shape(layer: nn.Module, batch: int = 2, *, grown: int = 0) -> tuple[int, ...]:
    """A shape of inputs that the layer runs on, unlike along its axes; ``grown`` makes each axis longer."""
    spec = spec_of(layer)
    return (batch, spec.in_channels, *(size + grown for size in _SIZES[len(spec.kernel)]))


def has_form(layer: nn.Module, name: str) -> bool:
    """Whether the pass of that name has options for the layer."""
    spec = spec_of(layer)
    if name == "spatial":
        return sum(length > 1 for length in spec.kernel) > 1 and spec.in_channels > spec.groups
    if name == "tucker":
        return spec.offsets > 1 and spec.in_channels > spec.groups == 1
    if name == "reduce":
        return spec.offsets > 1 and spec.in_channels > spec.groups
    return spec.out_channels > spec.groups


def plain_kernel(layer: nn.Module) -> Tensor:
    """The kernel of the plain convolution that the layer computes."""
    return to_plain(spec_of(layer), layer.get_parameter("weight").detach())


def bias_of(layer: nn.Module) -> Tensor | None:
    """The layer's bias, if it has one."""
    bias = layer._parameters["bias"]
    return None if bias is None else bias.detach()


def relative_gap(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value expected; shapes must be equal."""
    assert got.shape == expected.shape
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def compute_layer(spec: LayerSpec, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """What a stock layer of this description computes, as a plain function of its kernel.

    Args:
        spec: The layer.
        x: Input ``(batch, channels, *size)``, or ``(..., features)`` for a Linear.
        kernel: ``spec.weight_shape``.
        bias: ``(out,)`` or None.
    """
    if spec.kind == LINEAR:
        return F.linear(x, kernel, bias)
    axes = len(spec.kernel)
    if spec.transposed:
        return _TRANSPOSED[axes](
            x, to_module(spec, kernel), bias, spec.stride, spec.padding, spec.output_padding, spec.groups, spec.dilation
        )
    padded = pad_input(spec, x)
    return _CONVOLUTIONS[axes](padded, kernel, bias, spec.stride, 0, spec.dilation, spec.groups)


def double_conv(i: int, o: int, kernel: int | tuple[int, int], **options: Any) -> nn.Conv2d:
    """A convolution in float64."""
    return nn.Conv2d(i, o, kernel, dtype=torch.float64, **options)


def make_site(layer: nn.Module, x: Tensor, *, curvature: Tensor | None = None, shrinkage: float = 1e-12) -> Site:
    """The layer as a pass sees it, with the exact statistics of all patches of ``x``.

    Args:
        layer: A float64 convolution or Linear.
        x: Its input.
        curvature: ``G (out, out)``; the identity by default.
        shrinkage: Of the covariance.
    """
    spec, bias = spec_of(layer), bias_of(layer)
    y = compute_layer(spec, x, plain_kernel(layer), bias)
    everywhere = torch.arange(count_positions(spec, y))
    statistics = LayerStatistics(
        moments(take_patches(spec, x, everywhere)), moments(take_pixels(spec, y, everywhere)),
        torch.eye(spec.out_channels, dtype=torch.float64) if curvature is None else curvature, 1,
    )  # fmt: skip
    return Site(
        path="layer", names=("layer",), layer=spec, weight=plain_kernel(layer), bias=bias,
        input_shapes=(tuple(x.shape),), cost=price_layers([spec], [x.shape]), statistics=statistics, examples=len(x),
        shrinkage=shrinkage,
    )  # fmt: skip


def moments(samples: Tensor) -> Moments:
    """The sums over samples ``(n, d)``."""
    return Moments(len(samples), samples.sum(0), float(samples.square().sum()), samples.T @ samples)


def offers(site: Site, name: str) -> list[Option]:
    """All options of the pass."""
    answer = PASSES[name].propose(site)
    assert isinstance(answer, list)
    return answer


def offer(site: Site, name: str, rank: int | None = None) -> Option:
    """The pass's option at a rank, the full one by default."""
    answer = offers(site, name)
    wanted = answer[0].full_ranks if rank is None else (rank,)
    found: Option = next(option for option in answer if option.ranks == wanted)
    return found


def run_option(option: Option, x: Tensor) -> Tensor:
    """What the option's layers compute."""
    for spec, weights in zip(option.layers, option.fill(), strict=True):
        x = compute_layer(spec, x, weights.weight, weights.bias)
    return x


def merged_weight(option: Option, layer: LayerSpec) -> Tensor:
    """The kernel the option's layers multiply out to, flat and offset-major ``(out, offsets * in)``."""
    merged = merge_kernels(option.layers, [weights.weight for weights in option.fill()])
    full = spread_groups(merged, layer.groups)
    return full.reshape(layer.out_channels, layer.in_channels, -1).transpose(1, 2).flatten(1)


def random_curvature(o: int) -> Tensor:
    """A random positive matrix ``(o, o)`` of very uneven eigenvalues."""
    root = torch.randn(o, o, dtype=torch.float64) * torch.logspace(0, -2, o, dtype=torch.float64)
    return root @ root.T


def correlated(x: Tensor) -> Tensor:
    """The input ``(batch, channels, ...)`` with its channels mixed, unevenly scaled and off zero."""
    mix = torch.randn(x.shape[1], x.shape[1], dtype=x.dtype) * torch.logspace(0, -1.5, x.shape[1], dtype=x.dtype)
    return torch.einsum("ij,bj...->bi...", mix, x) + torch.randn(x.shape[1], dtype=x.dtype).view(
        1, -1, *[1] * (x.dim() - 2)
    )


# -- layers with a forward of their own ---------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """A convolution whose weight has mean 0 and deviation 1 in every output channel (weight standardisation)."""

    def standardised(self) -> Tensor:
        """The weight that is used."""
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = self._conv_forward(input, self.standardised(), self.bias)
        return out


def pad_to_cover(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The input with as much padding as makes the output ``size / stride`` large, rounded up, as TensorFlow does."""
    amounts: list[int] = []
    for axis in (1, 0):
        kernel, stride, size = layer.kernel_size[axis], layer.stride[axis], x.shape[-2 + axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(x, amounts)


class Covering(nn.Conv2d):
    """A convolution that pads by the input's size."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(pad_to_cover(self, input))


class StandardisedCovering(Standardised):
    """A convolution that computes its weight and pads by the input's size."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(pad_to_cover(self, input))


class Cached(nn.Conv1d):
    """A causal convolution that is handed the end of the input before."""

    def forward(self, input: Tensor, cache: Tensor | None = None) -> Tensor:  # noqa: A002
        before = input.new_zeros(*input.shape[:2], self.kernel_size[0] - 1) if cache is None else cache
        return super().forward(torch.cat([before, input], 2))


class Scaled(nn.Conv2d):
    """A convolution that scales and shifts what comes out."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * torch.linspace(1, 2, self.out_channels).view(-1, 1, 1).to(input) + 1


class Activated(nn.Conv2d):
    """A convolution with its activation inside."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).relu()


class Rectifying(nn.Linear):
    """A Linear with an activation before its product."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input.relu())


class Adapted(nn.Conv2d):
    """A convolution with a second, thin one beside it, as LoRA adds."""

    def __init__(self, i: int, o: int, kernel: int, **options: Any) -> None:
        super().__init__(i, o, kernel, **options)
        self.down, self.up = nn.Parameter(torch.randn(2, i, kernel, kernel)), nn.Parameter(torch.randn(o, 2, 1, 1))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + F.conv2d(F.conv2d(input, self.down, padding=self.padding), self.up)


class Noisy(nn.Conv2d):
    """A convolution whose weight is a little different in every call."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = self._conv_forward(input, self.weight + 0.1 * torch.randn_like(self.weight), self.bias)
        return out


class Clamped(nn.Conv2d):
    """A convolution that limits its input, as layers made for small integers do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input.clamp(-6, 6))


class Conditional(nn.Conv2d):
    """A convolution whose weight depends on its input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = self._conv_forward(input, self.weight * input.mean().sin(), self.bias)
        return out


class OwnKernel(nn.Module):
    """A module of one's own that convolves with a scaled parameter."""

    def __init__(self, i: int, o: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(o, i, kernel, kernel)), nn.Parameter(torch.randn(o))
        self.padding = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel * 0.3, self.shift, padding=self.padding)
