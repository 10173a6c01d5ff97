from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bottleneck_opt.probing import (
    Arguments,
    Probe,
    capture_operation,
    needs_probe,
    probe_layer,
    rebuild_kept,
    recorded_arguments,
)
from tests.layer_samples import (
    Activated,
    Adapted,
    Cached,
    Clamped,
    Conditional,
    Covering,
    Noisy,
    OwnKernel,
    Rectifying,
    Scaled,
    Standardised,
    StandardisedCovering,
    bias_of,
    compute_layer,
    convolutions,
    input_shape,
    plain_kernel,
    relative_gap,
    spec_of,
)
from tests.networks import Computes, conv, noise, seeded

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
X = noise(2, 4, 9, 8, seed=5)


def ask(layer: nn.Module, *args: Any, **kwargs: Any) -> Probe | str:
    """What is found out about a layer that was called once."""
    return probe_layer(layer.double().eval(), [Arguments(args, kwargs)])


def find(layer: nn.Module, *args: Any, **kwargs: Any) -> Probe:
    answer = ask(layer, *args, **kwargs)
    assert isinstance(answer, Probe), answer
    return answer


# -- what needs it ------------------------------------------------------------------------------------------------


def with_own_forward() -> nn.Module:
    layer = conv(4, 6)
    layer.forward = lambda input: F.conv2d(input, 2 * layer.weight)  # type: ignore[method-assign]  # noqa: A006
    return layer


@pytest.mark.parametrize("layer", [conv(4, 6), nn.Linear(3, 2), nn.ConvTranspose3d(2, 2, 3)])
def test_stock_layers_need_none(layer: nn.Module) -> None:
    assert not needs_probe(layer)


@pytest.mark.parametrize(
    "make", [lambda: Standardised(4, 6, 3), lambda: parametrizations.weight_norm(conv(4, 6)), with_own_forward]
)
def test_layers_that_may_compute_something_else_do(make: Callable[[], nn.Module]) -> None:
    assert needs_probe(make())


# -- stock stand-ins ----------------------------------------------------------------------------------------------


@given(convolutions())
@settings(deadline=None, max_examples=80, derandomize=True)
def test_a_normalised_layer_of_any_geometry_is_told_by_a_stock_one(layer: nn.Module) -> None:
    spec = spec_of(layer)
    assume(spec.padding_mode == "zeros" or not any(map(any, spec.padding_amounts())))  # tested below
    twin = copy.deepcopy(layer)
    probe, x = find(parametrizations.weight_norm(layer), noise(*input_shape(layer))), noise(*input_shape(layer), seed=1)
    assert (probe.mixable_input, probe.mixable_output, probe.layer.subclass) == (True, True, "")
    assert relative_gap(compute_layer(probe.layer, x, probe.kernel, probe.bias), twin(x)) < 1e-12


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Standardised(4, 6, 3, stride=2, padding=1, groups=2), X),
        (OwnKernel(4, 6), X),
        (Cached(4, 6, 3, dtype=torch.float64).requires_grad_(False), X[..., 0]),
        (with_own_forward(), X),
    ],
    ids=["standardised", "own kernel", "causal", "own forward"],
)
def test_what_computes_one_convolution_is_that(layer: nn.Module, x: Tensor) -> None:
    layer = layer.double()
    probe = find(layer, x)
    fresh = torch.cat([x, x.flip(-1)]) + 1
    if probe.layer.subclass:
        made = rebuild_kept(layer, probe.layer, probe.kernel, probe.bias)(fresh)
    else:
        made = compute_layer(probe.layer, fresh, probe.kernel, probe.bias)
    assert probe.mixable_input
    assert probe.mixable_output
    assert relative_gap(made, layer(fresh)) < 1e-12


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_normalised_layer_with_other_borders_is_told_by_a_stock_one(mode: str) -> None:
    layer = conv(4, 6, padding_mode=mode)
    assert find(parametrizations.weight_norm(layer), X).layer == spec_of(conv(4, 6, padding_mode=mode))


# -- kept with their own forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "args", "sides"),
    [
        (Covering(4, 6, 3, stride=2), (X,), (True, True)),
        (Covering(4, 6, 3, stride=2, groups=2), (X,), (True, True)),
        (Cached(4, 6, 3), (X[..., 0], X[..., :2, 0]), (False, True)),
        (Scaled(4, 6, 3), (X,), (True, False)),
        (Activated(4, 6, 3), (X,), (True, False)),
        (Rectifying(4, 6), (noise(3, 4),), (False, True)),
    ],
    ids=["covering", "grouped covering", "cached", "scaled", "activated", "rectifying"],
)
def test_a_kept_forward_says_on_which_sides_channels_may_be_mixed(
    layer: nn.Module, args: tuple[Tensor, ...], sides: tuple[bool, bool]
) -> None:
    probe = find(layer, *args)
    assert probe.layer == spec_of(layer)
    assert probe.layer.subclass == f"tests.layer_samples.{type(layer).__name__}"
    assert (probe.mixable_input, probe.mixable_output) == sides
    assert torch.equal(probe.kernel, plain_kernel(layer))


