"""The tensors that recovery changes: floating parameters, and the running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """All floating parameters, by name."""
    return {name: each for name, each in model.named_parameters() if each.is_floating_point()}


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms that keep statistics, by path."""
    return {
        path: each
        for path, each in model.named_modules()
        if isinstance(each, _BatchNorm) and each.running_mean is not None
    }


def norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of the batch norms, by name."""
    return {
        f"{path}.{name}": buffer
        for path, norm in norms_of(model).items()
        for name, buffer in (("running_mean", norm.running_mean), ("running_var", norm.running_var))
        if buffer is not None
    }


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the values at this moment."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def copy_tensors(values: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write values into tensors of the same names, in the tensors' own precision."""
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Write all that recovery changes into a model of the same structure, in its own precision."""
    copy_tensors(trained_parameters(source), trained_parameters(target))
    copy_tensors(norm_statistics(source), norm_statistics(target))
