"""Two photos that come with scikit-learn, in grey and with noise: one to train on, one to test on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGMA = 25 / 255
TRAINED_ON, TESTED_ON = "china.jpg", "flower.jpg"
LUMA = (0.299, 0.587, 0.114)
STEPS, BATCH, CROP, LEARNING_RATE = 1500, 8, 32, 3e-3
TEST_NOISE = 99


@dataclass(frozen=True)
class Photos:
    """The photos in grey, ``(1, 1, 427, 640)`` in [0, 1], and the noisy one that is tested on."""

    train: Tensor
    clean: Tensor
    noisy: Tensor


@cache
def load_photos() -> Photos:
    """Read both; the test's noise is always the same."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415  (an extra)

    train, clean = (_to_grey(torch.tensor(load_sample_image(name))) for name in (TRAINED_ON, TESTED_ON))
    return Photos(train, clean, _add_noise(clean, torch.Generator().manual_seed(TEST_NOISE)))


def _to_grey(pixels: Tensor) -> Tensor:
    grey = pixels.double() @ torch.tensor(LUMA, dtype=torch.float64) / 255
    return grey.float()[None, None]


def _add_noise(photos: Tensor, generator: torch.Generator) -> Tensor:
    return photos + SIGMA * torch.randn(photos.shape, generator=generator)


def take_crops(photo: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random squares ``(count, 1, size, size)`` of a photo, each turned and flipped at random."""
    height, width = photo.shape[-2:]
    tops = torch.randint(0, height - size + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(0, width - size + 1, (count,), generator=generator).tolist()
    turns = torch.randint(0, 8, (count,), generator=generator).tolist()
    crops = (photo[0, :, y : y + size, x : x + size] for y, x in zip(tops, lefts, strict=True))
    return torch.stack([_turn(crop, turn) for crop, turn in zip(crops, turns, strict=True)])


def _turn(crop: Tensor, turn: int) -> Tensor:
    turned = torch.rot90(crop, turn % 4, (1, 2))
    return turned.flip(2) if turn >= 4 else turned


def take_noisy_crops(count: int, size: int, seed: int) -> Tensor:
    """Noisy crops of the training photo: what someone without clean photos has."""
    generator = torch.Generator().manual_seed(seed)
    return _add_noise(take_crops(load_photos().train, count, size, generator), generator)


def train_denoiser(model: nn.Module, *, seed: int, steps: int = STEPS) -> None:
    """Train in place with Adam, one cycle of the learning rate, on noisy crops of the training photo."""
    generator = torch.Generator().manual_seed(seed)
    photo = load_photos().train
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        clean = take_crops(photo, BATCH, CROP, generator)
        loss = F.mse_loss(model(_add_noise(clean, generator)), clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def measure_psnr(denoised: Tensor) -> float:
    """Peak signal-to-noise ratio of the test photo, in decibels."""
    return -10 * math.log10(float(F.mse_loss(denoised, load_photos().clean)))
