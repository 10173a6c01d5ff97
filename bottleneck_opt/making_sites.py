"""Make the sites that passes look at: each layer with its weights, its calls and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.graph import Cost, Node, Traced
from bottleneck_opt.kernels import to_plain
from bottleneck_opt.layers import LayerSpec, class_name, describe_layer
from bottleneck_opt.probing import Probe
from bottleneck_opt.sites import Pacer, Site
from bottleneck_opt.statistics import Statistics


def make_sites(
    working: nn.Module,
    traced: Traced,
    candidates: Candidates,
    statistics: Statistics,
    *,
    shrinkage: float | None = None,
    rounds: int = 0,
    pacer: Pacer | None = None,
) -> list[Site]:
    """One read-only site for each candidate layer.

    A layer whose curvature is missing or vanishing gets the median curvature of the others instead, so that it is not
    taken for free.
    """
    fallback = _median_curvature(statistics)
    made = []
    for path, layer in candidates.layers.items():
        calls = traced.structure.calls_of(*candidates.names[path])
        inputs, outputs = (tuple(call.input_shapes[0] for call in calls), tuple(c.output_shapes[0] for c in calls))
        kernel, bias = read_weights(working.get_submodule(path), layer, candidates.probes.get(path))
        cost = _cost_before(working.get_submodule(path), layer, calls)
        if pacer is not None:
            cost = replace(cost, latency=pacer.price((layer,), inputs, whole=layer, whole_shapes=inputs))
        probe = candidates.probes.get(path)
        made.append(
            Site(
                path=path,
                names=candidates.names[path],
                layer=layer,
                weight=kernel,
                bias=bias,
                input_shapes=inputs,
                cost=cost,
                statistics=statistics.layers[path],
                examples=statistics.examples,
                fallback_curvature=fallback,
                shrinkage=shrinkage,
                rounds=rounds,
                pacer=pacer,
                output_shapes=outputs,
                mixable_input=probe is None or probe.mixable_input,
                mixable_output=probe is None or probe.mixable_output,
                original=_describe_original(working.get_submodule(path), layer),
            )
        )
    return made


def _cost_before(module: nn.Module, layer: LayerSpec, calls: Sequence[Node]) -> Cost:
    """What really ran and goes away: a normalised layer has more parameters than what it computes."""
    params = layer.params if layer.subclass else sum(parameter.numel() for parameter in module.parameters())
    return Cost(macs=sum(call.cost.macs for call in calls), params=params)


def read_weights(module: nn.Module, layer: LayerSpec, probe: Probe | None) -> tuple[Tensor, Tensor | None]:
    """A layer's plain kernel and bias, float64 on the CPU."""
    if probe is not None:
        kernel, bias = probe.kernel, probe.bias
    else:
        kernel, bias = to_plain(layer, module.get_parameter("weight")), module._parameters.get("bias")
    return _exact(kernel), None if bias is None else _exact(bias)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _describe_original(module: nn.Module, layer: LayerSpec) -> LayerSpec:
    """The module that stands there: for one of the user's own class, what it computes under that class's name."""
    return describe_layer(module) or layer.named(layer.name, subclass=class_name(module))


def _median_curvature(statistics: Statistics) -> float:
    means = [
        float(layer.mean_curvature().diagonal().mean())
        for layer in statistics.layers.values()
        if layer.probes and float(layer.curvature.diagonal().sum()) > 0
    ]
    return float(torch.tensor(means, device="cpu").median()) if means else 1.0


def name_unfelt(sites: Sequence[Site]) -> list[str]:
    """Paths of the sites that no gradient reached."""
    return [site.path for site in sites if not site.has_gradient]
