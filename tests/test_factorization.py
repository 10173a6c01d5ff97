from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bottleneck_opt.conditioning import LEAST_SHRINKAGE, cholesky, choose_shrinkage, damp, shrink, square_roots
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.factorization import (
    Factors,
    balance,
    factor_exactly,
    fit_expand,
    fit_expand_by_inputs,
    loss_of,
    nest_factors,
    project_covariance,
    refit_second,
)
from bottleneck_opt.grouped_losses import list_losses_of_groups
from bottleneck_opt.inputs import find_tensors
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.passes.select import Select
from bottleneck_opt.passes.spatial import Spatial
from bottleneck_opt.passes.tucker import Tucker
from bottleneck_opt.proposing import propose
from bottleneck_opt.testing import full_rank_plan, rewrite_at_full_rank
from tests.layer_samples import (
    MODES,
    PASSES,
    compute_layer,
    convolutions,
    correlated,
    double_conv,
    has_form,
    input_shape,
    make_site,
    merged_weight,
    offer,
    offers,
    random_curvature,
    relative_gap,
    run_option,
    spec_of,
)
from tests.networks import classifier, noise, seeded

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
BOTH = pytest.mark.parametrize("name", ["reduce", "expand"])
ALL = pytest.mark.parametrize("name", sorted(PASSES))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- full rank ----------------------------------------------------------------------------------------------------


@PROPERTY
@given(convolutions(), st.sampled_from(sorted(PASSES)))
def test_full_rank_convolution_is_the_original(layer: nn.Module, name: str) -> None:
    assume(has_form(layer, name))
    x = torch.randn(input_shape(layer, 6), dtype=torch.float64)
    option = offer(make_site(layer, x, shrinkage=LEAST_SHRINKAGE), name)
    fresh = torch.randn(input_shape(layer, grown=2), dtype=torch.float64)
    assert relative_gap(run_option(option, fresh), layer(fresh)) < 1e-9


@pytest.mark.parametrize("padding", ["same", "valid", 2])
@pytest.mark.parametrize("mode", MODES)
@ALL
def test_full_rank_module_is_the_original(name: str, mode: str, padding: Any) -> None:
    net = nn.Sequential(double_conv(5, 6, 3, padding=padding, padding_mode=mode, dilation=2))
    rewritten = rewrite_at_full_rank(net, noise(1, 5, 9, 9), passes=[name])
    x = noise(2, 5, 11, 8, seed=1)
    assert relative_gap(rewritten(x).detach(), net(x).detach()) < 1e-9


@ALL
def test_full_rank_network_is_the_original(name: str) -> None:
    net, x = seeded(classifier), noise(2, 3, 8, 8)
    plan, rewritten = full_rank_plan(net, x, passes=[name]), rewrite_at_full_rank(net, x, passes=[name])
    assert len(plan.steps) >= 3
    assert all(step.ranks == step.full_ranks for step in plan.steps)
    assert relative_gap(rewritten(x).detach(), net(x).detach()) < 1e-9


def test_full_rank_network_in_float32() -> None:
    net, x = seeded(classifier, dtype=torch.float32), noise(2, 3, 8, 8, dtype=torch.float32)
    assert relative_gap(rewrite_at_full_rank(net, x)(x).detach(), net(x).detach()) < 1e-4


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("i", "o"), [(7, 4), (4, 7)])
def test_full_rank_linear_is_the_original(i: int, o: int, bias: bool) -> None:
    layer, x = nn.Linear(i, o, bias=bias, dtype=torch.float64), torch.randn(50, 3, i, dtype=torch.float64)
    option = offer(make_site(layer, x), "expand")
    fresh = torch.randn(2, 3, i, dtype=torch.float64)
    assert option.ranks == (4,)
    assert relative_gap(run_option(option, fresh), layer(fresh).detach()) < 1e-9


def test_full_rank_costs_more_and_is_never_offered_by_the_tool() -> None:
    plan = full_rank_plan(seeded(classifier), noise(1, 3, 8, 8))
    assert all(step.after.macs > step.before.macs for step in plan.steps)


