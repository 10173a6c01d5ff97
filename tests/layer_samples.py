"""Single layers with statistics taken from data, for tests of fitting."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck_opt.costs import price_layers
from bottleneck_opt.layers import LINEAR, LayerSpec, describe_layer
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.patches import pad_input, take_patches, take_pixels
from bottleneck_opt.sites import Option, Pass, Site
from bottleneck_opt.statistics import LayerStatistics, Moments

PASSES: dict[str, Pass] = {"reduce": Reduce(), "expand": Expand()}


def compute_layer(spec: LayerSpec, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a stock layer of this description computes, as a plain function of its weight.

    Args:
        spec: The layer.
        x: Input ``(batch, channels, height, width)``, or ``(..., features)`` for a Linear.
        weight: ``spec.weight_shape``.
        bias: ``(out,)`` or None.
    """
    if spec.kind == LINEAR:
        return F.linear(x, weight, bias)
    return F.conv2d(pad_input(spec, x), weight, bias, spec.stride, 0, spec.dilation, spec.groups)


def double_conv(i: int, o: int, kernel: int | tuple[int, int], **options: Any) -> nn.Conv2d:
    """A convolution in float64."""
    return nn.Conv2d(i, o, kernel, dtype=torch.float64, **options)


def make_site(
    layer: nn.Conv2d | nn.Linear, x: Tensor, *, curvature: Tensor | None = None, shrinkage: float = 1e-12
) -> Site:
    """The layer as a pass sees it, with the exact statistics of all patches of ``x``.

    Args:
        layer: A float64 layer.
        x: Its input.
        curvature: ``G (out, out)``; the identity by default.
        shrinkage: Of the covariance.
    """
    spec = describe_layer(layer)
    assert spec is not None
    bias = None if layer.bias is None else layer.bias.detach()
    y = compute_layer(spec, x, layer.weight.detach(), bias)
    everywhere = torch.arange(y[0, ..., 0].numel() if spec.kind == "Linear" else y[0, 0].numel())
    statistics = LayerStatistics(
        moments(take_patches(spec, x, everywhere)), moments(take_pixels(spec, y, everywhere)),
        torch.eye(spec.out_channels, dtype=torch.float64) if curvature is None else curvature, 1,
    )  # fmt: skip
    return Site(
        path="layer", names=("layer",), layer=spec, weight=layer.weight.detach(), bias=bias,
        input_shapes=(tuple(x.shape),), cost=price_layers([spec], [x.shape]), statistics=statistics, examples=len(x),
        shrinkage=shrinkage,
    )  # fmt: skip


def moments(samples: Tensor) -> Moments:
    """The sums over samples ``(n, d)``."""
    return Moments(len(samples), samples.sum(0), float(samples.square().sum()), samples.T @ samples)


def offer(site: Site, name: str, rank: int | None = None) -> Option:
    """The pass's option at a rank, the full one by default."""
    answer = PASSES[name].propose(site)
    assert isinstance(answer, list)
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
    first, last = (weights.weight for weights in option.fill())
    if option.form == "reduce":
        kernel = torch.einsum("or...,ri->oi...", last, first.flatten(1))
    else:
        kernel = torch.einsum("or,ri...->oi...", last.flatten(1), first)
    return kernel.reshape(layer.out_channels, layer.in_channels, -1).transpose(1, 2).flatten(1)


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
