from __future__ import annotations

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.errors import NotAvailableError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.timing import Timing
from bottleneck_opt.timing.targets import fit_batch, prepare_model
from tests.networks import classifier, noise, seeded

CPU = torch.device("cpu")
ONE = Inputs((noise(1, 3, 12, 12, dtype=torch.float32),))


def small() -> nn.Module:
    return seeded(classifier, dtype=torch.float32).eval()


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
def test_a_model_is_called_in_the_setting(target: str, batch: int | None) -> None:
    timing = Timing(batch, 1, target)
    output = prepare_model(small(), ONE, timing)()()
    first = output[0] if isinstance(output, list | tuple) else output
    expected = small()(*fit_batch(ONE, timing).args)
    assert torch.allclose(first, expected, atol=1e-4)  # type: ignore[arg-type]  # a call may return anything


def test_what_a_model_does_to_its_input_is_not_seen_by_the_next_call() -> None:
    class Spoiling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1)

    ready = prepare_model(Spoiling(), Inputs((torch.zeros(1, 2),)), Timing())
    assert all(torch.equal(ready()(), torch.ones(1, 2)) for _ in range(3))  # type: ignore[arg-type]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_a_model_that_the_target_cannot_run_is_told() -> None:
    with pytest.raises(
        NotAvailableError, match=r"^timing: target=onnxruntime cannot be timed: Branching: torch.export"
    ):
        prepare_model(Branching(), Inputs((torch.zeros(1, 2),)), Timing(target="onnxruntime"))


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("no compiler\nfound")

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    with pytest.raises(
        NotAvailableError, match=r"^timing: target=compile cannot be timed: .*no compiler.*C\+\+ compiler"
    ):
        prepare_model(small(), ONE, Timing(target="compile"))


@pytest.mark.slow
@pytest.mark.clocked
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about torch
@pytest.mark.parametrize("target", ["onnxruntime", "compile"])
def test_a_budget_of_time_holds_in_the_target(target: str) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(
        nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 96, 3)
    ).eval()
    inputs = torch.randn(4, 3, 48, 48)
    timing = Timing(target=target)
    result = bo.optimize(wide, inputs[:1], calibration=inputs, budget="latency=0.7", timing=timing, progress=False)
    assert result.clocked is not None
    (timed,) = result.clocked.timed
    assert timed.after <= 0.7 * timed.before
    assert result.verification.speed is not None
    assert result.verification.speed.target == target


def test_both_models_are_timed_in_the_setting() -> None:
    speed = compare_speed(small(), small(), ONE, device=CPU, timing=Timing(batch=2, target="onnxruntime"))
    assert (speed.batch, speed.target, speed.threads) == (2, "onnxruntime", 1)
    assert min(speed.before, speed.after) > 0
