"""torchao's 8-bit weights for results; it quantises ``nn.Linear``, the factors of a rewritten one among them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.factored import Factored
from tests.networks import noise, seeded

quantization: Any = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
X = noise(64, 64, dtype=torch.float32)


def perceptron() -> nn.Module:
    """Three Linear layers."""
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


@pytest.mark.parametrize("scheme", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_the_factors_of_a_linear_layer_are_quantised(scheme: str) -> None:
    net = seeded(perceptron, dtype=torch.float32).eval()
    model = bo.optimize(net, X[:1], calibration=X, passes=["expand"], budget=0.5, progress=False).model
    assert any(isinstance(module, Factored) for module in model.modules())
    small = copy.deepcopy(model)
    quantization.quantize_(small, getattr(quantization, scheme)())
    weights = [each.weight for each in small.modules() if isinstance(each, nn.Linear)]
    assert {type(each).__name__ for each in weights} == {"Int8Tensor"}
    with torch.no_grad():
        expected, got = model(X), small(X)
    assert float((expected - got).square().mean() / expected.var()) < 5e-3
