from __future__ import annotations

import math
from typing import Any

import pytest

from bottleneck_opt import Recovery
from bottleneck_opt.errors import InputError
from bottleneck_opt.recovery import read_recovery
from tests.recovery.samples import QUICK


def test_options_are_read() -> None:
    assert read_recovery(None) is None
    assert read_recovery(False) is None
    assert read_recovery(True) == Recovery()
    assert read_recovery(50) == Recovery(steps=50)
    assert read_recovery(QUICK) is QUICK


@pytest.mark.parametrize("given", [0, -3, "300", 2.5, {"steps": 3}])
def test_what_is_no_recovery_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"recover: got .*; expected a number of training steps, at least 1"):
        read_recovery(given)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"batch": 1.5}, {"check_every": 0}, {"patience": True}, {"crop": 0}, {"learning_rate": 0},
        {"learning_rate": math.nan}, {"held_out": 1.0}, {"held_out": 0}, {"seed": 2**63}, {"flip": 1}, {"loss": 3},
        {"mixes": 2}, {"checkpoint": 3},
    ],
)  # fmt: skip
def test_wrong_options_are_refused_with_their_name(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"Recovery: {next(iter(options))}: got .*; expected .* Pass for instance"):
        Recovery(**options)
