from __future__ import annotations

import pytest
import torch

from bottleneck_opt.sources import find_model
from tests import torchvision_models


@pytest.mark.parametrize("name", ["resnet18", "lraspp_mobilenet_v3_large"])
def test_torchvision_models_are_built_without_any_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("asked for a download"))
    found = find_model(f"torchvision:{name}")
    assert type(found) is type(torchvision_models.build(name))
    assert not found.training
