"""Small models in which a pass has to prove itself from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTH = 12


@dataclass(frozen=True)
class SampleModel:
    """A model with inputs.

    Attributes:
        name: What it is, in words.
        make: Builds it, each time with the same weights.
        inputs: What it is calibrated on.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Tensor

    @property
    def example(self) -> Tensor:
        """Two of the inputs."""
        return self.inputs[:2]


class Residual(nn.Module):
    """Batch norms, a shortcut, a strided and a repeated convolution, two layers that read one tensor, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1), nn.ReLU())
        self.outer = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1)
        self.again = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.left, self.right = nn.Conv2d(WIDTH, 16, 3, stride=2), nn.Conv2d(WIDTH, 16, 3, stride=2, padding=0)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 3, h, w)`` to ``(batch, 10)``."""
        x = self.stem(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        for _ in range(2):
            x = torch.tanh(self.again(x))
        both = torch.cat([self.left(x), self.right(x)], 1)
        out: Tensor = self.head(torch.relu(both).mean((2, 3)))
        return out


def make_residual() -> nn.Module:
    """The residual network, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Residual().eval()


def residual_model() -> SampleModel:
    """A small convolutional network of all that is usual."""
    inputs = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    return SampleModel("a residual network", make_residual, inputs)
