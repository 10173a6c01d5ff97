"""Models in half precision, and results put into it: optimised, converted and exported."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from tests.networks import Residual, noise, seeded
from tests.test_exporting import compress, run_onnx, tiny

X = noise(16, 3, 8, 8, dtype=torch.float32)
HALVES = [torch.bfloat16, torch.float16]


def change(expected: Tensor, got: Tensor) -> float:
    """Mean squared change relative to the variance."""
    return float((expected - got.float()).square().mean() / expected.var())


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_precision_model_is_optimised_and_exported_in_it(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = seeded(Residual, dtype=torch.float32).eval()
    net = copy.deepcopy(whole).to(dtype)
    result = bo.optimize(net, X[:1].to(dtype), calibration=X, budget=0.6, progress=False)
    assert result.plan.steps
    assert {each.dtype for each in result.model.parameters()} == {dtype}
    with torch.no_grad():
        assert change(whole(X), result.model(X.to(dtype))) < 1e-3
    assert result.export(tmp_path / "net.pt2").difference == 0


@pytest.mark.parametrize("dtype", HALVES)
def test_a_result_can_be_put_into_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    result = compress(Residual, X, ["reduce", "expand"])
    with torch.no_grad():
        expected = result.model.eval()(X)
        half: nn.Module = copy.deepcopy(result.model).to(dtype)
        assert {each.dtype for each in half.parameters()} == {dtype}
        assert change(expected, half(X.to(dtype))) < 1e-4
    assert bo.export(half, X[:1], tmp_path / "net.pt2").difference == 0


def test_float16_runs_in_onnx_runtime(tmp_path: Path) -> None:
    net = tiny().half()
    written = bo.export(net, X[:1], tmp_path / "net.onnx")
    assert written.inputs == ("input: batch x 3 x 8 x 8 float16",)
    (got,) = run_onnx(written.path, X.half())
    assert got.dtype == torch.float16
    with torch.no_grad():
        assert torch.allclose(got, net(X.half()), atol=1e-2)
        assert torch.equal(torch.as_tensor(bo.open_onnx(written.path)(X.half())), got)


def test_bfloat16_does_not_and_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(bo.ExportError, match=r"cannot run what was made: .*bfloat16.* none in bfloat16: export model"):
        bo.export(tiny().bfloat16(), X[:1], tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
