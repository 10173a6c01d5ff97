from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck_opt.sources import find_model, read_calibration_folder
from tests import torchvision_models


@pytest.mark.parametrize("name", ["resnet18", "lraspp_mobilenet_v3_large"])
def test_torchvision_models_are_built_without_any_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("asked for a download"))
    found = find_model(f"torchvision:{name}")
    assert type(found) is type(torchvision_models.build(name))
    assert not found.training


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [
        (
            "torchvision:inception_v3",
            299,
            "shorter side resized to 342, the middle 299x299 cut out; mean and std of torch",
        ),
        ("torchvision:fasterrcnn_resnet50_fpn", 224, "values from 0 to 1, which torchvision's detectors normalise"),
        ("my_package:net", 224, "mean and std of ImageNet, the model names none; size from the first convolution at"),
    ],
)
def test_images_are_prepared_as_the_weights_want_them(name: str, side: int, words: str, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(np.zeros((40, 50, 3), dtype=np.uint8)).save(tmp_path / "one.png")
    found = read_calibration_folder(tmp_path, nn.Conv2d(3, 4, 3), name, None, 8)
    assert found.inputs.shape == (1, 3, side, side)
    assert words in found.note
