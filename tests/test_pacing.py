from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt import clock as clock_module
from bottleneck_opt.costs import price_layers
from bottleneck_opt.distribution import Ranks
from bottleneck_opt.errors import BudgetError, InputError, NotAvailableError
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.outcome import Speed
from bottleneck_opt.timing.in_turn import Patience
from bottleneck_opt.timing.layer_times import LayerTimes
from bottleneck_opt.timing.setting import Timing

pytestmark = pytest.mark.clocked
OVERHEAD = 0.15


class Machine:
    """Pretends to time: layers take their multiply-adds, a model that and a part that no layer accounts for.

    Attributes:
        truth: How much of what layers save the model saves.
        floor: What a layer takes at least when it is timed alone.
        grain: Share of the original's multiply-adds of which models save whole multiples only; 0 for any saving.
        slow: Forms, told by the kernels of their layers, that take far longer.
        timed: Settings in which models were timed, in order.
    """

    def __init__(self) -> None:
        self.truth = 1.0
        self.floor = 1
        self.grain = 0.0
        self.slow: list[tuple[tuple[int, ...], ...]] = []
        self.timed: list[Timing] = []
        self.chains = 0

    def time_layers(
        self,
        times: LayerTimes,
        chains: Sequence[Sequence[LayerSpec]],
        shape: Sequence[int],
        timing: Timing,
        _: Patience,
    ) -> list[int]:
        self.chains += 1
        factors = [1000 if tuple(each.kernel for each in chain) in self.slow else 1 for chain in chains]
        costs = [max(self.floor, price_layers(chain, [shape]).macs) for chain in chains]
        return [factor * self.speed(timing) * cost for factor, cost in zip(factors, costs, strict=True)]

    def speed(self, timing: Timing) -> int:
        return 5 if timing.threads == 1 else 3

    def time_models(
        self, before: nn.Module, after: nn.Module, inputs: Inputs, *, device: torch.device, timing: Timing
    ) -> Speed:
        self.timed.append(timing)
        whole, left = (bo.trace(each, inputs.args).cost.macs for each in (before, after))
        first, saved = whole * (1 + OVERHEAD), self.truth * (whole - left)
        second = first - (saved // (self.grain * whole) * self.grain * whole if self.grain else saved)
        examples = (timing.batch or 1) / batch_size(inputs)
        scale = self.speed(timing) * examples / 1e6
        return Speed(first * scale, second * scale, 5, timing.threads, "pretended", batch=timing.batch)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    def time_layers(times: LayerTimes, *what: Any) -> list[int]:
        return made.time_layers(times, *what)

    monkeypatch.setattr(LayerTimes, "_time", time_layers)
    monkeypatch.setattr(clock_module, "compare_speed", made.time_models)
    monkeypatch.setattr(clock_module, "timings_file", lambda: None)
    return made


def build() -> nn.Module:
    torch.manual_seed(0)
    widths = [3, 24, 24, 24, 24]
    layers = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.ReLU()) for i, o in itertools.pairwise(widths)]
    return nn.Sequential(*layers, nn.Conv2d(24, 4, 3, padding=1)).eval()


def optimize(budget: Any, **options: Any) -> bo.Result:
    inputs = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return bo.optimize(build(), inputs[:1], calibration=inputs, budget=budget, progress=False, **options)


def measured(result: bo.Result, setting: int = 0) -> float:
    assert result.clocked is not None
    timed = result.clocked.timed[setting]
    return timed.after / timed.before


@pytest.mark.parametrize(("ratio", "truth"), [(0.8, 1.0), (0.4, 1.0), (0.6, 0.7), (0.8, 0.7), (0.4, 1.3)])
def test_the_whole_model_is_within_its_time_and_no_faster_than_it_must(
    machine: Machine, ratio: float, truth: float
) -> None:
    machine.truth = truth
    result = optimize(f"latency={ratio}")
    assert result.budget_met
    assert ratio - 0.06 <= measured(result) <= ratio


def test_a_model_cut_down_because_layers_alone_seemed_slow_is_not_the_last(machine: Machine) -> None:
    machine.truth, machine.floor = 1.2, 250_000
    result = optimize("latency=0.55")
    assert result.budget_met
    assert 0.5 <= measured(result) <= 0.55


def test_between_a_model_that_is_too_small_and_others_that_are_too_slow_more_are_timed(machine: Machine) -> None:
    machine.truth, machine.floor, machine.grain = 1.4, 250_000, 0.2
    result = optimize("latency=0.5")
    assert result.budget_met
    assert measured(result) <= 0.5
    assert result.plan.predicted_loss < 0.1  # the smallest model of all, which is within the time too: 0.26


def test_what_is_expected_after_a_correction_comes_true(machine: Machine) -> None:
    machine.truth = 0.7
    result = optimize("latency=0.6")
    assert result.clocked is not None
    (timed,) = result.clocked.timed
    assert result.clocked.models >= 2
    assert timed.after == pytest.approx(timed.predicted, rel=0.02)


def test_an_absolute_time_has_its_unit(machine: Machine) -> None:
    whole = optimize(1.0).before.cost.macs * (1 + OVERHEAD) * 5 / 1e6
    result = optimize(f"latency={whole * 0.6:.6f}ms")
    assert result.budget_met
    assert 0.54 <= measured(result) <= 0.6


