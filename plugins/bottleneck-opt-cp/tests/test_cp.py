from __future__ import annotations

import pytest
import tensorly
import torch
from bottleneck_opt_cp import Cp
from bottleneck_opt_cp.decomposing import decompose, decompose_exactly, largest_rank
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.factored import Factored
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.testing import check_pass, rewrite_everything


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(kernel: Tensor, merged: Tensor, covariance: Tensor, curvature: Tensor) -> float:
    error = kernel.flatten(2).transpose(1, 2).flatten(1) - merged
    return float((curvature @ error @ covariance * error).sum())


def planted(rank: int) -> Tensor:
    parts = [double(size, rank, seed=number) for number, size in enumerate((6, 7, 3, 3))]
    return torch.einsum("or,ir,hr,wr->oihw", *parts)


KERNEL = double(6, 7, 3, 3)
ROOT = double(63, 63, seed=3) * torch.logspace(0, -1.5, 63, dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T / 63
CURVATURE = torch.logspace(0, -2, 6, dtype=torch.float64).diag()


def test_it_keeps_all_promises() -> None:
    found = check_pass(Cp(ranks=2, iterations=5))
    assert found.worst is not None
    assert found.worst < 1e-12
    assert [where for where in found.accepted if "groups" in where] == []
    assert len(found.accepted) == 11


def test_all_offsets_by_themselves_are_the_kernel() -> None:
    found = decompose_exactly(KERNEL)
    assert found.out.shape == (6, largest_rank(KERNEL.shape)) == (6, 54)
    assert torch.allclose(found.out @ found.patterns(), KERNEL.flatten(2).transpose(1, 2).flatten(1))


def test_a_kernel_of_low_rank_is_found_again() -> None:
    kernel = planted(2)
    found = decompose(kernel, torch.eye(63, dtype=torch.float64), torch.eye(6, dtype=torch.float64), 2, iterations=200)
    whole = float(kernel.square().sum())
    assert loss(kernel, found.out @ found.patterns(), torch.eye(63).double(), torch.eye(6).double()) < 1e-6 * whole


def test_in_the_metric_of_the_data_it_loses_less_than_by_the_weights_alone() -> None:
    eye = torch.eye(63, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    metrics = ((COVARIANCE, CURVATURE), eye)
    weighed, plain = (decompose(KERNEL, covariance, felt, 8, iterations=50) for covariance, felt in metrics)
    losses = [loss(KERNEL, each.out @ each.patterns(), COVARIANCE, CURVATURE) for each in (weighed, plain)]
    assert losses[0] < 0.8 * losses[1]


def test_the_last_factor_is_the_best_for_the_others() -> None:
    found = decompose(KERNEL, COVARIANCE, CURVATURE, 8, iterations=5)
    best = loss(KERNEL, found.out @ found.patterns(), COVARIANCE, CURVATURE)
    for seed in range(5):
        moved = found.out + 1e-3 * double(*found.out.shape, seed=seed)
        assert loss(KERNEL, moved @ found.patterns(), COVARIANCE, CURVATURE) > best


def test_more_components_lose_less() -> None:
    found = [decompose(KERNEL, COVARIANCE, CURVATURE, rank, iterations=30) for rank in (2, 6, 12, 24)]
    losses = [loss(KERNEL, each.out @ each.patterns(), COVARIANCE, CURVATURE) for each in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.3 * losses[0]


def test_the_backend_that_the_caller_uses_tensorly_with_stays() -> None:
    before = tensorly.get_backend()
    decompose(KERNEL, COVARIANCE, CURVATURE, 3, iterations=2)
    assert tensorly.get_backend() == before


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3, stride=2), nn.Conv1d(8, 8, 5)])
def test_its_factors_multiply_out_to_the_weight(layer: nn.Module) -> None:
    net = nn.Sequential(layer).double()
    sizes = (9,) * (layer.get_parameter("weight").dim() - 2)
    replaced = rewrite_everything(net, double(2, 8, *sizes), passes=[Cp(ranks=1, iterations=2)]).model.get_submodule(
        "0"
    )
    assert isinstance(replaced, Factored)
    assert torch.allclose(replaced.merge(), layer.get_parameter("weight"), atol=1e-9)


def test_it_compresses_a_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)).eval()
    x = torch.randn(32, 3, 10, 10)
    result = bo.optimize(
        net, x[:1], calibration=x, budget=0.5, passes=[Cp(ranks=2)], recipe=Recipe(joint=0), progress=False
    )  # fmt: skip
    assert [layer.name for layer in result.plan.steps[-1].layers] == ["first", "axis0", "axis1", "last"]
    assert result.budget_met
    assert len(result.corrections) == len(result.plan.steps)


def test_numbers_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Cp(ranks=0)


def test_layers_that_would_take_too_long_are_left_with_advice() -> None:
    net = nn.Sequential(nn.Conv2d(32, 32, 3))
    x = torch.randn(1, 32, 5, 5)
    result = bo.optimize(net, x, passes=[Cp(iterations=10**6)], progress=False)
    assert [(each.path, each.advice) for each in result.skipped] == [
        ("0", "ask for fewer: cp:ranks=2:iterations=10")
    ]  # fmt: skip
    assert "its CP would take" in result.skipped[0].reason
