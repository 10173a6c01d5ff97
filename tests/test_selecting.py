"""Dropping channels from end to end: what was redundant goes without a trace, and the result is a plain model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.passes.select import Select
from tests.networks import Residual, conv, noise, seeded

SELECT: Sequence[Select] = [Select()]


def repeat_filters(layer: nn.Module) -> None:
    """Make the second half of a layer's outputs a copy of the first."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    for name, tensor in layer.named_parameters():
        axis = 1 if transposed and name == "weight" else 0
        half = tensor.shape[axis] // 2
        tensor.data.narrow(axis, half, half).copy_(tensor.data.narrow(axis, 0, half))


def redundant(first: nn.Module, between: nn.Module, second: nn.Module) -> nn.Sequential:
    """Two layers between which every channel is there twice."""
    net = seeded(lambda: nn.Sequential(first, between, second))
    repeat_filters(first)
    for module in between.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dim() and len(tensor) % 2 == 0:
                tensor.data[len(tensor) // 2 :] = tensor.data[: len(tensor) // 2]
    return net


def select_exactly(net: nn.Module, x: Tensor) -> bo.Result:
    """Drop half of the channels, with a covariance that is pulled towards nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bottleneck_opt.sites.choose_shrinkage", lambda examples: 1e-12)
        return bo.optimize(net, x[:1], calibration=x, budget=0.55, passes=SELECT, progress=False)


def change(net: nn.Module, result: bo.Result, x: Tensor) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        before, after = net(x), result.model(x)
    return float((after - before).abs().max() / before.abs().max())


LAYERS: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module, nn.Module]], tuple[int, ...]]] = {
    "2d": (lambda: (conv(3, 8), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), conv(8, 6)), (3, 9, 9)),
    "strided, dilated": (
        lambda: (conv(3, 8, stride=2), nn.PReLU(8), conv(8, 6, dilation=2, padding=2)), (3, 11, 9),
    ),
    "1d": (lambda: (nn.Conv1d(4, 8, 5), nn.BatchNorm1d(8), nn.Conv1d(8, 3, 3, padding=1)), (4, 20)),
    "3d": (lambda: (nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 2)), (2, 6, 6, 6)),
    "transposed": (
        lambda: (nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2)), (3, 5, 5),
    ),
    "depthwise between": (
        lambda: (conv(3, 8), nn.Sequential(nn.ReLU(), conv(8, 8, groups=8), nn.ReLU()), conv(8, 6, 1)), (3, 7, 7),
    ),
    "padding modes": (
        lambda: (conv(3, 8, padding_mode="reflect"), nn.SiLU(), conv(8, 4, padding_mode="circular")), (3, 7, 7),
    ),
    "linear": (lambda: (nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 5)), (7, 5)),
    "no biases": (lambda: (conv(3, 8, bias=False), nn.ReLU(), conv(8, 6, bias=False)), (3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=list(LAYERS))
def test_channels_that_repeat_others_go_without_a_trace(
    make: Callable[[], tuple[nn.Module, nn.Module, nn.Module]], shape: tuple[int, ...]
) -> None:
    net = redundant(*make())
    x = noise(24, *shape)
    result = select_exactly(net, x)
    (selection,) = result.plan.selections
    half = selection.channels // 2
    assert len(selection.kept) <= half
    assert {channel % half for channel in selection.kept} == set(range(len(selection.kept)))
    assert change(net, result, noise(4, *shape, seed=9)) < 1e-4


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.booleans(), st.integers(2, 6), st.integers(0, 100),
)  # fmt: skip
def test_redundancy_goes_whatever_the_kernel(
    kernel: int, stride: int, dilation: int, bias: bool, half: int, seed: int
) -> None:
    net = redundant(
        conv(2, 2 * half, kernel, stride=stride, bias=bias),
        nn.BatchNorm2d(2 * half),
        conv(2 * half, 3, kernel, dilation=dilation, bias=bias),
    )
    x = noise(16, 2, 12, 12, seed=seed)
    result = select_exactly(net, x)
    assert change(net, result, noise(3, 2, 12, 12, seed=seed + 1)) < 1e-4


def chain(width: int = 12) -> nn.Module:
    """Four convolutions in a row with batch norm, and a head."""
    layers: list[nn.Module] = [conv(3, width), nn.ReLU()]
    for _ in range(3):
        layers += [conv(width, width, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


@pytest.mark.parametrize("budget", [0.5, "macs=0.6,params=0.5", 0.3])
def test_a_chain_keeps_its_budget_and_is_counted_exactly(budget: float | str) -> None:
    net, x = seeded(chain, dtype=torch.float32), torch.randn(32, 3, 8, 8)
    result = bo.optimize(net, x[:1], calibration=x, budget=budget, progress=False)
    assert result.budget_met
    assert result.plan.selections
    assert (result.after.cost.macs, result.after.cost.params) == (result.plan.after.macs, result.plan.after.params)


def test_the_result_is_a_plain_model_that_trains_and_agrees_with_its_graph() -> None:
    net, x = seeded(chain, dtype=torch.float32), torch.randn(32, 3, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = bo.optimize(net, x[:1], calibration=x, budget=0.4, passes=SELECT, progress=False)
    assert type(result.model) is type(net)
    assert all(type(a) is type(b) for a, b in zip(result.model.children(), net.children(), strict=True))
    assert result.graph_module is not None
    torch.testing.assert_close(result.graph_module(x[:1]), result.model(x[:1]))
    result.model.train()(x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_saved_selection_loads_bit_for_bit(tmp_path: Path) -> None:
    net, x = seeded(lambda: Residual(width=16), dtype=torch.float32), torch.randn(32, 3, 8, 8)
    result = bo.optimize(net, x[:1], calibration=x, budget=0.5, passes=SELECT, progress=False)
    assert result.plan.selections
    loaded = bo.load(result.save(tmp_path / "out"), seeded(lambda: Residual(width=16), dtype=torch.float32))
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in result.model.state_dict().items()
    )  # fmt: skip
    assert bo.Plan.from_json(result.plan.to_json()) == result.plan


def test_selection_combines_with_factors_and_never_predicts_worse_than_either_alone() -> None:
    net, x = seeded(lambda: chain(24), dtype=torch.float32), torch.randn(48, 3, 8, 8)
    losses = {
        name: bo.optimize(net, x[:1], calibration=x, budget=0.3, passes=passes, progress=False).plan.predicted_loss
        for name, passes in {
            "both": None, "factors": ["reduce", "expand", "tucker", "spatial"], "select": SELECT,
        }.items()
    }  # fmt: skip
    assert losses["both"] <= min(losses.values()) * (1 + 1e-9)


def test_training_flags_and_precision_come_back() -> None:
    net = seeded(chain, dtype=torch.bfloat16).train()
    net.get_submodule("3").eval()
    result = bo.optimize(
        net, torch.randn(1, 3, 8, 8, dtype=torch.bfloat16), calibration=torch.randn(24, 3, 8, 8), budget=0.5,
        passes=SELECT, progress=False,
    )  # fmt: skip
    assert [module.training for module in result.model.modules()] == [module.training for module in net.modules()]
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_layers_whose_channels_stay_say_why() -> None:
    net, x = seeded(Residual, dtype=torch.float32), torch.randn(16, 3, 8, 8)
    result = bo.optimize(net, x[:1], calibration=x, budget=0.9, passes=SELECT, progress=False)
    reasons = {skip.path: skip.reason for skip in result.skipped}
    assert "2 readers" in reasons["head"] or "reads" in reasons["head"]


def test_the_pictures_say_how_many_channels_are_left() -> None:
    net, x = seeded(chain, dtype=torch.float32), torch.randn(32, 3, 8, 8)
    result = bo.optimize(net, x[:1], calibration=x, budget=0.5, passes=SELECT, progress=False)
    assert re.search(r"keeps \d+ of \d+ (in|out)puts", result.draw("diff").source)
    assert "select" in str(result)


def test_a_layer_without_bias_is_refitted_too() -> None:
    net, x = seeded(chain, dtype=torch.float32), torch.randn(64, 3, 8, 8)
    result = bo.optimize(net, x[:1], calibration=x, budget=0.4, passes=SELECT, progress=False)
    assert {correction.path for correction in result.corrections} == {step.path for step in result.plan.steps}
    assert any(correction.accepted for correction in result.corrections)
