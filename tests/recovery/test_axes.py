from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.joint.vectors import arrange, to_kernel
from bottleneck_opt.kernels import to_module
from bottleneck_opt.outcome import Recovered
from bottleneck_opt.recovery import distil
from bottleneck_opt.recovery.axes import Axes, find_axes, step_along
from bottleneck_opt.recovery.recovering import list_recovery_notes
from tests.layer_samples import convolutions, input_shape
from tests.networks import Tied, conv, noise, seeded
from tests.recovery.samples import QUICK, data, same, state


def axes_of(model: nn.Module, inputs: Tensor) -> tuple[Axes, ...]:
    given = CalibrationData(data(inputs).batches, len(inputs), "test data")
    scales = collect_statistics(model, {}, given, Sampling(len(inputs), 1, 0)).scales
    return find_axes(model, given, scales, 0)


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for each in model.parameters():
        each.grad = torch.randn(each.shape, generator=generator, dtype=each.dtype)


@settings(max_examples=25, deadline=None)
@given(convolutions())
def test_axes_of_any_convolution_are_orthogonal_and_lose_nothing(layer: nn.Module) -> None:
    (axes,) = axes_of(layer.requires_grad_(False), noise(6, *input_shape(layer)[1:]))
    for each in (axes.outer, axes.inner):
        assert each is not None
        torch.testing.assert_close(each.mT @ each, torch.eye(each.shape[-1], dtype=each.dtype).expand_as(each))
    weights = arrange(axes.layer, axes.parameters)
    torch.testing.assert_close(axes.turn_back(axes.turn(weights)), weights)


def test_the_first_and_last_axes_are_those_along_which_inputs_vary_least_and_most() -> None:
    inputs = noise(400, 3) @ torch.diag(torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64))
    turned, _ = torch.linalg.qr(noise(3, 3, seed=1))
    (axes,) = axes_of(nn.Linear(3, 2, bias=False).double().requires_grad_(False), inputs @ turned)
    assert axes.inner is not None
    found = (axes.inner[0].mT @ turned.mT).abs()
    torch.testing.assert_close(found, torch.eye(3, dtype=torch.float64)[[2, 0, 1]], atol=0.02, rtol=0)


@pytest.mark.parametrize("layer", [conv(4, 6, groups=2), nn.ConvTranspose2d(4, 3, 2), nn.Linear(6, 3, bias=False)])
def test_steps_are_those_of_adam_on_the_coordinates_in_the_axes(layer: nn.Module) -> None:
    layer = layer.double().requires_grad_(False)
    (axes,) = axes_of(layer, noise(6, 6) if isinstance(layer, nn.Linear) else noise(6, 4, 5, 5))
    free = nn.Parameter(axes.turn(arrange(axes.layer, axes.parameters)))
    own, reference = torch.optim.Adam(layer.parameters(), lr=0.01), torch.optim.Adam([free], lr=0.01)
    for step in range(5):
        give_gradients(layer, step)
        free.grad = axes.turn(arrange(axes.layer, [each.grad for each in axes.parameters if each.grad is not None]))
        step_along(own, [axes])
        reference.step()
    kernel, bias = to_kernel(axes.layer, axes.turn_back(free.detach()))
    torch.testing.assert_close(axes.parameters[0], to_module(axes.layer, kernel))
    assert (bias is None) == (len(axes.parameters) == 1)
    if bias is not None:
        torch.testing.assert_close(axes.parameters[1], bias)


def test_parameters_without_axes_take_adams_own_steps() -> None:
    layer, norm = conv(3, 4), nn.BatchNorm2d(4)
    model = nn.Sequential(layer, norm).double().eval().requires_grad_(False)
    plain = copy.deepcopy(model)
    axes = axes_of(model, noise(6, 3, 5, 5))
    assert [each.module for each in axes] == [layer]
    for step in range(3):
        for each, along in ((model, axes), (plain, ())):
            give_gradients(each, step)
            step_along(torch.optim.Adam(each.parameters(), lr=0.01), along)
    assert torch.equal(norm.weight, plain.get_parameter("1.weight"))
    assert not torch.allclose(layer.weight, plain.get_parameter("0.weight"))


def test_a_layer_that_nothing_used_stays_as_it_is() -> None:
    layer = conv(3, 4).double().requires_grad_(False)
    axes, before = axes_of(layer, noise(6, 3, 5, 5)), state(layer)
    step_along(torch.optim.Adam(layer.parameters(), lr=0.01), axes)
    assert same(before, layer.state_dict())


def test_weights_that_several_hold_have_no_axes() -> None:
    tied = seeded(Tied).requires_grad_(False)
    assert axes_of(tied, noise(6, 8, 6, 6)) == ()


def train_towards(teacher: nn.Linear, inputs: Tensor) -> Recovered:
    """Training of what the fits leave: errors where the inputs vary little."""
    student = copy.deepcopy(teacher)
    off = noise(*student.weight.shape, seed=5, dtype=torch.float32)
    with torch.no_grad():
        student.weight.add_(off - off.mean(1, keepdim=True))
    return distil(teacher, student, data(inputs), replace(QUICK, steps=150, batch=16))


def test_a_layer_whose_inputs_move_together_is_learnt_faster_in_its_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    common = noise(400, 1, dtype=torch.float32)
    inputs = common + 0.1 * noise(400, 12, seed=1, dtype=torch.float32)
    teacher = nn.Linear(12, 4).requires_grad_(False)
    in_axes = train_towards(teacher, inputs)
    monkeypatch.setattr("bottleneck_opt.recovery.distilling.find_axes", lambda *given: ())
    along_entries = train_towards(teacher, inputs)
    assert in_axes.after < 0.5 * along_entries.after


def test_where_no_axes_are_found_it_is_said_and_the_entries_are_trained(pair: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = pair

    def fail(*given: object) -> tuple[Axes, ...]:
        raise ValueError("the covariance holds NaN\nand more")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bottleneck_opt.recovery.distilling.find_axes", fail)
        found = distil(teacher, student, data(), QUICK)
    assert found.unturned == "ValueError: the covariance holds NaN"
    assert found.after < found.before
    assert (
        "recovery: steps along the weights' entries, not the layers' axes: ValueError: the covariance holds NaN"
        in list_recovery_notes(found)
    )