def test_the_worst_of_several_settings_counts(machine: Machine) -> None:
    result = optimize("latency=0.6", timing=["threads=1", "threads=2", "batch=4"])
    assert {(each.threads, each.batch) for each in machine.timed} == {(1, None), (2, None), (1, 4)}
    assert max(measured(result, number) for number in range(3)) <= 0.6


def test_the_plan_records_the_measured_time(machine: Machine) -> None:
    result = optimize("latency=0.6")
    assert result.plan.after.latency / result.plan.before.latency == pytest.approx(measured(result), rel=1e-3)
    assert bo.Plan.from_json(result.plan.to_json()) == result.plan


def test_time_and_parameters_can_be_limited_together(machine: Machine) -> None:
    result = optimize("latency=0.8, params=0.4")
    assert measured(result) <= 0.8
    assert result.after.cost.params <= 0.4 * result.before.cost.params


def test_a_time_that_no_model_reaches_is_refused_with_the_fastest_that_was_timed(machine: Machine) -> None:
    machine.truth = 0.2
    with pytest.raises(
        BudgetError, match=r"ms cannot be reached: \d+ models were timed, the smallest takes .* latency="
    ) as caught:
        optimize("latency=0.3")
    smallest = (caught.value.smallest or {})["latency"]
    assert measured(optimize(f"latency={smallest:.4g}")) <= smallest


def test_models_that_got_no_faster_are_refused_too(machine: Machine) -> None:
    machine.truth = -0.5
    with pytest.raises(BudgetError, match=r"cannot be reached: \d+ models were timed"):
        optimize("latency=0.9")


def test_a_replacement_that_is_no_faster_is_left_out_under_any_budget(machine: Machine) -> None:
    first = optimize("macs=0.6", passes=["reduce", "expand"])
    forms = {step.form for step in first.plan.steps}
    assert forms
    machine.slow = [((1, 1), (3, 3))]  # reduce
    second = optimize("macs=0.6", passes=["reduce", "expand"])
    assert {step.form for step in second.plan.steps} == {"expand"}
    assert second.clocked is not None
    assert {each.form for each in second.clocked.left_out} == {"reduce"}
    assert any(re.match(r"left out, as .* no faster here than the layer itself", note) for note in second.notes)


def test_the_reason_stands_beside_a_layer_that_stays(machine: Machine) -> None:
    machine.slow = [((1, 1), (3, 3))]
    result = optimize(None, passes=["reduce"], allow_slower=False)
    assert not result.plan.steps
    assert any("no faster here" in each.reason for each in result.skipped)


def test_slower_ones_are_taken_where_a_budget_needs_them_and_that_is_told(machine: Machine) -> None:
    machine.slow = [((1, 1), (3, 3))]
    result = optimize("macs=0.6", passes=["reduce"])
    assert result.budget_met
    assert {step.form for step in result.plan.steps} == {"reduce"}
    assert any(note.startswith("the budget cannot be met without") for note in result.notes)


def test_slower_ones_are_never_taken_where_that_is_asked_for(machine: Machine) -> None:
    machine.slow = [((1, 1), (3, 3))]
    with pytest.raises(BudgetError, match=r"left out because they are no faster here; allow_slower=True takes them"):
        optimize("macs=0.6", passes=["reduce"], allow_slower=False)


def test_nothing_is_timed_where_slower_ones_are_allowed(machine: Machine) -> None:
    result = optimize("macs=0.6", allow_slower=True)
    assert machine.chains == 0
    assert result.clocked is None


def test_every_model_above_a_floor_is_timed(machine: Machine) -> None:
    result = optimize("latency=0.5", evaluate=lambda model: 1.0, max_drop=0.1)
    assert result.budget_met
    assert measured(result) <= 0.5


def test_where_the_floor_wins_the_time_is_not_met(machine: Machine) -> None:
    def evaluate(model: nn.Module) -> float:
        return float(bo.trace(model, torch.zeros(1, 3, 10, 10)).cost.macs)

    whole = bo.trace(build(), torch.zeros(1, 3, 10, 10)).cost.macs
    result = optimize("latency=0.4", evaluate=evaluate, max_drop=0.3 * whole)
    assert not result.budget_met
    assert result.after.cost.macs >= 0.7 * whole


def test_several_processes_cannot_share_a_limit_on_time(machine: Machine) -> None:
    with pytest.raises(NotAvailableError, match=r"got 2 processes; expected one"):
        optimize("latency=0.5", ranks=Ranks(0, 2, 2))


@pytest.mark.parametrize("timing", ["batch=3", ["batch=4", "batch=5"]])
def test_a_batch_that_does_not_fit_the_example_is_refused(machine: Machine, timing: Any) -> None:
    inputs = torch.randn(2, 3, 10, 10)
    with pytest.raises(NotAvailableError, match=r"with 2 examples in the example input; expected a multiple"):
        bo.optimize(build(), inputs, budget="latency=0.5", timing=timing, progress=False)


def test_a_setting_that_cannot_be_read_is_refused_before_any_work(machine: Machine) -> None:
    with pytest.raises(InputError, match=r"^timing: got"):
        optimize("latency=0.5", timing="cores=4")


def test_the_same_times_give_the_same_plan(machine: Machine) -> None:
    one, other = (optimize("latency=0.6").plan.to_json() for _ in range(2))
    assert one == other
