"""A site that has lost channels: fewer to read, fewer to make, the weight fitted to those it still reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bottleneck_opt.conditioning import cholesky, shrink
from bottleneck_opt.elimination import refit_kept
from bottleneck_opt.graph import Cost
from bottleneck_opt.layers import LINEAR, LayerSpec
from bottleneck_opt.sites import Site
from bottleneck_opt.statistics import LayerStatistics, Moments

_READ_OFF = 1e-3


def narrow_site(site: Site, kept_inputs: Sequence[int], kept_outputs: Sequence[int]) -> Site:
    """The site with these channels only, for passes to look at like any other.

    Its weight gives what the whole layer gave, as far as the kept inputs tell; its cost is that of the narrower layer.

    Args:
        site: A site without groups.
        kept_inputs, kept_outputs: Channel numbers, ascending.

    Raises:
        ValueError: The site has groups, or its patches were not correlated.
    """
    if site.layer.groups != 1:
        raise ValueError(f"'{site.path}' has groups={site.layer.groups}; expected a layer without groups")
    inputs, outputs = (torch.tensor(tuple(each), device="cpu") for each in (kept_inputs, kept_outputs))
    layer = _narrow_layer(site.layer, len(inputs), len(outputs))
    weight, bias, statistics = _narrow_values(site, inputs, outputs)
    if len(outputs) < site.layer.out_channels and site.has_gradient:
        statistics = replace(statistics, curvature=_concentrate(site, outputs))
    return replace(
        site,
        layer=layer,
        weight=weight,
        bias=bias,
        input_shapes=tuple(narrow_shape(shape, layer, len(inputs)) for shape in site.input_shapes),
        output_shapes=tuple(narrow_shape(shape, layer, len(outputs)) for shape in site.output_shapes),
        cost=narrow_cost(site, len(inputs), len(outputs)),
        statistics=statistics,
        whole=site.whole or site,
        kept_inputs=tuple(kept_inputs) if len(inputs) < site.layer.in_channels else (),
        kept_outputs=tuple(kept_outputs) if len(outputs) < site.layer.out_channels else (),
    )


def narrow_cost(site: Site, inputs: int, outputs: int) -> Cost:
    """What a site without groups costs with fewer channels."""
    layer = site.layer
    narrow = _narrow_layer(layer, inputs, outputs)
    macs = site.cost.macs * inputs * outputs // (layer.in_channels * layer.out_channels)
    shapes = [narrow_shape(shape, layer, inputs) for shape in site.input_shapes]
    return Cost(macs, narrow.params, site.cost.other, site.price_time((narrow,), shapes))


def _narrow_layer(layer: LayerSpec, inputs: int, outputs: int) -> LayerSpec:
    """With a bias where inputs are lost: it carries what they gave in the mean."""
    bias = layer.bias or inputs < layer.in_channels
    return layer.named(layer.name, in_channels=inputs, out_channels=outputs, bias=bias)


def _narrow_values(
    site: Site, inputs: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor | None, LayerStatistics]:  # fmt: skip
    """Weight, bias and statistics."""
    layer = site.layer
    entries = (torch.arange(layer.offsets, device="cpu")[:, None] * layer.in_channels + inputs).flatten()
    if len(inputs) == layer.in_channels:
        bias = None if site.bias is None else site.bias[outputs]
        return site.weight[outputs], bias, site.statistics.take(entries, outputs)
    fitted = refit_kept(site.offset_weight, site.covariance(), inputs)[outputs]
    spread = site.weight.new_zeros(len(outputs), layer.offsets * layer.in_channels)
    spread[:, entries] = fitted.flatten(1)
    mean = site.statistics.inputs.mean
    shift = (site.flat_weight[outputs] - spread) @ mean
    bias = shift if site.bias is None else site.bias[outputs] + shift
    seen = site.statistics.take(entries, outputs)
    made = predict_outputs(fitted.flatten(1), seen.inputs, seen.outputs.mean)
    weight = fitted.transpose(1, 2).reshape(len(outputs), len(inputs), *layer.kernel)
    return weight, bias, replace(seen, outputs=made)


def _concentrate(site: Site, kept: Tensor) -> Tensor:
    """Curvature of the kept output channels once whoever reads them has them stand for the others too ``(kept, kept)``.

    The reader was fitted again: a dropped channel is now read off the kept ones, as far as they tell what it was,
    ``y ~ M y_kept``. An error in a kept channel is then felt as one in all that it stands for: ``M^T G M``.
    """
    covariance = shrink(site.statistics.outputs.covariance(), _READ_OFF)
    stands_for = torch.cholesky_solve(covariance[kept], cholesky(covariance[kept[:, None], kept])).T
    stands_for[kept] = torch.eye(len(kept), dtype=covariance.dtype, device="cpu")
    felt: Tensor = stands_for.T @ site.statistics.curvature @ stands_for
    return felt


def predict_outputs(weight: Tensor, inputs: Moments, mean: Tensor) -> Moments:
    """What the narrower layer makes of the inputs that were seen ``(out,)``; its mean stays that of the whole layer."""
    covariance = weight @ inputs.covariance() @ weight.T
    outer = (covariance + torch.outer(mean, mean)) * inputs.count
    return Moments(inputs.count, mean * inputs.count, float(outer.trace()), outer)


def narrow_shape(shape: Sequence[int], layer: LayerSpec, channels: int) -> tuple[int, ...]:
    """A layer's input or output shape with another number of channels."""
    axis = len(shape) - 1 if layer.kind == LINEAR else len(shape) - len(layer.kernel) - 1
    return (*shape[:axis], channels, *shape[axis + 1 :])
