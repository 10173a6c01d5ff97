"""A folder of images as calibration inputs: resized, cropped and normalised as the model was trained."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bottleneck_opt.errors import FileError, InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}


@dataclass(frozen=True)
class Preparation:
    """How an image becomes an input. Values are scaled to 0 ... 1 before they are normalised.

    Attributes:
        mean, std: A value a channel; empty where images are not normalised.
        source: In words, where these come from.
        crop: What the cut-out measures, as a share of the resized image's shorter side.
        filter: How images are resized.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    crop: float = 1.0
    filter: str = "bilinear"


@dataclass(frozen=True)
class Pictures:
    """Calibration inputs that were images: ``(images, channels, height, width)``, and how they were made."""

    inputs: Tensor
    note: str


def find_preparation(model: nn.Module, channels: int, transforms: Any = None) -> Preparation:
    """How a model wants its images: from its own hints, else ImageNet's mean and standard deviation for three channels.

    Args:
        model: A timm model says it in ``pretrained_cfg``.
        channels: Of its input.
        transforms: What torchvision's weights of this model bring along, where there are such.

    Example:
        >>> find_preparation(nn.Conv2d(1, 8, 3), 1).source
        'not normalised: values from 0 to 1'
    """
    for name in ("pretrained_cfg", "default_cfg"):
        given = getattr(model, name, None)
        config: Mapping[str, Any] = given if isinstance(given, Mapping) else getattr(given, "__dict__", {})
        if len(config.get("mean") or ()) == channels:
            crop, way = config.get("crop_pct") or 1.0, config.get("interpolation")
            found = Preparation((), (), "", float(crop), way if way in _FILTERS else "bilinear")
            return _normalised(found, config["mean"], config["std"], f"mean and std of the model's {name}")
    if len(getattr(transforms, "mean", None) or ()) == channels:
        cut, side = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
        crop = _first(cut) / _first(side) if cut and side else 1.0  # segmentation resizes only
        way = str(getattr(getattr(transforms, "interpolation", None), "value", "bilinear"))
        found = Preparation((), (), "", crop, way if way in _FILTERS else "bilinear")
        return _normalised(found, transforms.mean, transforms.std, "mean and std of torchvision's weights")
    if transforms is not None and not hasattr(transforms, "mean"):
        return Preparation((), (), "values from 0 to 1, which torchvision's detectors normalise themselves")
    if channels == 3:
        return _normalised(Preparation((), (), ""), *IMAGENET, "mean and std of ImageNet, the model names none")
    return Preparation((), (), "not normalised: values from 0 to 1")


def _normalised(base: Preparation, mean: Sequence[float], std: Sequence[float], source: str) -> Preparation:
    return replace(base, mean=tuple(map(float, mean)), std=tuple(map(float, std)), source=source)


def _first(size: Any) -> float:
    return float(size[0] if isinstance(size, Sequence) else size)


def read_images(folder: str | Path, shape: Sequence[int], preparation: Preparation, *, limit: int) -> Pictures:
    """Images of a folder and of the folders in it: at most ``limit``, evenly spread over their sorted names.

    Args:
        folder: Where they are.
        shape: ``(channels, height, width)`` of one input.
        preparation: How they are resized and normalised.
        limit: Images read at most.

    Raises:
        FileError: There is no image, or one cannot be read, or Pillow is not installed.
        InputError: The model's input is no image of one or three channels.
    """
    if len(shape) != 3 or shape[0] not in _MODES:
        raise InputError(
            f"calibration {folder}: the model's input is {'x'.join(map(str, shape))}; expected 1 or 3 channels, "
            "height and width for images. Save preprocessed inputs as one .npy file, examples along axis 0."
        )
    files = _list_images(Path(folder))
    chosen = [files[index * len(files) // limit] for index in range(limit)] if len(files) > limit else files
    inputs = torch.stack([_read_image(file, shape, preparation) for file in chosen])
    some = f"{len(chosen)} of the {len(files)}" if len(files) > len(chosen) else f"the {len(files)}"
    return Pictures(inputs, f"calibration: {some} images in {folder}, {_describe(shape, preparation)}")


def _describe(shape: Sequence[int], preparation: Preparation) -> str:
    side = f"shorter side resized to {round(min(shape[1:]) / preparation.crop)}" if shape[1] == shape[2] else "resized"
    return f"{side}, the middle {shape[1]}x{shape[2]} cut out; {preparation.source}"


def _list_images(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FileError(
            f"calibration {folder}: holds no image; expected {', '.join(SUFFIXES)}, in it or in folders below. "
            "Name the folder with the images."
        )
    return files


def _read_image(file: Path, shape: Sequence[int], preparation: Preparation) -> Tensor:
    """One image, ``(channels, height, width)``."""
    pillow = _import_pillow(file)
    try:
        with pillow.open(file) as image:
            if image.mode in _DEEP_MODES:
                raise ValueError(f"has more than 8 bits a channel (mode {image.mode})")
            fitted = _fit(image.convert(_MODES[shape[0]]), (shape[2], shape[1]), preparation, pillow.Resampling)
            values = torch.from_numpy(np.array(fitted, dtype=np.float32)) / 255
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise FileError(
            f"{file}: cannot be used as an image: {error}. Mend it, or take it out of the folder."
        ) from error
    planes = values[None] if shape[0] == 1 else values.permute(2, 0, 1)
    if not preparation.mean:
        return planes
    mean, std = (torch.tensor(each)[:, None, None] for each in (preparation.mean, preparation.std))
    return (planes - mean) / std


def _fit(image: Any, size: tuple[int, int], preparation: Preparation, filters: Any) -> Any:
    """Resized until the cut-out is its share of the shorter side, and the middle, ``(width, height)``, cut out."""
    needed = [round(side / preparation.crop) for side in size]
    scale = max(need / has for need, has in zip(needed, image.size, strict=True))
    resized = [max(need, round(has * scale)) for need, has in zip(needed, image.size, strict=True)]
    image = image.resize(resized, filters[_FILTERS[preparation.filter]])
    left, top = ((has - side) // 2 for has, side in zip(resized, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def _import_pillow(file: Path) -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise FileError(f"{file}: reading images needs Pillow. Install it: pip install pillow") from error
