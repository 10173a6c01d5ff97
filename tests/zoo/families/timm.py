"""The two smallest models of every family of timm's that has a convolution with a kernel above 1x1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tests import torchvision_models  # timm imports torchvision
from tests.zoo.entries import Entry, noise
from tests.zoo.families.timm_selection import read_choice

_timm = torchvision_models.import_after_torchvision("timm")
_SMALL = 96


def entries() -> Iterator[Entry]:
    """One line a model, named by family."""
    for family, name in read_choice():
        yield Entry("timm", f"{family}.{name}", partial(_timm.create_model, name, pretrained=False), _image)


def _image(model: nn.Module) -> Tensor:
    """A small image; of the model's own size where the model takes no other."""
    config = model.pretrained_cfg
    channels, size, _ = config["input_size"]  # type: ignore[index]  # torch types every attribute as Tensor | Module
    small = noise(1, channels, min(_SMALL, size), min(_SMALL, size))
    return small if _takes(model, small) else noise(1, channels, size, size)


def _takes(model: nn.Module, image: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(image)
    except (AssertionError, RuntimeError):  # how timm's models refuse a size
        return False
    return True
