"""A small network's data, and students that are slightly off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recovery import Recovery
from tests.networks import Computes, conv, noise, seeded

X = noise(20, 3, 8, 8, dtype=torch.float32)
UNFITTED = Recipe(joint=0, mixes=0)  # leaves something for recovery to do
QUICK = Recovery(steps=40, check_every=10, batch=8, mixes=False)


def data(*batches: Any) -> CalibrationData:
    calls = tuple(batch if isinstance(batch, Inputs) else Inputs((batch,)) for batch in batches or (X,))
    return CalibrationData(calls, sum(map(batch_size, calls)), "test data")


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: nn.Module | dict[str, Tensor], second: nn.Module | dict[str, Tensor]) -> bool:
    one, two = (each.state_dict() if isinstance(each, nn.Module) else each for each in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def change(teacher: nn.Module, student: nn.Module) -> float:
    with torch.no_grad():
        return float((teacher(X) - student(X)).square().mean() / teacher(X).var(correction=0))


def scale(layer: nn.Module, factor: float) -> None:
    with torch.no_grad():
        next(layer.parameters()).mul_(factor)


def double(function: Callable[..., Any]) -> tuple[nn.Module, nn.Module]:
    """A network and a copy whose convolution is slightly off."""
    teacher = seeded(lambda: Computes(function, c=conv(3, 4)), dtype=torch.float32)
    student = copy.deepcopy(teacher)
    scale(student.get_submodule("c"), 1.2)
    return teacher.requires_grad_(False), student.requires_grad_(False)
