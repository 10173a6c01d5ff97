"""The networks that are compressed: two classifiers of digits and a denoiser of photos."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (32, 32, 64, 64, 128, 128)
DENOISER_WIDTH = 48
DENOISER_DEPTH = 8


class DigitsVgg(nn.Module):
    """Six 3x3 convolutions with pooling in between, a global mean and a Linear (after Simonyan and Zisserman 2015)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for number, width in enumerate(WIDTHS):
            if number in {2, 4}:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, 10)`` of images ``(batch, 1, 16, 16)``."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Denoiser(nn.Module):
    """DnCNN (Zhang et al. 2017), 8 layers of 48 channels: predicts the noise and takes it away.

    Without its batch norms half of the channels died in training, and any look at the data found them: 0.33 of the MACs
    came for free.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, DENOISER_WIDTH, 3, padding=1), nn.ReLU()]
        for _ in range(DENOISER_DEPTH - 2):
            convolution = nn.Conv2d(DENOISER_WIDTH, DENOISER_WIDTH, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(DENOISER_WIDTH), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(DENOISER_WIDTH, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Clean grey photos ``(batch, 1, h, w)`` of noisy ones."""
        clean: Tensor = x - self.layers(x)
        return clean


def build(kind: type[nn.Module], seed: int) -> nn.Module:
    """A network with the initial weights of this seed; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()
