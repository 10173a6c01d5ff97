"""Torchvision's models with random weights, also where torchvision's compiled extension is missing."""

from __future__ import annotations

import importlib
import inspect
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
_library = torch.library.Library("torchvision", "FRAGMENT")  # keeps what it defines


def _import_models() -> Any:
    """``torchvision.models``; compiled operators that it needs and misses are declared first."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError:
        _declare_operators()
        models = importlib.import_module("torchvision.models")
    extension: Any = importlib.import_module("torchvision.extension")
    extension._has_ops = lambda: True  # they are here now
    return models


def _declare_operators() -> None:
    for schema in _OPERATORS:
        _library.define(schema)
    _library.impl("nms", suppress_overlaps, "CPU")
    _library.impl("roi_align", align_regions, "CPU")


def suppress_overlaps(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that overlap no better one by more than a threshold, best first (``torchvision::nms``)."""
    order = scores.argsort(descending=True, stable=True)
    overlaps = _overlaps(boxes[order]) > threshold
    kept = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if kept[index]:
            kept[index + 1 :] &= ~overlaps[index, index + 1 :]
    return order[kept]


def _overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of every two boxes ``(x1, y1, x2, y2)``."""
    low, high = boxes[:, :2], boxes[:, 2:]
    sides = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp_min(0)
    shared, areas = sides.prod(2), (high - low).prod(1)
    return shared / (areas[:, None] + areas - shared)


def align_regions(
    x: Tensor, regions: Tensor, scale: float, height: int, width: int, samples: int, aligned: bool
) -> Tensor:
    """Bilinear samples of each region ``(image, x1, y1, x2, y2)``, averaged to one size (``torchvision::roi_align``).

    The bilinear weights of a sample are a product of one for its row and one for its column, and so is the average.
    """
    shift = 0.5 if aligned else 0.0
    pooled = x.new_empty(len(regions), x.shape[1], height, width)
    for index, region in enumerate(regions):
        x1, y1, x2, y2 = (region[1:] * scale - shift).tolist()
        rows = _sampling((y1, y2), x.shape[2], height, samples, at_least_one=not aligned)
        columns = _sampling((x1, x2), x.shape[3], width, samples, at_least_one=not aligned)
        pooled[index] = rows.to(x) @ x[int(region[0])] @ columns.to(x).T
    return pooled


def _sampling(ends: tuple[float, float], size: int, bins: int, samples: int, *, at_least_one: bool) -> Tensor:
    """``(bins, size)``: how much each position of one axis counts in each bin."""
    start, length = ends[0], ends[1] - ends[0]
    length = max(length, 1.0) if at_least_one else length
    each = samples if samples > 0 else max(1, -int(-length // bins))
    places = start + (torch.arange(bins * each, dtype=torch.float64) + 0.5) * length / (bins * each)
    inside = (places >= -1) & (places <= size)
    places = places.clamp(0, size - 1)
    left = places.floor().long()
    right = (left + 1).clamp_max(size - 1)
    weights = torch.zeros(len(places), size, dtype=torch.float64)
    weights.scatter_add_(1, left[:, None], (left + 1 - places)[:, None])
    weights.scatter_add_(1, right[:, None], (places - left)[:, None])
    return (weights * inside[:, None]).view(bins, each, size).mean(1)


_models = _import_models()


def import_after_torchvision(name: str) -> ModuleType:
    """A module that imports torchvision, whose missing operators are declared by now."""
    return importlib.import_module(name)


def list_models(kind: str = "") -> list[str]:
    """Names of torchvision's models of one kind: ``""`` (classification), ``segmentation``, ``detection``, ``video``"""
    listed: list[str] = _models.list_models(module=getattr(_models, kind) if kind else _models)
    return listed


def _without_weights(name: str) -> dict[str, None]:
    """Arguments that keep a builder from fetching weights, for its backbone neither."""
    parameters = inspect.signature(_models.get_model_builder(name)).parameters
    return {option: None for option in ("weights", "weights_backbone") if option in parameters}


def build(name: str, seed: int = 0, **options: Any) -> nn.Module:
    """A model of torchvision's by its name, with weights from a seed, in eval mode."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another initialisation
        torch.manual_seed(seed)
        made: nn.Module = _models.get_model(name, **_without_weights(name), **options)
    return made.eval()
