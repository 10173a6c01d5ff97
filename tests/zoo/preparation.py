"""Random weights that let a test see something: no dead scales, sound statistics, outputs that follow the input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.inputs import Inputs

_TINY = 0.02


def prepare(model: nn.Module, inputs: Inputs) -> None:
    """Make a model with random weights like a trained one, in place, with one run."""
    model.eval().requires_grad_(False)
    _wake_constants(model)
    with torch.no_grad(), _fitting_statistics(model):
        run(model, inputs)


def rescale(model: nn.Module, inputs: Inputs) -> None:
    """Give every convolution and Linear an output of spread 1, in place, with one run."""
    with torch.no_grad(), _fitting_scales(model):
        run(model, inputs)


def run(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output without gradients; random numbers inside it are the same at each call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return inputs.call(model)


def _wake_constants(model: nn.Module) -> None:
    """Noise in place of weights that start at (nearly) zero: layer scales, last norms of a block, heads."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias" or not parameter.is_floating_point() or not parameter.numel():
            continue
        if float(parameter.abs().max()) < _TINY and float(parameter.std(correction=0)) < _TINY / 1000:
            values = torch.randn(parameter.shape, generator=generator)
            fan_in = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
            woken = values / fan_in**0.5 if parameter.dim() > 1 else 1 + 0.2 * values
            parameter.copy_(woken)


@contextmanager
def _fitting_statistics(model: nn.Module) -> Iterator[None]:
    """While it lasts, every batch norm takes its statistics from what it is about to normalise."""

    def fit(norm: nn.Module, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
            return
        mean, variance = _moments(args[0].detach())
        norm.running_mean.copy_(mean)  # type: ignore[operator]  # a buffer: only such modules get the hook
        norm.running_var.copy_(variance)  # type: ignore[operator]

    norms = [
        module for module in model.modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
    ]  # fmt: skip
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel; of all together where a channel has too few values of its own."""
    rows = x.transpose(0, 1).flatten(1).float()
    if rows.shape[1] < 8:
        rows = rows.flatten().expand(len(rows), -1)
    return rows.mean(1), rows.var(1, correction=0).clamp_min(1e-4)


@contextmanager
def _fitting_scales(model: nn.Module) -> Iterator[None]:
    """While it lasts, every plain convolution and Linear is scaled so that its first output has spread 1."""
    done: set[int] = set()

    def fit(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        weight = layer._parameters.get("weight")
        if id(layer) in done or weight is None or not isinstance(output, Tensor) or output.numel() < 2:
            return None
        done.add(id(layer))
        spread = float(output.float().std())
        if not 0 < spread < float("inf") or 0.3 < spread < 3:
            return None
        weight.div_(spread)
        bias = layer._parameters.get("bias")
        if bias is not None:
            bias.div_(spread)
        return output / spread

    layers = [module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
    hooks = [layer.register_forward_hook(fit) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