def test_a_grouped_layer_of_one_offset_loses_nothing_at_full_rank() -> None:
    for seed in range(20):
        net = seeded(lambda: nn.Sequential(nn.Conv2d(4, 6, 1, groups=2)), seed=seed)
        assert full_rank_plan(net, noise(2, 4, 9, 8)).predicted_loss >= 0


# -- predicted loss -----------------------------------------------------------------------------------------------


@PROPERTY
@given(convolutions(), st.sampled_from(sorted(PASSES)), st.data())
def test_predicted_loss_is_the_loss_of_the_weights(layer: nn.Module, name: str, data: st.DataObject) -> None:
    assume(has_form(layer, name))
    x = correlated(torch.randn(input_shape(layer, 20), dtype=torch.float64))
    site = make_site(layer, x, curvature=random_curvature(spec_of(layer).out_channels))
    option = data.draw(st.sampled_from(offers(site, name)))
    whole = loss_of(site.flat_weight, torch.zeros_like(site.flat_weight), site.covariance(), site.curvature())
    loss = loss_of(site.flat_weight, merged_weight(option, site.layer), site.covariance(), site.curvature())
    assert option.predicted_loss == pytest.approx(loss, rel=1e-6, abs=1e-9 * whole)


GEOMETRIES: dict[str, Callable[..., nn.Module]] = {
    "2d": partial(double_conv, 6, 8, 3),
    "grouped": partial(double_conv, 6, 8, 3, groups=2),
    "1d": partial(nn.Conv1d, 6, 8, 3, stride=2, dtype=torch.float64),
    "3d": partial(nn.Conv3d, 6, 8, (1, 3, 2), dtype=torch.float64),
    "transposed": partial(nn.ConvTranspose2d, 6, 8, 3, dtype=torch.float64),
    "grouped transposed": partial(nn.ConvTranspose1d, 6, 8, 3, groups=2, dtype=torch.float64),
}
GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES)


@GEOMETRY
@BOTH
def test_predicted_loss_is_the_felt_output_change(name: str, geometry: str) -> None:
    layer = GEOMETRIES[geometry]()
    x = correlated(torch.randn(input_shape(layer, 30), dtype=torch.float64))
    site = make_site(layer, x, curvature=random_curvature(8))
    option = offer(site, name, 2)
    change = (run_option(option, x) - layer(x).detach()).movedim(1, -1).reshape(-1, 8)
    felt = torch.einsum("no,op,np->n", change, site.curvature(), change).mean()
    assert option.predicted_loss == pytest.approx(float(felt), rel=1e-6)


def test_losses_of_groups_are_those_of_the_multiplied_weights() -> None:
    groups, out, width, terms = 3, 2, 4, 5
    factors = [
        Factors(torch.randn(terms, width, dtype=torch.float64), torch.randn(out, terms, dtype=torch.float64))
        for _ in range(groups)
    ]
    covariance, curvature = random_curvature(groups * width), random_curvature(groups * out)
    losses = list_losses_of_groups(factors, 2, covariance, curvature)
    whole = torch.block_diag(*(each.second @ each.first for each in factors))
    assert len(losses) == 4
    for rank, loss in enumerate(losses):
        kept = torch.block_diag(*(each.second[:, : 2 * rank] @ each.first[: 2 * rank] for each in factors))
        assert float(loss) == pytest.approx(loss_of(whole, kept, covariance, curvature), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("out", "offsets", "width"), [(3, 2, 4), (2, 2, 7), (4, 1, 4)])
def test_exact_factors_are_no_larger_than_needed(out: int, offsets: int, width: int) -> None:
    weight = torch.randn(out, offsets, width, dtype=torch.float64)
    factors = factor_exactly(weight)
    assert len(factors.first) == min(width, offsets * out)
    torch.testing.assert_close(factors.second @ factors.first, weight)


