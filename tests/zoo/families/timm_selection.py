"""Chooses timm's models: the two smallest of every family that has a convolution with a kernel above 1x1.

Building all of them on the meta device takes minutes, so the choice is kept as text in ``timm_models.txt``. After a
change of timm's version: ``python -m tests.zoo.families.timm_selection``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from tests import torchvision_models  # timm imports torchvision

CHOICE = Path(__file__).with_name("timm_models.txt")
_OF_EACH_FAMILY = 2


def read_choice() -> list[tuple[str, str]]:
    """``(family, model name)`` of every chosen model."""
    lines = CHOICE.read_text(encoding="utf-8").splitlines()
    return [(family, name) for family, name in (line.split() for line in lines)]


def choose_models() -> list[tuple[str, str]]:
    """The two smallest models of each family by parameters, in the order of names."""
    timm = torchvision_models.import_after_torchvision("timm")
    registry = torchvision_models.import_after_torchvision("timm.models._registry")
    sizes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in timm.list_models(pretrained=False):
        model = _build_empty(timm, name)
        if model is not None and _has_kernel(model):
            size = sum(parameter.numel() for parameter in model.parameters())
            sizes[registry._model_to_module[name]].append((size, name))
    return [(family, name) for family in sorted(sizes) for _, name in sorted(sizes[family])[:_OF_EACH_FAMILY]]


def _build_empty(timm: object, name: str) -> nn.Module | None:
    try:
        with torch.device("meta"):
            made: nn.Module = timm.create_model(name, pretrained=False)  # type: ignore[attr-defined]
    except (RuntimeError, NotImplementedError) as error:  # some builders compute values, which the meta device lacks
        print(f"left out {name}: {error}".splitlines()[0])
        return None
    return made


def _has_kernel(model: nn.Module) -> bool:
    return any(isinstance(module, _ConvNd) and math.prod(module.kernel_size) > 1 for module in model.modules())


if __name__ == "__main__":
    CHOICE.write_text("".join(f"{family} {name}\n" for family, name in choose_models()), encoding="utf-8")
