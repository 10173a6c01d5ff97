import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from bottleneck_opt import latency
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.outcome import Speed
from bottleneck_opt.timing import in_turn
from bottleneck_opt.timing.in_turn import Patience


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Milliseconds that the timed calls take, in order and over again; nothing else takes time."""
    times: list[float] = []
    endless: Iterator[float] = itertools.chain.from_iterable(iter(lambda: times, None))
    monkeypatch.setattr(in_turn, "_time", lambda *_: next(endless))
    monkeypatch.setattr(latency, "MODEL", Patience(least=5, most=5, seconds=60.0))
    return times


def compare() -> Speed:
    model = nn.Identity()
    return latency.compare_speed(model, model, Inputs((torch.zeros(1, 1),)), device=torch.device("cpu"))


def test_the_spread_is_that_of_the_less_steady_model(clock: list[float]) -> None:
    steady, unsteady = (10.0, 10.0, 10.0, 10.0, 10.0), (10.0, 20.0, 30.0, 40.0, 50.0)
    clock.extend(time for pair in zip(steady, unsteady, strict=True) for time in pair)
    speed = compare()
    assert (speed.before, speed.after, speed.runs) == (10.0, 30.0, 5)
    assert speed.spread == pytest.approx((40.0 - 20.0) / 30.0)


def test_equal_times_have_no_spread(clock: list[float]) -> None:
    clock.append(7.0)
    assert compare().spread == 0.0
