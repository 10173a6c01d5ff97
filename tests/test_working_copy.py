from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from bottleneck_opt import InputError, ModelError, draw, optimize, trace
from bottleneck_opt.working_copy import copy_model, copy_to_device, model_device, unwrap_model
from tests.networks import classifier, conv, noise, seeded

X = noise(2, 3, 8, 8)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_script_is_refused_and_script_children_are_not() -> None:
    scripted = torch.jit.script(nn.Sequential(conv(8, 8), nn.ReLU()))
    with pytest.raises(ModelError, match=r"^model: got RecursiveScriptModule, .* Pass the Python module it was made"):
        unwrap_model(scripted)
    copied = copy_model(nn.Sequential(conv(3, 8), scripted))
    assert isinstance(copied[1], torch.jit.ScriptModule)  # type: ignore[index]  # a Sequential


def test_a_model_that_cannot_be_copied_is_told_with_the_reason() -> None:
    net = seeded(classifier)
    net.lock = threading.Lock()  # type: ignore[assignment]  # any attribute may be set
    with pytest.raises(ModelError, match=r"^model: Sequential cannot be copied: TypeError: .*lock") as told:
        copy_model(net)
    assert isinstance(told.value.__cause__, TypeError)


@pytest.mark.parametrize("use", [optimize, trace, draw])
def test_a_model_without_weights_is_refused(use: Any) -> None:
    with pytest.raises(ModelError, match=r"^0\.weight: is on the meta device, which holds no weights"):
        use(classifier().to("meta"), X)


@pytest.mark.parametrize("device", ["nope", "meta", "cuda:99", 3.5])
def test_a_device_that_is_not_here_is_refused(device: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^device: got '{device}', which cannot be used here: \w+: .*Pass for instan"
    ):
        copy_to_device(seeded(classifier), device)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_a_device_that_is_here_is_used(device: Any) -> None:
    net = seeded(classifier)
    copied = copy_to_device(net, device)
    assert copied is not net
    assert model_device(copied) == torch.device("cpu")
