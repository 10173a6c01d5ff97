from __future__ import annotations

from dataclasses import replace

from bottleneck_opt.diagrams.heading import head_diff
from tests.samples import residual_outcome


def test_what_does_not_fit_into_one_line_goes_into_the_next() -> None:
    outcome = residual_outcome()
    told = replace(outcome.verification, held_out_change=0.05, held_out_data="new mixed inputs of the same kind")
    short, long = head_diff(outcome).lines, head_diff(replace(outcome, verification=told)).lines
    assert len(short) == 2
    assert "time a call 2.00 -> 1.50 ms" in short[1]
    assert len(long) == 3
    assert "measured 5.0 % on new mixed inputs" in long[1]
    assert long[2] == "time a call 2.00 -> 1.50 ms"
