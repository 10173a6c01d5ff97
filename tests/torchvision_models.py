"""Torchvision's models with random weights, also where torchvision's compiled extension is missing."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any

import torch
from torch import nn

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = torch.library.Library("torchvision", "FRAGMENT")  # keeps what it defines


def _import_models() -> Any:
    """``torchvision.models``; compiled operators that the import needs and misses are declared first."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        for schema in _OPERATORS:
            _library.define(schema)
        return importlib.import_module("torchvision.models")


_models = _import_models()


def _without_weights(name: str) -> dict[str, None]:
    """Arguments that keep a builder from fetching weights, for its backbone neither."""
    parameters = inspect.signature(_models.get_model_builder(name)).parameters
    return {option: None for option in ("weights", "weights_backbone") if option in parameters}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model of torchvision's by its name, with weights from a seed, in eval mode."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another initialisation
        torch.manual_seed(seed)
        made: nn.Module = _models.get_model(name, **_without_weights(name))
    return made.eval()
