"""Optimizers and schedulers for the new parameters, going on where those of the old ones were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Before:
    """What the optimizers knew before the exchange.

    Attributes:
        groups: For each optimizer the settings of each group, such as its learning rate.
        states: What each kept of a parameter, such as its momentum, by the parameter's name.
        shapes: Shapes of the parameters, by name.
        schedulers: The state of each scheduler.
    """

    groups: Sequence[Sequence[Mapping[str, Any]]]
    states: Sequence[Mapping[str, Mapping[str, Any]]]
    shapes: Mapping[str, tuple[int, ...]]
    schedulers: Sequence[Mapping[str, Any]]


def remember(trainer: Trainer, module: nn.Module) -> Before:
    """What the trainer's optimizers know."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return Before(
        [[_settings(group) for group in each.param_groups] for each in trainer.optimizers],
        [{names[key]: value for key, value in each.state.items() if key in names} for each in trainer.optimizers],
        {name: tuple(parameter.shape) for parameter, name in names.items()},
        [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
    )


def rebuild(trainer: Trainer, module: nn.Module, before: Before) -> None:
    """Make optimizers and schedulers anew, by the module's own ``configure_optimizers``, and let them go on.

    Learning rates and schedules go on where they were, and so do momenta of parameters of the same name and shape; new
    parameters start without.
    """
    trainer.strategy.setup_optimizers(trainer)
    names = {parameter: name for name, parameter in module.named_parameters()}
    pairs = zip(trainer.optimizers, before.groups, before.states, strict=False)
    for optimizer, groups, states in pairs:
        _continue_groups(optimizer, groups)
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            name = names.get(parameter, "")
            if name in states and before.shapes[name] == tuple(parameter.shape):
                optimizer.state[parameter] = dict(states[name])
    for config, state in zip(trainer.lr_scheduler_configs, before.schedulers, strict=False):
        config.scheduler.load_state_dict(dict(state))


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params" and not isinstance(value, Tensor)}


def _continue_groups(optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    if len(groups) == len(optimizer.param_groups):
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group.update(settings)
