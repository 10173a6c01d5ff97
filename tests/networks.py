"""Small networks for tests, with weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bottleneck_opt.outcome import Verification

M = TypeVar("M", bound=nn.Module)


def seeded(make: Callable[[], M], seed: int = 0, dtype: torch.dtype = torch.float64) -> M:
    """A network built with random weights of a seed, in eval mode and the given precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make()
        for module in made.modules():
            _wake_statistics(module)
    return made.to(dtype).eval()


def _wake_statistics(module: nn.Module) -> None:
    """Running statistics and scales unlike those of a new batch norm, which does nothing."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.normal_(std=0.2)
        module.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(module.weight, 0.5, 2.0)
        nn.init.normal_(module.bias, std=0.2)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gaussian noise of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


class Computes(nn.Module):
    """A network whose forward is a function of itself and its arguments.

    Example:
        >>> Computes(lambda net, x: net.scale(x) + 1, scale=nn.Identity())(torch.zeros(2))
        tensor([1., 1.])
    """

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def conv(i: int, o: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size, unless the options say otherwise."""
    return nn.Conv2d(i, o, kernel, **{"padding": kernel // 2, **options})


def classifier(width: int = 12, classes: int = 5) -> nn.Module:
    """Three convolutions on 3 x 8 x 8 inputs and a Linear head."""
    return nn.Sequential(
        conv(3, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, 2 * width, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions with batch norm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(width, width, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return torch.relu(y)


class Residual(nn.Module):
    """A small residual classifier of 3 x 8 x 8 inputs."""

    def __init__(self, width: int = 12, blocks: int = 2, classes: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = conv(3, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.dropout(self.blocks(self.stem(x)).mean((2, 3))))
        return out


class Repeated(nn.Module):
    """One convolution called three times and another that has two names."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.loop = conv(width, width)
        self.first = conv(width, width)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = torch.tanh(self.loop(x))
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


class Branches(nn.Module):
    """Two convolutions that read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 16), conv(16, 16), conv(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return torch.cat([self.left(y), self.right(y)], 1)


class Hidden(nn.Module):
    """Calls its convolution through a list, where no replacement is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 8)
        self.calls = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.calls[0](x)
        return out


class ActsOnType(nn.Module):
    """Runs only those of its layers that are convolutions by type."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(8, 8), conv(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Conv2d) else x
        return x


class ReadsLayer(nn.Module):
    """Reads its convolution's attributes, as pooling or cropping code does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 16, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv.weight.dtype)
        y = self.conv(x)
        assert y.shape[1] == self.conv.out_channels
        assert y.shape[2] == x.shape[2] // self.conv.stride[0]
        out: Tensor = y * float(self.conv.kernel_size[0])
        return out


class Tied(nn.Module):
    """Two convolutions that share all their weights."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


class Upsampling(nn.Module):
    """Halves its input and asks for the old size again, which the sizes alone do not tell."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, 3, stride=2)
        self.up = nn.ConvTranspose2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(torch.tanh(self.down(x)), output_size=x.shape[-2:])
        return out


def counted_by_torch(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds by torch's own counter, which counts FLOPs, two each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    flops = int(counter.get_total_flops())
    assert flops % 2 == 0
    return flops // 2


def measured(verification: Verification) -> float:
    """The measured output change, where there must be one."""
    assert verification.measured_change is not None
    return verification.measured_change