def test_nested_factors_are_the_best_at_every_rank() -> None:
    weight, covariance = torch.randn(4, 3, 5, dtype=torch.float64), random_curvature(15)
    projection = torch.randn(5, 5, dtype=torch.float64)
    nested = nest_factors(weight, covariance, projection)
    for rank in range(1, 6):
        kept = nested.second[:, : 3 * rank] @ nested.first[: 3 * rank]
        best = refit_second(weight, covariance, projection[:rank]) @ projection[:rank]
        torch.testing.assert_close(kept, best.flatten(1))


def test_only_ranks_that_can_pay_and_the_full_one_are_fitted() -> None:
    site = make_site(double_conv(8, 9, 3), correlated(torch.randn(40, 8, 9, 9, dtype=torch.float64)))
    assert [option.ranks for option in offers(site, "reduce")] == [(rank,) for rank in range(1, 9)]
    assert len(site.reduced.projection) == 7
    assert all(before <= 7 for before, after in (option.ranks for option in offers(site, "tucker")[:-1]))


def test_options_hold_nothing_large() -> None:
    site = make_site(double_conv(8, 9, 3), correlated(torch.randn(40, 8, 9, 9, dtype=torch.float64)))
    proposal = propose([site], (Reduce(), Expand(), Tucker(), Spatial()), ["macs"])[0]
    assert "reduced" not in vars(proposal.site)
    for priced in proposal.options:
        assert isinstance(priced.option.fill, partial)
        own = [vars(each) for each in priced.option.fill.args if is_dataclass(each)]
        held = [t for each in own for name, value in each.items() if name != "site" for t in find_tensors(value)]
        assert sum(tensor.numel() for tensor in held) < 9 * 8 * 9


def test_expand_drops_the_least_energy() -> None:
    weight, curvature = torch.randn(6, 9, dtype=torch.float64), damp(random_curvature(6))
    covariance = random_curvature(9)
    fit = fit_expand(weight, weight @ covariance @ weight.T, curvature)
    half = square_roots(curvature)[0]
    energy = torch.linalg.eigvalsh(half @ weight @ covariance @ weight.T @ half)
    for rank in range(7):
        assert float(fit.losses[rank]) == pytest.approx(
            float(energy[: 6 - rank].sum()), abs=1e-12 * float(energy.sum())
        )


def test_expand_beats_every_other_projection() -> None:
    weight, curvature, covariance = torch.randn(6, 9, dtype=torch.float64), random_curvature(6), random_curvature(9)
    fit = fit_expand(weight, weight @ covariance @ weight.T, curvature)
    for _ in range(50):
        first = torch.randn(2, 9, dtype=torch.float64)
        second = weight @ covariance @ first.T @ torch.linalg.inv(first @ covariance @ first.T)
        assert loss_of(weight, second @ first, covariance, curvature) >= float(fit.losses[2]) * (1 - 1e-9)


