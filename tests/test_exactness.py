from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import bottleneck_opt as bo
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.testing import FullRankRewrite, rewrite_everything
from bottleneck_opt.working_copy import materialise
from tests.layer_samples import (
    PASSES,
    Cached,
    Covering,
    OwnKernel,
    Standardised,
    convolutions,
    has_form,
    input_shape,
    relative_gap,
)
from tests.networks import Computes, ReadsLayer, Repeated, Tied, Upsampling, conv, noise, seeded

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
FORMS = ("reduce", "expand")
EXACT = 1e-8


@given(convolutions(), st.sampled_from(sorted(PASSES)))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_every_geometry_is_exact_on_other_inputs_of_other_sizes(layer: nn.Module, form: str) -> None:
    assume(has_form(layer, form))
    net, example = nn.Sequential(layer), noise(*input_shape(layer))
    rewritten = rewrite_everything(net, example, passes=[PASSES[form]])
    assert [step.form for step in rewritten.plan.steps] == [form]
    for x in (noise(*example.shape, seed=1), noise(*input_shape(layer, 3, grown=2), seed=2)):
        assert relative_gap(rewritten.model(x), net(x)) < EXACT


# -- whatever may be done to a layer ------------------------------------------------------------------------------


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def normed(layer: nn.Module, how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch advises against the older functions
        return how(layer)


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def doubled(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def with_hooks(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    layer.register_forward_hook(lambda module, args, output: output.tanh())
    return layer


def row_of(
    kind: Callable[..., nn.Module], *args: int, done: Callable[[nn.Module], nn.Module] = lambda layer: layer,
    **options: int,
) -> Callable[[], nn.Module]:  # fmt: skip
    """Makes two layers in a row, each after something was done to it."""
    return lambda: nn.Sequential(done(kind(8, 12, *args, **options)), nn.Tanh(), done(kind(12, 8, *args, **options)))


def call_with_cache() -> nn.Module:
    def run(net: Any, x: Tensor) -> Any:
        return net.second(net.first(x[..., 3:], x[..., :2]).tanh(), cache=net.first(x)[..., :2])

    return Computes(run, first=Cached(8, 8, 3), second=Cached(8, 8, 3))


def call_by_keyword() -> nn.Module:
    return Computes(lambda net, x: net.last(input=net.first(input=x).tanh()), first=conv(8, 12), last=conv(12, 8))


@dataclass(frozen=True)
class Sample:
    """A network with layers that can be rewritten.

    Attributes:
        make: Builds it.
        shape: Of its input.
        forms: The forms that are possible.
        steps: How many layers are rewritten.
        grows: The axis along which its input may be larger.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 8, 8, 10)
    forms: tuple[str, ...] = FORMS
    steps: int = 2
    grows: int = -1

    def larger_shape(self) -> tuple[int, ...]:
        """The shape of an input that is larger than the example."""
        return tuple(size + 2 * (axis == self.grows % len(self.shape)) for axis, size in enumerate(self.shape))


CAUSAL = (2, 8, 11)
SAMPLES = {
    "parametrization": Sample(row_of(nn.Conv2d, 3, done=doubled)),
    "weight norm": Sample(row_of(nn.Conv2d, 3, done=parametrizations.weight_norm)),
    "weight norm by hooks": Sample(row_of(nn.Conv1d, 3, done=partial(normed, how=weight_norm)), CAUSAL),
    "spectral norm": Sample(row_of(nn.Linear, done=parametrizations.spectral_norm), (3, 5, 8), ("expand",), grows=0),
    "spectral norm by hooks": Sample(row_of(nn.ConvTranspose2d, 3, done=partial(normed, how=spectral_norm))),
    "pruning masks": Sample(row_of(nn.Conv2d, 3, done=pruned)),
    "standardised weight": Sample(row_of(Standardised, 3, stride=2, padding=1, groups=2)),
    "padding by the input's size": Sample(row_of(Covering, 3, stride=2)),
    "grouped, padding by the input's size": Sample(row_of(Covering, 4, stride=3, groups=2)),
    "cache": Sample(call_with_cache, CAUSAL, ("expand",)),
    "no cache": Sample(row_of(Cached, 3), CAUSAL),
    "output size": Sample(Upsampling),
    "tied twins": Sample(Tied, steps=1),
    "called often and several names": Sample(Repeated, (2, 3, 9, 10), steps=3),
    "attributes read": Sample(ReadsLayer, steps=1),
    "rows": Sample(row_of(nn.Linear), (5, 8), ("expand",), grows=0),
    "rows of rows": Sample(row_of(nn.Linear), (2, 3, 8), ("expand",), grows=0),
    "rows of rows of rows": Sample(row_of(nn.Linear), (2, 3, 4, 8), ("expand",), grows=0),
    "keyword": Sample(call_by_keyword),
    "hooks": Sample(row_of(nn.Conv2d, 3, done=with_hooks)),
    "own kernel": Sample(row_of(OwnKernel, 3)),
    "unbatched": Sample(row_of(nn.Conv2d, 3), (8, 9, 10)),
}
SAMPLE = pytest.mark.parametrize(("name", "form"), [(n, form) for n in SAMPLES for form in SAMPLES[n].forms])


def rewritten_sample(name: str, form: str) -> tuple[nn.Module, FullRankRewrite]:
    sample = SAMPLES[name]
    net = seeded(sample.make)
    return net, rewrite_everything(net, noise(*sample.shape), passes=[form])


@SAMPLE
def test_it_is_exact_on_other_inputs(name: str, form: str) -> None:
    net, rewritten = rewritten_sample(name, form)
    assert len(rewritten.plan.steps) == SAMPLES[name].steps, rewritten.refused
    for x in (noise(*SAMPLES[name].shape, seed=1), noise(*SAMPLES[name].larger_shape(), seed=2)):
        assert relative_gap(rewritten.model(x), net(x)) < EXACT


@SAMPLE
def test_a_wrong_factor_is_seen(name: str, form: str) -> None:
    net, rewritten = rewritten_sample(name, form)
    first = rewritten.model.get_submodule(rewritten.plan.steps[0].path)
    next(first.parameters()).data.flatten()[0] += 0.1
    x = noise(*SAMPLES[name].shape, seed=1)
    assert relative_gap(rewritten.model(x), net(x)) > 1e-5


@pytest.mark.parametrize("name", [name for name in SAMPLES if "reduce" not in SAMPLES[name].forms])
def test_what_cannot_be_reduced_is_left_alone_with_a_reason(name: str) -> None:
    net = seeded(SAMPLES[name].make)
    rewritten = rewrite_everything(net, noise(*SAMPLES[name].shape), passes=["reduce"])
    assert not rewritten.plan.steps
    assert all(skip.reason for skip in rewritten.refused.values())


@pytest.mark.parametrize("name", SAMPLES)
def test_saved_and_loaded_into_a_fresh_instance_it_is_the_same_bit_by_bit(name: str, tmp_path: Path) -> None:
    sample, x = SAMPLES[name], noise(*SAMPLES[name].shape, seed=1)
    result = bo.optimize(seeded(sample.make), noise(*sample.shape), budget=0.9, progress=False)
    assert result.plan.steps
    result.save(tmp_path)
    loaded = bo.load(tmp_path, seeded(sample.make, seed=1))
    assert torch.equal(loaded(x), result.model(x))


def test_lazy_layers_are_built_and_rewritten() -> None:
    net = nn.Sequential(nn.LazyConv1d(12, 3), nn.Tanh(), nn.LazyConvTranspose1d(8, 3), nn.Flatten(), nn.LazyLinear(5))
    example, x = noise(2, 6, 11, dtype=torch.float32), noise(2, 6, 11, seed=1, dtype=torch.float32)
    rewritten = rewrite_everything(net, example)
    assert [step.path for step in rewritten.plan.steps] == ["0", "2", "4"]
    assert relative_gap(rewritten.model(x), materialise(net, Inputs((example,)))(x)) < 1e-4


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (row_of(nn.Conv1d, 3), CAUSAL),
    "2d": (row_of(nn.Conv2d, 3, groups=2), (2, 8, 8, 9)),
    "3d": (row_of(nn.Conv3d, 3), (2, 8, 6, 7, 8)),
    "transposed": (row_of(nn.ConvTranspose2d, 3, stride=2), (2, 8, 4, 5)),
}
KIND = pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind in KINDS for form in FORMS])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
@KIND
def test_it_is_exact_in_other_precisions(kind: str, form: str, dtype: torch.dtype, tolerance: float) -> None:
    make, shape = KINDS[kind]
    net = seeded(make, dtype=dtype)
    rewritten = rewrite_everything(net, noise(*shape, dtype=dtype), passes=[form])
    x = noise(*shape, seed=1, dtype=dtype)
    got = rewritten.model(x)
    assert len(rewritten.plan.steps) == 2
    assert got.dtype == dtype
    assert relative_gap(got, net(x)) < tolerance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "layout"), [("2d", torch.channels_last), ("transposed", torch.channels_last),
                                              ("3d", torch.channels_last_3d)])  # fmt: skip
def test_channels_stay_last_in_memory(kind: str, layout: torch.memory_format, form: str) -> None:
    make, shape = KINDS[kind]
    net = seeded(make).to(memory_format=layout)  # type: ignore[call-overload]
    example, x = (noise(*shape, seed=seed).contiguous(memory_format=layout) for seed in (0, 1))
    rewritten = rewrite_everything(net, example, passes=[form])
    kernels = [p for name, p in rewritten.model.named_parameters() if name.endswith("conv.weight")]
    assert len(kernels) == 2
    assert all(kernel.is_contiguous(memory_format=layout) and not kernel.is_contiguous() for kernel in kernels)
    assert relative_gap(rewritten.model(x), net(x)) < EXACT
