"""Every builder of torchvision's but the quantised ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from tests.torchvision_models import build, list_models
from tests.zoo.entries import Entry, noise, noise_of

_TWO_STAGE = {
    "min_size": 128, "max_size": 128, "box_score_thresh": 0.0, "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 8,
}  # fmt: skip
_ONE_STAGE = {"score_thresh": 0.0, "detections_per_img": 8, "topk_candidates": 40}
_RESIZED = {"min_size": 128, "max_size": 128}


def entries() -> Iterator[Entry]:
    """Classification, segmentation, detection, video and optical flow."""
    for name in list_models():
        yield _entry(name, noise_of(1, 3, _size(name), _size(name)), _options(name))
    for name in list_models("segmentation"):
        yield _entry(name, noise_of(1, 3, 64, 64))
    for name in list_models("detection"):
        yield _entry(name, lambda model: ([noise(3, 128, 128).sigmoid()],), _detector_options(name))
    for name in list_models("video"):
        yield _entry(name, noise_of(1, 3, *_clip(name)))
    for name in list_models("optical_flow"):
        yield _entry(name, lambda model: (noise(1, 3, 128, 128), noise(1, 3, 128, 128).flip(3), 3))


def _entry(name: str, inputs: Callable[[nn.Module], Any], options: Mapping[str, Any] | None = None) -> Entry:
    return Entry("torchvision", name, partial(build, name, **(options or {})), inputs)


def _options(name: str) -> Mapping[str, Any]:
    return {"image_size": _size(name)} if name.startswith("vit_") else {}


def _size(name: str) -> int:
    if name.startswith("vit_"):
        return 56 if name == "vit_h_14" else 64
    if name.startswith("maxvit_"):
        return 224  # its windows divide no smaller image
    return {"inception_v3": 80, "alexnet": 80}.get(name, 64)


def _detector_options(name: str) -> Mapping[str, Any]:
    if "rcnn" in name:
        return _TWO_STAGE
    return _ONE_STAGE if name.startswith("ssd") else {**_ONE_STAGE, **_RESIZED}


def _clip(name: str) -> tuple[int, int, int]:
    """Frames, height and width."""
    if name.startswith("mvit"):
        return 16, 224, 224  # its position tables have this size
    return (16, 224, 224) if name == "s3d" else (4, 64, 64)  # it ends in a pooling of 7x7 at a 32nd of the size