def test_expand_with_more_outputs_than_inputs_has_no_loss_from_the_inputs_rank_on() -> None:
    weight, curvature, covariance = torch.randn(9, 4, dtype=torch.float64), random_curvature(9), random_curvature(4)
    fit = fit_expand(weight, weight @ covariance @ weight.T, damp(curvature))
    assert len(fit.losses) == 10
    assert float(fit.losses[4:].abs().max()) == 0
    factors = fit.factors(4, weight)
    torch.testing.assert_close(factors.second @ factors.first, weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("most", [None, 3])
def test_expand_is_the_same_from_inputs_and_from_outputs(most: int | None) -> None:
    weight, curvature, covariance = torch.randn(9, 4, dtype=torch.float64), random_curvature(9), random_curvature(4)
    one = fit_expand(weight, weight @ covariance @ weight.T, curvature, most=most)
    two = fit_expand_by_inputs(weight, covariance, curvature, most=most)
    torch.testing.assert_close(two.losses, one.losses, rtol=1e-9, atol=1e-12 * float(one.losses[0]))
    assert two.left.shape == one.left.shape
    for rank in range(1, 4):
        first, second = (fit.left[:, :rank] @ fit.right[:, :rank].T for fit in (one, two))
        torch.testing.assert_close(second, first, rtol=1e-7, atol=1e-9)


@BOTH
def test_more_rank_never_loses_more(name: str) -> None:
    site = make_site(double_conv(8, 9, 3), correlated(torch.randn(40, 8, 9, 9, dtype=torch.float64)))
    losses = [offer(site, name, rank).predicted_loss for rank in range(1, 9)]
    assert losses == sorted(losses, reverse=True)


def test_refit_is_optimal_for_any_curvature() -> None:
    weight, covariance = torch.randn(4, 3, 5, dtype=torch.float64), random_curvature(15)
    projection = torch.randn(2, 5, dtype=torch.float64)
    second = refit_second(weight, covariance, projection)
    for curvature in (torch.eye(4, dtype=torch.float64), random_curvature(4)):
        best = loss_of(weight.flatten(1), (second @ projection).flatten(1), covariance, curvature)
        for _ in range(20):
            moved = second + 1e-3 * torch.randn_like(second)
            assert loss_of(weight.flatten(1), (moved @ projection).flatten(1), covariance, curvature) >= best


def test_reduce_is_near_the_best_projection() -> None:
    layer, x = double_conv(5, 6, 2), F.avg_pool2d(correlated(torch.randn(20, 5, 12, 12, dtype=torch.float64)), 2, 1)
    site = make_site(layer, x, curvature=random_curvature(6))
    best = min(
        _descend(site.offset_weight, site.covariance(), site.curvature(), rank=2, seed=seed) for seed in range(4)
    )
    assert best * (1 - 1e-9) <= offer(site, "reduce", 2).predicted_loss <= 1.03 * best


def _descend(weight: Tensor, covariance: Tensor, curvature: Tensor, *, rank: int, seed: int) -> float:
    """The loss after following the gradient in the projection from a random start."""
    start = torch.randn(rank, weight.shape[2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    projection = start.requires_grad_()
    search = torch.optim.LBFGS([projection], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        spread = torch.kron(torch.eye(weight.shape[1], dtype=torch.float64), projection)
        crossed = weight.flatten(1) @ covariance @ spread.T
        second = torch.linalg.solve(spread @ covariance @ spread.T, crossed, left=False)
        difference = weight.flatten(1) - second @ spread
        return torch.einsum("oi,oi->", curvature @ difference, difference @ covariance)

    def closure() -> float:
        search.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    search.step(closure)
    return float(loss().detach())


# -- what the data allows -----------------------------------------------------------------------------------------


def confined(rank: int, *shape: int, groups: int = 1) -> Tensor:
    """Inputs whose channels lie in a subspace of so many dimensions, in each group of channels one of its own."""
    width = shape[1] // groups
    basis = torch.randn(groups, width, rank, dtype=torch.float64)
    inner = torch.randn(shape[0], groups, rank, *shape[2:], dtype=torch.float64)
    return torch.einsum("gir,bgr...->bgi...", basis, inner).flatten(1, 2)


@GEOMETRY
def test_reduce_is_exact_at_the_rank_of_the_inputs(geometry: str) -> None:
    layer = GEOMETRIES[geometry]()
    x = confined(2, *input_shape(layer, 30), groups=spec_of(layer).groups)
    option = offer(make_site(layer, x, curvature=random_curvature(8)), "reduce", 2)
    assert relative_gap(run_option(option, x), layer(x)) < 1e-4


def test_weights_alone_do_not_find_the_rank_of_the_inputs() -> None:
    layer, x = double_conv(10, 8, 3, padding=1), confined(4, 30, 10, 8, 8)
    site = make_site(layer, x)
    stacked = site.offset_weight.reshape(-1, 10)
    top = torch.linalg.svd(stacked, full_matrices=False).Vh[:4]
    kernel = (site.offset_weight @ top.T @ top).transpose(1, 2).reshape(layer.weight.shape)
    approximated = compute_layer(site.layer, x, kernel, site.bias)
    assert relative_gap(approximated, layer(x).detach()) > 0.1


@BOTH
def test_planted_rank_is_exact_whatever_the_data(name: str) -> None:
    layer = double_conv(8, 10, 3)
    first, second = torch.randn(3, 8, dtype=torch.float64), torch.randn(10, 3, 3, 3, dtype=torch.float64)
    if name == "reduce":
        layer.weight.data = torch.einsum("orhw,ri->oihw", second, first)
    else:
        layer.weight.data = torch.einsum(
            "or,rihw->oihw", second[..., 0, 0], torch.randn(3, 8, 3, 3, dtype=torch.float64)
        )
    x = correlated(torch.randn(20, 8, 8, 8, dtype=torch.float64))
    option = offer(make_site(layer, x, curvature=random_curvature(10)), name, 3)
    fresh = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    assert relative_gap(run_option(option, fresh), layer(fresh).detach()) < 1e-6


INSIDE: dict[
    str, Callable[..., nn.Module]
] = {  # paddings at which a transposed layer makes only outputs that every kernel offset reaches
    **GEOMETRIES,
    "transposed": partial(nn.ConvTranspose2d, 6, 8, 3, padding=2, dtype=torch.float64),
    "grouped transposed": partial(nn.ConvTranspose1d, 6, 8, 3, padding=2, groups=2, dtype=torch.float64),
}


@pytest.mark.parametrize("geometry", INSIDE)
@pytest.mark.parametrize("bias", [True, False])
@BOTH
def test_a_constant_in_the_inputs_changes_nothing(name: str, bias: bool, geometry: str) -> None:
    layer = INSIDE[geometry](bias=bias)
    x = correlated(torch.randn(input_shape(layer, 40), dtype=torch.float64))
    constant = 10 * torch.randn(1, 6, *(1 for _ in x.shape[2:]), dtype=torch.float64)
    curvature = random_curvature(8)
    plain, moved = (offer(make_site(layer, data, curvature=curvature), name, 2) for data in (x, x + constant))
    error = run_option(plain, x) - layer(x).detach()
    moved_error = run_option(moved, x + constant) - layer(x + constant).detach()
    torch.testing.assert_close(moved_error, error, rtol=1e-6, atol=1e-8)


@BOTH
def test_the_mean_output_is_kept(name: str) -> None:
    layer, x = double_conv(6, 7, 3), correlated(torch.randn(40, 6, 7, 7, dtype=torch.float64))
    option = offer(make_site(layer, x), name, 2)
    error = run_option(option, x) - layer(x).detach()
    assert float(error.mean((0, 2, 3)).abs().max()) < 1e-10 * float(error.abs().max())


@pytest.mark.parametrize("examples", [1, 16, 64, 10**9])
@BOTH
def test_a_channel_that_wakes_up_does_not_blow_up(name: str, examples: int) -> None:
    layer, x = double_conv(8, 10, 3, padding=1), correlated(torch.randn(30, 8, 8, 8, dtype=torch.float64))
    x[:, 2] = 0
    option = offer(make_site(layer, x, shrinkage=choose_shrinkage(examples)), name, 5)
    awake = torch.randn(4, 8, 8, 8, dtype=torch.float64)
    awake[:, 2] = 10 * torch.randn(4, 8, 8, dtype=torch.float64)
    first = option.fill()[0].weight
    assert float(run_option(option, awake).abs().max()) < 2 * float(layer(awake).detach().abs().max())
    assert float(first.abs().max()) < 100 * float(layer.weight.detach().abs().max())


# -- numerics -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**12))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_shrinkage_is_never_below_the_least(examples: int) -> None:
    assert LEAST_SHRINKAGE <= choose_shrinkage(examples) <= 3e-3


def test_shrinkage_falls_with_the_examples() -> None:
    assert LEAST_SHRINKAGE == 1e-6
    assert choose_shrinkage(16) == 3e-3
    assert choose_shrinkage(64) == pytest.approx(7.5e-4)
    assert choose_shrinkage(10**8) == 1e-6


def test_shrinking_keeps_the_trace() -> None:
    covariance = random_curvature(5)
    shrunk = shrink(covariance, 0.3)
    assert float(shrunk.trace()) == pytest.approx(float(covariance.trace()))
    torch.testing.assert_close(
        shrunk, 0.7 * covariance + 0.3 * covariance.trace() / 5 * torch.eye(5, dtype=torch.float64)
    )


def test_damping_adds_a_thousandth_of_the_mean() -> None:
    curvature = torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(damp(curvature).diagonal(), curvature.diagonal() + 4e-3 / 3)


def test_square_roots() -> None:
    matrix = random_curvature(5)
    half, inverse = square_roots(matrix)
    torch.testing.assert_close(half @ half, matrix)
    torch.testing.assert_close(half @ inverse, torch.eye(5, dtype=torch.float64))


def test_square_roots_of_a_singular_matrix_are_finite() -> None:
    half, inverse = square_roots(torch.diag(torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)))
    torch.testing.assert_close(half.diagonal(), torch.tensor([2e-5, 1.0, 2.0], dtype=torch.float64))
    assert float(inverse.max()) == pytest.approx(1 / 2e-5)


def test_cholesky_of_a_slightly_indefinite_matrix() -> None:
    matrix = random_curvature(6)
    values, vectors = torch.linalg.eigh(matrix)
    values[0] = -1e-9 * values[-1]
    lower = cholesky(vectors @ values.diag() @ vectors.T)
    torch.testing.assert_close(
        lower @ lower.T, vectors @ values.diag() @ vectors.T, rtol=0, atol=1e-5 * float(values[-1])
    )


def test_cholesky_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="holds NaN"):
        cholesky(torch.full((2, 2), float("nan"), dtype=torch.float64))


def test_balanced_factors_have_equal_norms_and_the_same_product() -> None:
    factors = Factors(torch.randn(3, 5, dtype=torch.float64) * 1e6, torch.randn(4, 2, 3, dtype=torch.float64) * 1e-6)
    balanced = balance(factors)
    torch.testing.assert_close(balanced.second @ balanced.first, factors.second @ factors.first)
    torch.testing.assert_close(balanced.first.norm(dim=1), balanced.second.flatten(0, 1).norm(dim=0))


def test_balancing_a_silent_rank_stays_finite() -> None:
    balanced = balance(Factors(torch.zeros(1, 3, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)))
    assert torch.isfinite(balanced.first).all()
    assert torch.isfinite(balanced.second).all()


def test_projected_covariance_is_that_of_the_projected_patches() -> None:
    patches, projection = torch.randn(50, 3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    flat = patches.flatten(1)
    projected = (patches @ projection.T).transpose(1, 2).flatten(1)
    got = project_covariance(flat.T @ flat, projection, 3)
    torch.testing.assert_close(got, projected.T @ projected)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e4])
def test_channels_of_an_input_that_never_varied_can_be_dropped(scale: float) -> None:
    site = make_site(nn.Conv2d(8, 12, 1).double(), scale * noise(1, 8, 1, 1))
    inputs = site.statistics.inputs
    below_zero = torch.outer(inputs.total, inputs.total) * (1 - 1e-15)  # what rounding can leave
    unsteady = replace(site, statistics=replace(site.statistics, inputs=replace(inputs, outer=below_zero)))
    found = Select().eliminate(unsteady)
    assert isinstance(found, Elimination)
    assert torch.isfinite(found.losses).all()


def test_a_weight_of_zeros_that_is_hardly_felt_gets_finite_factors() -> None:
    weight, nothing = torch.zeros(12, 2, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64)
    factors = fit_expand(weight, nothing, 1e-26 * torch.eye(12, dtype=torch.float64)).factors(1, weight)
    assert torch.isfinite(factors.first).all()
    assert torch.isfinite(factors.second).all()
