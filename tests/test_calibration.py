from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from bottleneck_opt import calibration, sampling, sums
from bottleneck_opt.calibration import (
    Sampling,
    choose_probes,
    collect_statistics,
)
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.eligibility import find_candidates
from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.kernels import spread_groups
from bottleneck_opt.layers import LayerSpec, describe_layer
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.patches import take_patches
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import make_step, propose
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sampling import choose_together
from bottleneck_opt.statistics import LayerStatistics, OutputScale, Statistics
from bottleneck_opt.tracing import trace_working
from bottleneck_opt.verification import measure_change
from bottleneck_opt.working_copy import working_copy
from tests.layer_samples import Covering, convolutions, input_shape, plain_kernel, relative_gap, spec_of
from tests.networks import Computes, Tied, classifier, conv, noise, seeded

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
UNIT = (OutputScale(1.0, 1, 1),)
DAMPED = 1e-7  # predictions below this are mostly the damping of the curvature


@pytest.fixture
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample small pictures too, instead of looking at every position."""
    monkeypatch.setattr(sampling, "LEAST_POSITIONS", 49)


def batches(x: Tensor, size: int = 4) -> CalibrationData:
    return CalibrationData(tuple(Inputs((part,)) for part in x.split(size)), len(x), "noise")


def specs(net: nn.Module, *paths: str) -> dict[str, LayerSpec]:
    found = {path: describe_layer(net.get_submodule(path)) for path in paths}
    return {path: spec for path, spec in found.items() if spec is not None}


def collect(
    net: nn.Module, x: Tensor, *paths: str, probes: int = 1, sampling: Sampling | None = None, **options: Any
) -> Statistics:
    sampling = sampling or Sampling(len(x), probes, 0)
    return collect_statistics(net, specs(net, *paths), batches(x), sampling, **options)


# -- moments ------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_all_patches_of_a_small_image() -> None:
    net, x = seeded(classifier), noise(10, 3, 7, 7) + 2
    layer = collect(net, x, "0").layers["0"]
    spec = specs(net, "0")["0"]
    patches = take_patches(spec, x, torch.arange(49))
    assert layer.inputs.count == 490
    torch.testing.assert_close(layer.inputs.mean, patches.mean(0))
    torch.testing.assert_close(layer.inputs.covariance(), torch.cov(patches.T, correction=0))
    torch.testing.assert_close(layer.outputs.mean, net.get_submodule("0")(x).mean((0, 2, 3)).detach())


def test_output_covariance_follows_from_that_of_the_patches() -> None:
    net, x = seeded(classifier), noise(10, 3, 12, 12)
    weight = net.get_submodule("2").get_parameter("weight").detach().flatten(2).transpose(1, 2).flatten(1)
    layer = collect(net, x, "2").layers["2"]
    torch.testing.assert_close(layer.outputs.covariance(), weight @ layer.inputs.covariance() @ weight.T)


def relation_gap(net: nn.Module, x: Tensor, path: str, layer: nn.Module) -> float:
    """How far the outputs' covariance is from what the patches' covariance and the kernel make of it."""
    found = collect(net, x, path).layers[path]
    spec = spec_of(layer)
    kernel = spread_groups(plain_kernel(layer), spec.groups).reshape(spec.out_channels, spec.in_channels, spec.offsets)
    flat = kernel.transpose(1, 2).flatten(1)
    return relative_gap(flat @ found.inputs.covariance() @ flat.T, found.outputs.covariance())


@given(convolutions())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_patches_and_outputs_of_every_kind_of_layer_belong_together(layer: nn.Module) -> None:
    assert relation_gap(nn.Sequential(layer), noise(*input_shape(layer, 5)), "0", layer) < 1e-9


def test_patches_of_a_layer_that_pads_by_itself_are_those_of_the_padded_input() -> None:
    layer = Covering(3, 4, 3, stride=2).double()
    assert relation_gap(nn.Sequential(layer), noise(5, 3, 8, 8), "0", layer) < 1e-9


def test_patches_of_a_transposed_layer_are_those_of_the_size_it_was_asked_for() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.up(x, output_size=(8, 8)), up=nn.ConvTranspose2d(3, 4, 3, 2)))
    assert relation_gap(net, noise(5, 3, 3, 3), "up", net.get_submodule("up")) < 1e-9


def test_twins_are_watched_as_one_layer() -> None:
    net, x = seeded(lambda: Tied(4)), noise(6, 4, 5, 5)
    both = collect(net, x, "first", names={"first": ("first", "second")}).layers["first"]
    single = [collect(net, x, path).layers[path] for path in ("first", "second")]
    assert both.inputs.count == 2 * single[0].inputs.count
    torch.testing.assert_close(both.inputs.total, single[0].inputs.total + single[1].inputs.total)


@pytest.mark.usefixtures("few_positions")
def test_patches_are_sampled_at_the_positions_of_the_outputs() -> None:
    sampling = Sampling(examples=10**6, probes=1, seed=0)
    layer = collect(seeded(classifier), noise(3, 3, 20, 20), "0", sampling=sampling).layers["0"]
    assert layer.inputs.count == layer.outputs.count == 3 * 49


@pytest.mark.usefixtures("few_positions")
def test_few_examples_are_looked_at_in_more_places() -> None:
    assert Sampling(examples=1, probes=1, seed=0).positions(100, 10**6) == 800
    assert Sampling(examples=10**6, probes=1, seed=0).positions(100, 10**6) == 49
    assert Sampling(examples=1, probes=1, seed=0).positions(100, 60) == 60


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_covariance_in_float32_survives_a_large_mean(mean: float) -> None:
    net, x = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), dtype=torch.float32), noise(64, 3, 7, 7) + mean
    found = collect(net, x.float(), "0").layers["0"].inputs.covariance()
    exact = collect(net.double(), x.float().double(), "0").layers["0"].inputs.covariance()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_no_outer_products_of_patches_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "OUTER_LIMIT", 100)
    layers = collect(seeded(classifier), noise(4, 3, 6, 6), "0", "2").layers
    assert layers["0"].inputs.outer is not None
    assert layers["2"].inputs.outer is None
    assert layers["2"].outputs.outer is not None


def test_output_scale_is_the_outputs_deviation() -> None:
    net, x = seeded(classifier), noise(10, 3, 8, 8)
    (scale,) = collect(net, x, "0").scales
    assert scale.deviation == pytest.approx(float(net(x).detach().std(correction=0)))
    assert (scale.entries, scale.leaves) == (5, 1)


def test_every_floating_leaf_has_a_scale() -> None:
    net = Computes(lambda net, x: {"a": net.conv(x), "b": [net.conv(x).mean(1), x.argmax(1)]}, conv=conv(3, 4)).double()
    scales = collect(net, noise(6, 3, 5, 5), "conv").scales
    assert [(scale.entries, scale.leaves) for scale in scales] == [(100, 2), (25, 2)]


# -- merging ------------------------------------------------------------------------------------------------------


def assert_equal(one: LayerStatistics, other: LayerStatistics) -> None:
    for mine, theirs in ((one.inputs, other.inputs), (one.outputs, other.outputs)):
        assert mine.count == theirs.count
        torch.testing.assert_close(mine.total, theirs.total)
        if mine.outer is None or theirs.outer is None:
            assert mine.outer is theirs.outer
        else:
            torch.testing.assert_close(mine.outer, theirs.outer)
    assert one.probes == other.probes
    torch.testing.assert_close(one.curvature, other.curvature)


def halves(net: nn.Module, x: Tensor, second_starts_at: int) -> tuple[Statistics, Statistics]:
    """Statistics of the whole, and of both halves merged, at sampled positions."""
    paths = ("0", "2", "8")
    sampling = Sampling(examples=10**6, probes=2, seed=3)
    whole = collect(net, x, *paths, sampling=sampling)
    first = collect(net, x[:8], *paths, sampling=sampling, scales=whole.scales)
    offset = Sampling(sampling.examples, sampling.probes, sampling.seed, second_starts_at)
    second = collect(net, x[8:], *paths, sampling=offset, scales=whole.scales)
    return whole, first.merge(second)


def test_two_halves_merged_equal_the_whole() -> None:
    whole, merged = halves(seeded(classifier), noise(16, 3, 12, 12), second_starts_at=8)
    assert merged.examples == whole.examples == 16
    for path, layer in whole.layers.items():
        assert_equal(layer, merged.layers[path])


@pytest.mark.usefixtures("few_positions")
def test_the_first_examples_number_decides_what_is_sampled() -> None:
    whole, merged = halves(seeded(classifier), noise(16, 3, 12, 12), second_starts_at=0)
    assert not torch.allclose(whole.layers["0"].inputs.total, merged.layers["0"].inputs.total)
    assert not torch.allclose(whole.layers["0"].curvature, merged.layers["0"].curvature)


@pytest.mark.usefixtures("few_positions")
def test_the_same_seed_gives_the_same_statistics() -> None:
    net, x = seeded(classifier), noise(8, 3, 12, 12)
    one, two = (collect(net, x, "0", sampling=Sampling(10**6, 2, 5)).layers["0"] for _ in range(2))
    other = collect(net, x, "0", sampling=Sampling(10**6, 2, 6)).layers["0"]
    assert torch.equal(one.curvature, two.curvature)
    assert torch.equal(one.inputs.total, two.inputs.total)
    assert not torch.equal(one.curvature, other.curvature)
    assert not torch.equal(one.inputs.total, other.inputs.total)


# -- curvature ----------------------------------------------------------------------------------------------------


def jacobian_product(net: nn.Sequential, x: Tensor) -> Tensor:
    """``E_image[sum_positions J^T J] (out, out)`` of a network whose first layer is observed, from its Jacobian."""
    total = torch.zeros(())
    for image in net[0](x).detach():
        jacobian = torch.autograd.functional.jacobian(lambda y: net[1:](y[None])[0], image)
        rows = jacobian.flatten(2) if jacobian.dim() > 2 else jacobian[..., None]
        total = total + torch.einsum("vop,vqp->oq", rows, rows)
    return total / len(x)


def linear_net(outputs: int) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(conv(2, 3), conv(3, 4), nn.Flatten(), nn.Linear(4 * 36, outputs)))


def test_curvature_of_one_linear_output_is_its_jacobian_product() -> None:
    net, x = linear_net(1), noise(12, 2, 6, 6)
    layer = collect(net, x, "0", probes=8, scales=UNIT).layers["0"]
    found, expected = layer.mean_curvature(), jacobian_product(net, x)
    assert layer.probes == 12 * 8
    torch.testing.assert_close(found / found.trace(), expected / expected.trace())
    assert float(found.trace() / expected.trace()) == pytest.approx(1, abs=0.3)


def test_curvature_is_the_jacobian_product_in_expectation() -> None:
    net, x = linear_net(5), noise(64, 2, 6, 6)
    found = collect(net, x, "0", probes=32, scales=UNIT).layers["0"].mean_curvature()
    expected = jacobian_product(net, x[:1])
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_curvature_of_a_network_with_relu() -> None:
    net = seeded(lambda: nn.Sequential(conv(2, 3), nn.ReLU(), conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))
    x = noise(32, 2, 6, 6)
    found = collect(net, x, "0", probes=64, scales=UNIT).layers["0"].mean_curvature()
    expected = jacobian_product(net, x)
    assert float((found - expected).norm() / expected.norm()) < 0.1


def test_curvature_follows_the_scale_of_the_output() -> None:
    net, x = linear_net(1), noise(12, 2, 6, 6)
    plain = collect(net, x, "0", scales=UNIT).layers["0"].curvature
    scaled = collect(net, x, "0", scales=(OutputScale(2.0, 1, 1),)).layers["0"].curvature
    torch.testing.assert_close(scaled, plain / 4)


def test_curvature_at_some_positions_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    net = seeded(lambda: nn.Sequential(conv(2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)))
    x = noise(4, 2, 6, 6)
    whole = collect(net, x, "0", scales=UNIT).layers["0"].curvature
    monkeypatch.setattr(sums, "CURVATURE_POSITIONS", 7)
    torch.testing.assert_close(collect(net, x, "0", scales=UNIT).layers["0"].curvature, whole)


def test_a_layer_called_twice_is_felt_at_both_calls() -> None:
    net = Computes(
        lambda net, x: net.conv(x).sum((1, 2, 3)) + 2 * net.conv(-x).sum((1, 2, 3)), conv=conv(2, 3)
    ).double()
    layer = collect(net, noise(4, 2, 5, 5), "conv", probes=3, scales=UNIT).layers["conv"]
    assert layer.inputs.count == 4 * 25 * 2
    assert layer.probes == 12
    torch.testing.assert_close(layer.curvature, layer.curvature[0, 0].expand(3, 3))
    once = Computes(lambda net, x: net.conv(x).sum((1, 2, 3)), conv=net.get_submodule("conv"))
    alone = collect(once, noise(4, 2, 5, 5), "conv", probes=3, scales=UNIT).layers["conv"]
    torch.testing.assert_close(layer.curvature, 5 * alone.curvature)


def test_a_layer_first_called_without_effect_is_still_felt() -> None:
    def use_second(net: Any, x: Tensor) -> Tensor:
        net.conv(x)
        out: Tensor = net.conv(x).sum((1, 2, 3))
        return out

    net = Computes(use_second, conv=conv(2, 3)).double()
    layer = collect(net, noise(4, 2, 5, 5), "conv", probes=3, scales=UNIT).layers["conv"]
    assert layer.probes == 12


def test_a_layer_the_output_does_not_feel_has_no_probe() -> None:
    net = Computes(lambda net, x: net.used(x) + 0 * net.cut(x).detach(), used=conv(2, 3), cut=conv(2, 3)).double()
    layers = collect(net, noise(4, 2, 5, 5), "used", "cut").layers
    assert layers["used"].probes == 4
    assert layers["cut"].probes == 0


def test_expensive_models_get_fewer_probes() -> None:
    assert choose_probes(64, 1e6) == 8
    assert choose_probes(64, 1e9) == 3
    assert choose_probes(256, 1e12) == 1


# -- few examples at once ------------------------------------------------------------------------------------------


def runs_at(sizes: list[int], net: nn.Module) -> nn.Module:
    """A network that notes how many examples each differentiated call has."""

    def run(outer: Any, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(x))
        out: Tensor = outer.net(x)
        return out

    return Computes(run, net=net).double()


def test_backward_passes_keep_a_few_examples_at_once() -> None:
    sizes: list[int] = []
    net, x = runs_at(sizes, linear_net(1)), noise(7, 2, 6, 6)
    layer = collect(net, x, "net.0", sampling=Sampling(7, 1, 0, together=3)).layers["net.0"]
    assert sizes == [3, 1, 3]
    assert layer.probes == 7
    whole = collect(linear_net(1), x, "0").layers["0"]
    assert float((layer.curvature - whole.curvature).norm() / whole.curvature.norm()) < 2
    torch.testing.assert_close(layer.inputs.outer, whole.inputs.outer)


@pytest.mark.parametrize(
    "function",
    [lambda net, x: net.net(x) - net.net(x).mean(0), lambda net, x: net.net(x).reshape(4, -1)],
    ids=["examples that feel each other", "one batch size"],
)
def test_a_batch_that_cannot_be_cut_is_run_whole(function: Any) -> None:
    sizes: list[int] = []
    net = Computes(function, net=runs_at(sizes, linear_net(2))).double()
    collect(net, noise(4, 2, 6, 6), "net.net.0", sampling=Sampling(4, 1, 0, together=3))
    assert set(sizes) == {4}


def test_large_activations_are_kept_for_fewer_examples() -> None:
    assert choose_together(150e6) == 1
    assert choose_together(10e6) == 26
    assert choose_together(1e12) == 1


# -- the model is left alone --------------------------------------------------------------------------------------


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def test_hooks_are_gone_afterwards() -> None:
    net = seeded(classifier)
    collect(net, noise(4, 3, 8, 8), "0", "2")
    assert hooks(net) == 0


def test_hooks_are_gone_after_an_error() -> None:
    def fail(net: Any, x: Tensor) -> Tensor:
        raise RuntimeError("no output")

    net = Computes(fail, conv=conv(3, 4))
    with pytest.raises(InputError, match=r"calibration batch 0: the model fails .*RuntimeError: no output"):
        collect(net, noise(4, 3, 8, 8), "conv")
    assert hooks(net) == 0


def test_statistics_of_no_batch() -> None:
    with pytest.raises(ValueError, match="no batches"):
        collect_statistics(seeded(classifier), {}, CalibrationData((), 0, "nothing"), Sampling(1, 1, 0))


# -- how far the prediction can be trusted ------------------------------------------------------------------------


def small_classifier() -> nn.Module:
    return nn.Sequential(
        conv(1, 12), nn.ReLU(), conv(12, 16), nn.ReLU(), nn.MaxPool2d(2), conv(16, 16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy stripes of four directions and their class."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (count,), generator=generator)
    angle = classes * torch.pi / 4
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    phase = 6 * torch.rand(count, 1, 1, generator=generator)
    wave = torch.sin(1.3 * (x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]) + phase)
    return (wave + 0.5 * torch.randn(wave.shape, generator=generator))[:, None], classes


def train(net: nn.Module, steps: int = 120) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for step in range(steps):
        images, classes = stripes(64, seed=step)
        loss = F.cross_entropy(net(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    net = seeded(small_classifier, dtype=torch.float32).train()
    train(net)
    images, classes = stripes(200, seed=10**6)
    assert float((net.eval()(images).argmax(1) == classes).float().mean()) > 0.95
    return net


def measured_over_predicted(net: nn.Module, x: Tensor) -> Mapping[str, float]:
    """At half rank and above: measured output change of changing one layer alone, over the predicted one."""
    working = working_copy(net)
    traced = trace_working(working, Inputs((x[:1],)))
    candidates, data = find_candidates(working, traced), batches(x, 16)
    statistics = collect_statistics(working, candidates.layers, data, Sampling(len(x), 8, 0))
    ratios = {}
    for proposal in propose(make_sites(working, traced, candidates, statistics), [Reduce(), Expand()], ["macs"]):
        for priced in proposal.options:
            option, site = priced.option, proposal.site
            if 2 * option.ranks[0] < option.full_ranks[0] or option.predicted_loss < DAMPED:
                continue
            step = make_step(site, priced)
            plan = Plan("net", "", (), 0, traced.cost, traced.cost, 0.0, 0.0, (step,))
            changed = working_copy(rewrite_model(working, plan, {site.path: option.fill()}))
            change = measure_change(working, changed, data, statistics.scales).relative
            assert change is not None
            ratios[f"{site.path} {option.form} {option.ranks}"] = change / option.predicted_loss
    return ratios


def test_predicted_and_measured_change_agree_within_a_factor_of_three(trained: nn.Module) -> None:
    ratios = measured_over_predicted(trained, stripes(128, seed=5)[0])
    assert len(ratios) > 8
    assert all(1 / 3 < ratio < 3 for ratio in ratios.values()), ratios


def test_data_that_overflow_are_told_with_the_layer_and_the_data() -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4)), dtype=torch.float32)
    x = noise(8, 3, 6, 6).float()
    x *= 1e20 / x.abs().max()
    with pytest.raises(
        InputError, match=r"^calibration: what flows through '0' is NaN or too large .* on noise with .*up to 1\.0e\+20"
    ):
        collect(working_copy(net), x, "0", "2")
