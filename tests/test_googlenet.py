"""GoogLeNet's own structure, found again: a reduction for each branch where each was planted with its own rank."""

from __future__ import annotations

import torch

from bottleneck_opt import Result, optimize
from tests.networks import measured
from tests.test_exact_counts import GOOGLENET, WIDTHS_3A, Inception, planted

MACS_3A = GOOGLENET["3a"][4]


def compress(net: Inception, macs: int, *passes: str) -> Result:
    x = torch.randn(2, 192, 28, 28, generator=torch.Generator().manual_seed(0))
    return optimize(net, x[:1], calibration=x, budget=f"macs={macs}", passes=passes, progress=False)


def test_module_3a_is_found_by_reduce_at_its_own_macs() -> None:
    bare = planted(Inception(192, WIDTHS_3A, reduce=False), {"three.conv": 96, "five.conv": 16})
    result = compress(bare, MACS_3A, "reduce")
    assert {step.path: (step.form, step.ranks) for step in result.plan.steps} == {
        "three.conv": ("reduce", (96,)),
        "five.conv": ("reduce", (16,)),
    }
    assert result.after.cost.macs == MACS_3A == 128_049_152
    assert measured(result.verification) < 1e-9
