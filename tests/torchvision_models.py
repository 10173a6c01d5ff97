"""Torchvision's models with random weights, also where torchvision's compiled extension is missing."""

from __future__ import annotations

import warnings

import torch
from torch import nn

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _import_torchvision() -> torch.library.Library | None:
    """Import it; where its compiled operators are missing, first define those that the import insists on."""
    try:
        import torchvision.models  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _OPERATORS:
            library.define(schema)
        import torchvision.models  # noqa: F401

        return library
    return None


_library = _import_torchvision()  # definitions live as long as their library


def build(name: str, seed: int = 0) -> nn.Module:
    """A model of torchvision's by its name, with weights from a seed, in eval mode."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another initialisation
        torch.manual_seed(seed)
        made: nn.Module = models.get_model(name, weights=None)
    return made.eval()
