"""What one line of the zoo says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        family: Whose model it is: the name of a module of :mod:`tests.zoo.families`.
        model: Its name there.
        build: Makes it, with random weights.
        inputs: Makes one example call from the model: a Tensor, a tuple of arguments or a dict of keyword arguments.
        tolerance: Largest full-rank error of a model that keeps its own precision; None runs it in float64.
    """

    family: str
    model: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Any]
    tolerance: float | None = None

    @property
    def name(self) -> str:
        """``family/model``, unique in the zoo."""
        return f"{self.family}/{self.model}"


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gaussian noise, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def noise_of(*shape: int) -> Callable[[nn.Module], Tensor]:
    """The ``inputs`` of an entry that takes one float tensor."""
    return lambda model: noise(*shape)
