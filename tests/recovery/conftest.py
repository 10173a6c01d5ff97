from __future__ import annotations

import pytest
import torch
from torch import nn

from bottleneck_opt import Result, optimize
from bottleneck_opt.working_copy import working_copy
from tests.networks import Residual, seeded
from tests.recovery.samples import UNFITTED, X


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return seeded(lambda: Residual(dropout=0.5), dtype=torch.float32)


@pytest.fixture(scope="module")
def small(net: nn.Module) -> Result:
    return optimize(net, X[:1], calibration=X, budget=0.3, recipe=UNFITTED, progress=False)


@pytest.fixture
def pair(net: nn.Module, small: Result) -> tuple[nn.Module, nn.Module]:
    return working_copy(net), working_copy(small.model)
