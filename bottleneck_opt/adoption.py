"""Modules of the user's own that are convolutions in all but name: a parameter and one call of ``F.conv2d``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bottleneck_opt.graph import FunctionalLayer
from bottleneck_opt.inputs import Inputs, is_without_values
from bottleneck_opt.layers import LayerSpec, class_name, is_layer
from bottleneck_opt.probing import Probe, probe_layer, recorded_arguments
from bottleneck_opt.working_copy import run_on_example


def find_own_layers(working: nn.Module, inputs: Inputs, functional: Sequence[FunctionalLayer]) -> dict[str, LayerSpec]:
    """The modules whose whole forward is one convolution or matrix product, with what they compute, by path.

    Args:
        working: A copy that may be run, in eval mode.
        inputs: The example call.
        functional: The layer functions that the model's code called itself.
    """
    if is_without_values(working):
        return {}
    modules = {layer.path: working.get_submodule(layer.path) for layer in functional if layer.path}
    paths = [path for path, module in modules.items() if _may_be_layer(module)]
    if not paths:
        return {}
    with torch.no_grad(), recorded_arguments(working, paths) as calls:
        run_on_example(working, inputs)
    probes = {path: probe_layer(modules[path], calls[path]) for path in paths if calls[path]}
    return {
        path: probe.layer.named("conv", subclass=class_name(modules[path]))
        for path, probe in probes.items()
        if isinstance(probe, Probe)
    }


def _may_be_layer(module: nn.Module) -> bool:
    holds_weight = any(parameter.dim() > 1 for parameter in module._parameters.values() if parameter is not None)
    return holds_weight and not is_layer(module) and not any(is_layer(each) for each in module.modules())