@pytest.mark.parametrize("kind", [Clamped, Conditional])
def test_what_shows_on_large_or_other_inputs_only_is_seen(kind: type[nn.Conv2d]) -> None:
    answer = ask(kind(4, 6, 3), noise(2, 4, 9, 8))
    assert isinstance(answer, str) or not answer.mixable_input


# -- refused ------------------------------------------------------------------------------------------------------


class Failing(nn.Conv2d):
    """A convolution that runs in its model only."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        raise LookupError("no context")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Adapted(4, 6, 3), "Adapted does not run exactly one convolution or matrix product"),
        (StandardisedCovering(4, 6, 3), "StandardisedCovering computes its weight and also changes its input"),
        (Noisy(4, 6, 3), "Noisy computes its weight"),
        (Failing(4, 6, 3), "Failing cannot be called by itself: LookupError: no context"),
        (nn.Identity(), "Identity does not run exactly one convolution or matrix product"),
    ],
    ids=["two convolutions", "weight and padding", "random weight", "failing", "none"],
)
def test_others_are_refused_in_words(layer: nn.Module, reason: str) -> None:
    answer = ask(layer, X)
    assert isinstance(answer, str)
    assert answer.startswith(reason)


class Returning(nn.Conv2d):
    """A convolution that returns its input too."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # noqa: A002
        return super().forward(input), input


def test_a_layer_that_mixes_on_no_side_is_refused() -> None:
    answer = ask(Returning(4, 6, 3), X)
    assert answer == "Returning: its forward does more with its input and output than its weight says"


def test_an_input_under_another_name_is_refused() -> None:
    assert ask(OwnKernel(4, 6), x=X) == "its input is handed over under a name of its own"


def test_an_input_by_keyword_is_found() -> None:
    probe = find(Covering(4, 6, 3), input=X)
    assert (probe.mixable_input, probe.mixable_output) == (True, True)


def test_an_input_of_whole_numbers_is_refused() -> None:
    assert ask(Covering(4, 6, 3), X.long()) == "its input is not a tensor of floating numbers"


# -- nothing is disturbed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Covering, Standardised, Scaled, Adapted, StandardisedCovering])
def test_the_layer_stays_as_it_is(kind: Callable[..., nn.Module]) -> None:
    layer = kind(4, 6, 3).double().eval()
    before, state = dict(vars(layer)), copy.deepcopy(layer.state_dict())
    parameters = dict(layer.named_parameters())
    ask(layer, X)
    assert {name: id(value) for name, value in vars(layer).items()} == {n: id(v) for n, v in before.items()}
    assert all(parameter is parameters[name] for name, parameter in layer.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_hooks_do_not_run() -> None:
    layer, ran = Covering(4, 6, 3), []
    layer.register_forward_pre_hook(lambda module, args: ran.append("before"))
    layer.register_forward_hook(lambda module, args, output: ran.append("after"))
    assert find(layer, X).mixable_output
    assert not ran


def test_random_numbers_go_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    layer = Covering(4, 6, 3)
    torch.manual_seed(3)
    ask(layer, X)
    assert torch.equal(torch.randn(2), expected)


def test_arguments_stay_as_they_are() -> None:
    class Overwriting(nn.Conv1d):
        def forward(self, input: Tensor, cache: Tensor) -> Tensor:  # type: ignore[override]  # noqa: A002
            return super().forward(input) + cache.zero_().sum()

    x, cache = X[..., 0], torch.ones(3, dtype=torch.float64)
    find(Overwriting(4, 6, 3), x, cache)
    assert float(cache.sum()) == 3


# -- the tools ----------------------------------------------------------------------------------------------------


def test_the_operation_inside_is_captured_with_its_own_arguments() -> None:
    layer = Covering(4, 6, 3, stride=2).double()
    operation = capture_operation(layer, Arguments((X,), {}))
    assert operation is not None
    assert operation.layer == spec_of(nn.Conv2d(4, 6, 3, stride=2))
    assert operation.weight is layer.weight
    assert operation.input.shape[-2:] == (11, 9)
    assert torch.equal(operation.output, layer(X))


def test_every_call_is_recorded_with_its_arguments() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.a(net.a(input=x), x[..., :2]), a=Cached(4, 4, 3)))
    with recorded_arguments(net, ["a"]) as calls:
        net(X[..., 0])
    assert [(len(call.args), list(call.kwargs)) for call in calls["a"]] == [(0, ["input"]), (2, [])]
    assert not net.get_submodule("a")._forward_pre_hooks


@pytest.mark.parametrize("kind", [Covering, Cached])
def test_a_rebuilt_layer_keeps_its_class_and_has_other_widths(kind: Callable[..., nn.Module]) -> None:
    layer = kind(4, 6, 3).double()
    layer.register_forward_hook(lambda module, args, output: output * 2)
    spec = spec_of(layer).named("conv", in_channels=2, bias=False)
    made = rebuild_kept(layer, spec, noise(*spec.weight_shape), None)
    assert type(made) is type(layer)
    assert spec_of(made) == spec
    assert not made._forward_hooks
    assert made(noise(2, 2, 9, 8)[(...,) if kind is Covering else (..., 0)]).shape[1] == 6
    assert layer.in_channels == 4
    assert bias_of(layer) is not None
