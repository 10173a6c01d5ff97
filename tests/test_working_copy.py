from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

from bottleneck_opt import InputError, ModelError, optimize
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.working_copy import (
    copy_for_tracing,
    copy_model,
    copy_to_device,
    is_lazy,
    materialise,
    model_device,
    undisturbed,
    unwrap_model,
)
from tests.networks import classifier, conv, noise, seeded

X = noise(2, 3, 8, 8)


def test_the_module_inside_any_wrappers_is_found() -> None:
    net = conv(8, 8)
    compiled: Any = torch.compile(nn.DataParallel(net), backend="eager")
    assert unwrap_model(torch.compile(net, backend="eager")) is net
    assert unwrap_model(nn.DataParallel(compiled)) is net
    assert unwrap_model(net) is net


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


def test_a_model_without_weights_cannot_be_optimised_and_the_message_says_what_works() -> None:
    told = r"^0\.weight: is on the meta device, which holds no weights.*trace, profile and draw work without weights"
    with pytest.raises(ModelError, match=told):
        optimize(classifier().to("meta"), X)


def test_a_copy_for_tracing_of_a_model_with_some_values_has_none() -> None:
    net = nn.Sequential(conv(3, 3), conv(3, 3).to("meta"))
    net.kept = {"deep": [torch.ones(2)]}  # type: ignore[assignment]
    copied: Any = copy_for_tracing(net)
    assert all(parameter.is_meta for parameter in copied.parameters())
    assert copied.kept["deep"][0].is_meta
    assert not net[0].weight.is_meta
    assert isinstance(copied[0].weight, nn.Parameter)


def test_lazy_layers_are_built_on_a_copy_that_keeps_its_modes() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Dropout().eval(), nn.Flatten(), nn.LazyLinear(5))
    state = torch.get_rng_state()
    built, again = (materialise(net, Inputs((X.float(),))) for _ in range(2))
    assert [type(layer) for layer in built.children()][:2] == [nn.Conv2d, nn.BatchNorm2d]
    assert [layer.training for layer in built.children()] == [True, True, False, True, True]
    assert is_lazy(net)
    assert not is_lazy(built)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert materialise(built, Inputs((X.float(),))) is built


def test_global_switches_are_restored_after_an_error() -> None:
    depth = sys.getrecursionlimit()

    def fail() -> None:
        with undisturbed():
            assert not torch.is_autocast_enabled("cpu")
            assert sys.getrecursionlimit() > depth
            raise KeyError

    with torch.autocast("cpu"):
        with pytest.raises(KeyError):
            fail()
        assert torch.is_autocast_enabled("cpu")
    assert sys.getrecursionlimit() == depth


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
