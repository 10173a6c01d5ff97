"""The accuracy comparison's own logic, on a tiny network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.errors import BudgetError
from bottleneck_opt.recovery import Recovery
from bottleneck_opt.testing import rewrite_at_full_rank
from tests.benchmarks.accuracy.__main__ import list_wanted
from tests.benchmarks.accuracy.composing import Mixture, compose, find_largest
from tests.benchmarks.accuracy.latency import Timed, find_best, time_interleaved
from tests.benchmarks.accuracy.methods import FACTORS, METHODS, find_method
from tests.benchmarks.accuracy.problem import Problem
from tests.benchmarks.accuracy.pruning import prune
from tests.benchmarks.accuracy.rivals import WeightSvd, WeightTucker
from tests.benchmarks.accuracy.rows import Key, Row, append_row, matches, read_filter, read_rows, write_rows
from tests.benchmarks.accuracy.running import BUDGETS, list_keys, list_missing
from tests.benchmarks.accuracy.table import render, summarise
from tests.benchmarks.accuracy.tasks import Lesson, Task


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(16, 24, 1, bias=False),
        )  # fmt: skip
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x).mean((2, 3)))
        return y


@pytest.fixture(scope="module")
def problem() -> Problem:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    task = Task(
        "tiny", Tiny, "points", lambda model, training: None, lambda training, draw: images,
        lambda training, draw: Lesson(images, Recovery(steps=4, batch=4)), lambda model, training: model(images),
        lambda outputs, training: 50.0, lambda expected, got: float((got - expected).square().mean()),
    )  # fmt: skip
    return Problem(task, 0, 0, Tiny().eval(), images)


def macs_of(model: nn.Module, problem: Problem) -> float:
    return bo.trace(model, problem.example).cost.macs / bo.trace(problem.original, problem.example).cost.macs


ROW = Row(Key("tiny", 0, 0, "ours", 0.5), 0.49, 0.4, 99.0, 98.5, 0.01, 1.0)


@pytest.mark.parametrize("rival", [WeightSvd(), WeightTucker()])
def test_others_factors_reach_the_same_macs(problem: Problem, rival: WeightSvd | WeightTucker) -> None:
    pytest.importorskip("tensorly")
    model = compose(problem, Mixture(passes=(rival,), allocation=False, refit=False), 0.5)
    assert 0.4 < macs_of(model, problem) <= 0.5


@pytest.mark.parametrize("rival", [WeightSvd(), WeightTucker()])
def test_others_factors_at_full_rank_lose_nothing(problem: Problem, rival: WeightSvd | WeightTucker) -> None:
    pytest.importorskip("tensorly")
    model = rewrite_at_full_rank(problem.original, problem.example, passes=[rival])
    expected = problem.original(problem.calibration)
    torch.testing.assert_close(model(problem.calibration), expected, rtol=1e-4, atol=1e-5)


def test_pruning_reaches_the_same_macs(problem: Problem) -> None:
    pytest.importorskip("torch_pruning")
    for importance in ("magnitude", "hessian"):
        model = prune(problem, importance, 0.5, everywhere=False)
        assert 0.3 < macs_of(model, problem) <= 0.5
    assert macs_of(problem.original, problem) == 1


def test_composed_stages_give_what_optimize_gives(problem: Problem) -> None:
    composed = METHODS["factors only"](problem, 0.5)
    ours = bo.optimize(
        problem.original, problem.example, calibration=problem.calibration, budget=0.5, passes=FACTORS,
        recipe=bo.Recipe(joint=0, mixes=0), seed=problem.draw, progress=False,
    ).model  # fmt: skip
    assert torch.equal(ours(problem.calibration), composed(problem.calibration))


def test_every_switch_changes_the_result(problem: Problem) -> None:
    whole = compose(problem, Mixture(), 0.4)(problem.calibration)
    switches = Mixture(curvature=False), Mixture(data=False), Mixture(allocation=False), Mixture(refit=False)
    for mixture in switches:
        changed = compose(problem, mixture, 0.4)
        assert macs_of(changed, problem) <= 0.4
        assert not torch.equal(changed(problem.calibration), whole), mixture


def test_a_budget_out_of_reach_is_said(problem: Problem) -> None:
    with pytest.raises(BudgetError, match="smallest reachable"):
        compose(problem, Mixture(passes=(WeightSvd(),), allocation=False), 0.001)


def test_anybodys_network_can_be_recovered(problem: Problem) -> None:
    model = find_method("svd+recovery")(problem, 0.5)
    assert macs_of(model, problem) <= 0.5
    with pytest.raises(KeyError, match="expected one of"):
        find_method("nobody+recovery")


def test_the_largest_that_fits_is_found() -> None:
    found = find_largest(lambda x: x <= 0.3)
    assert found is not None
    assert math.isclose(found, 0.3, abs_tol=1e-9)
    assert find_largest(lambda x: True) == 1
    assert find_largest(lambda x: False) is None


def test_measured_rows_are_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    other = replace(ROW, key=replace(ROW.key, budget=0.25), failure="cannot", after=math.nan)
    append_row(file, ROW)
    append_row(file, other)
    with file.open("a") as torn:
        torn.write(ROW.to_line()[:20])
    assert list(read_rows(file)) == [ROW.key, other.key]
    third = replace(ROW.key, budget=0.75)
    assert list_missing([ROW.key, third, other.key], read_rows(file)) == [third]


def test_a_row_after_a_torn_line_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(ROW.to_line()[:20])
    append_row(file, ROW)
    assert list(read_rows(file)) == [ROW.key]


def test_a_filter_names_fields_and_values() -> None:
    only = read_filter("network=tiny|vgg,budget=0.5")
    assert matches(ROW.key, only)
    assert not matches(replace(ROW.key, budget=0.25), only)
    with pytest.raises(ValueError, match="expected name=value"):
        read_filter("colour=red")


def test_all_keys_are_listed_once_and_have_a_method() -> None:
    keys = list_keys()
    assert len(keys) == len(set(keys))
    for name in {key.method for key in keys}:
        find_method(name)


def test_a_cell_has_mean_and_standard_error() -> None:
    cell = summarise([ROW, replace(ROW, after=97.5), replace(ROW, failure="out of reach")])
    assert (cell.gain, cell.count) == (-1.0, 2)
    assert str(cell) == "-1.00 ± 0.50 (0.01, 1 cannot)"
    assert str(summarise([replace(ROW, failure="out of reach")])) == "cannot"
    assert render([ROW], title="MACs", methods=["ours", "svd"], budgets=[0.75, 0.5])[2:] == [
        "| ours |  | -0.50 (0.01) |"
    ]


def test_draws_of_one_training_are_no_independent_evidence() -> None:
    rows = [
        replace(ROW, key=replace(ROW.key, training=training, draw=draw), after=ROW.before - loss)
        for training, loss in enumerate((0.0, 0.0, 0.3))
        for draw in range(3)
    ]
    assert summarise(rows).gain == pytest.approx(-0.1)
    assert summarise(rows).error == pytest.approx(0.1)
    assert summarise(rows[2:]).gain == pytest.approx(-0.1)


def test_a_filter_may_name_more_trainings_than_the_tables_have() -> None:
    keys = list_wanted(read_filter("network=vgg,training=0|7,draw=0,method=ours"))
    assert [(key.training, key.budget) for key in keys] == [(training, b) for training in (0, 7) for b in BUDGETS]


def test_the_best_within_a_time_is_the_most_accurate_then_the_nearest() -> None:
    times = [Timed("tiny", "ours", b, 1, 1.0, r, -0.5, c) for b, r, c in ((0.25, 0.4, 0.3), (0.5, 0.45, 0.1))]
    larger = replace(times[0], budget=0.75, ratio=0.8, gain=0.0)
    assert find_best([*times, larger], 0.5) is times[1]
    assert find_best([*times, larger], 0.8) is larger
    assert find_best(times, 0.3) is None


def test_all_networks_are_timed(problem: Problem) -> None:
    models = {("dense", 1.0): problem.original, ("ours", 0.5): problem.original}
    assert min(time_interleaved(models, problem.example, rounds=2).values()) > 0


def test_rows_that_are_kept_are_the_same_whenever_they_were_measured(tmp_path: Path) -> None:
    rows = [replace(ROW, key=replace(ROW.key, budget=budget)) for budget in (0.5, 0.25)]
    for name, order in (("one", rows), ("other", rows[::-1])):
        write_rows(tmp_path / name, order)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert set(read_rows(tmp_path / "one").values()) == set(rows)
