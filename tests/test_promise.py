from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import InputError, Recipe, Recovery, Result, load, optimize
from bottleneck_opt.outcome import Promise
from bottleneck_opt.promise import MOST_TRIED
from bottleneck_opt.report import report_json
from tests.networks import Computes, conv, noise, seeded

X = noise(24, 3, 6, 6, dtype=torch.float32)
PLAIN = Recipe(refit=False, joint=0, rounds=0)
SITES = ["reduce", "expand"]
State = dict[str, Tensor]


def small_net(seed: int = 0, width: int = 12) -> nn.Module:
    def make() -> nn.Module:
        return nn.Sequential(conv(3, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, 4))

    return seeded(make, seed, torch.float32)


def linear_net(seed: int = 0) -> nn.Module:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(108, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 5))

    return seeded(make, seed, torch.float32)


def state(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def promised(result: Result) -> Promise:
    assert result.promise is not None
    return result.promise


def run(net: nn.Module, evaluate: Callable[[nn.Module], Any] | None, **options: Any) -> Result:
    given = {"calibration": X, "passes": SITES, "recipe": PLAIN, "progress": False, "max_drop": 0.1, **options}
    return optimize(net, X[:1], evaluate=evaluate, **given)


def quality(net: nn.Module) -> Callable[[nn.Module], float]:
    """1 for the network itself, less the more its outputs change."""
    with torch.no_grad():
        expected = net(X)

    def measure(model: nn.Module) -> float:
        with torch.no_grad():
            return float(1 - (model(X) - expected).square().mean() / expected.var())

    return measure


def mean(answer: Any) -> float:
    return float(torch.as_tensor(answer, dtype=torch.float64).mean())


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class Judge:
    """An evaluate that writes down what it was given and what it said."""

    score: Callable[[nn.Module], Any]
    said: list[tuple[State, Any]] = field(default_factory=list)

    def __call__(self, model: nn.Module) -> Any:
        before = state(model)
        try:
            answer = self.score(model)
        except Exception:
            self.said.append((before, None))
            raise
        self.said.append((before, answer))
        return answer

    def last_of(self, model: nn.Module) -> Any:
        """The last answer about these very weights."""
        mine = state(model)
        return next(answer for seen, answer in reversed(self.said) if same(seen, mine))


# The floor, whatever evaluate does


def hostile(kind: str, net: nn.Module, seed: int) -> Callable[[nn.Module], Any]:
    draw, true, calls = random.Random(seed), quality(net), [0]

    def count() -> int:
        calls[0] += 1
        return calls[0]

    def noisy(model: nn.Module) -> float:
        return true(model) + draw.gauss(0, 0.05)

    def failing(model: nn.Module) -> float:
        if count() > 1 and draw.random() < 0.5:
            raise ValueError("out of luck")
        return true(model)

    def unreadable(model: nn.Module) -> Any:
        answers = [math.nan, math.inf, None, "good", [], [0.5, 0.5], object(), true(model), true(model)]
        return true(model) if count() == 1 else draw.choice(answers)

    def per_sample(model: nn.Module) -> Tensor:
        return torch.tensor([true(model) + draw.gauss(0, 0.1) for _ in range(40)])

    def mutating(model: nn.Module) -> float:
        score = true(model)
        torch.manual_seed(draw.randrange(1000))
        torch.set_grad_enabled(False)
        model.train()
        for parameter in model.parameters():
            parameter.data.mul_(draw.random())
        for name, child in list(model.named_children()):
            setattr(model, name, nn.Identity() if draw.random() < 0.5 else child)
        return score

    def jumping(model: nn.Module) -> float:
        return random.Random(size(model)).random()

    def tired(model: nn.Module) -> float:
        return 1 - 0.03 * count()

    def flattering(model: nn.Module) -> float:
        return 1.0 if count() <= 1 + MOST_TRIED else 0.0

    def drawing(model: nn.Module) -> Tensor:
        return true(model) + 0.05 * torch.randn(())

    kinds: dict[str, Callable[[nn.Module], Any]] = {
        "noisy": noisy, "constant": lambda model: 0.5, "failing": failing, "unreadable": unreadable,
        "per sample": per_sample, "mutating": mutating, "jumping": jumping, "tired": tired,
        "flattering": flattering, "drawing": drawing, "true": true,
    }  # fmt: skip
    return kinds[kind]


KINDS = (
    "noisy", "constant", "failing", "unreadable", "per sample", "mutating", "jumping", "tired", "flattering",
    "drawing", "true",
)  # fmt: skip


def check_floor(seed: int) -> bool:
    """One run with everything drawn from a seed; whether a smaller model was returned."""
    draw = random.Random(seed)
    net = small_net(seed, draw.choice([6, 10])) if seed % 2 else linear_net(seed)
    max_drop = draw.choice([0.0, 0.01, 0.1, 0.3])
    judge = Judge(hostile(KINDS[seed % len(KINDS)], net, seed))
    kept = state(net)
    result = run(net, judge, max_drop=max_drop, budget=draw.choice([None, 0.3, 0.8, "params=0.5"]), seed=seed)
    assert same(state(net), kept)
    before, after = result.verification.metric_before, result.verification.metric_after
    assert before is not None
    assert after is not None
    assert after >= before - max_drop
    assert after == pytest.approx(mean(judge.last_of(result.model)), abs=1e-12)
    assert before == pytest.approx(mean(judge.said[0][1]), abs=1e-12)
    returned = promised(result).returned
    assert (returned is None) is (not result.plan.steps) is same(state(result.model), kept)
    assert torch.is_grad_enabled()
    return returned is not None


@pytest.mark.parametrize("seed", range(22))
def test_no_model_is_ever_below_the_floor(seed: int) -> None:
    check_floor(seed)


@pytest.mark.slow
def test_no_model_of_two_hundred_is_below_the_floor() -> None:
    smaller = [check_floor(seed) for seed in range(22, 222)]
    assert 0.2 < sum(smaller) / len(smaller) < 0.95


def test_what_is_done_to_the_model_that_is_measured_does_not_reach_the_result() -> None:
    net = small_net()
    honest = run(net, quality(net))
    mutated = run(net, hostile("mutating", net, 0))
    assert mutated.plan == honest.plan
    assert same(state(mutated.model), state(honest.model))


def test_a_second_measurement_that_does_not_hold_sends_the_model_back() -> None:
    net, calls = small_net(), []

    def once(model: nn.Module) -> float:
        calls.append(size(model))
        return 1.0 if calls.count(size(model)) == 1 or size(model) > 0.35 * size(net) else 0.0

    result = run(net, once)
    returned = promised(result).returned
    assert returned is not None
    assert size(result.model) > 0.35 * size(net)
    assert returned.confirmed == 1.0
    refused = [each for each in promised(result).tried if each.confirmed == 0.0]
    assert refused
    assert not any(each.held for each in refused)
    assert any("held once (1), and not when measured again (0)" in note for note in result.notes)


def test_a_model_that_is_made_again_has_the_weights_that_were_measured() -> None:
    net = small_net()
    lies = Judge(lambda model: 1.0 if len(lies.said) <= MOST_TRIED else float(len(lies.said) > MOST_TRIED + 1))
    result = run(net, lies)
    found = [seen for seen, _ in lies.said if same(seen, state(result.model))]
    assert len(found) == 2  # when it was tried, and when it was made again


# How near, how often


@pytest.mark.parametrize("max_drop", [0.05, 0.1, 0.4])
def test_the_smallest_is_close_to_the_one_that_a_sweep_finds(max_drop: float) -> None:
    net = small_net(width=16)
    measure = quality(net)
    judge = Judge(measure)
    result = run(net, judge, max_drop=max_drop)
    swept = [
        optimize(net, X[:1], calibration=X, passes=SITES, recipe=PLAIN, progress=False, budget=percent / 100)
        for percent in range(30, 100, 6)
    ]
    holding = [each.after.cost.macs for each in swept if measure(each.model) >= 1 - max_drop]
    assert result.after.cost.macs <= 1.1 * min(holding)
    assert len(judge.said) <= MOST_TRIED + 2
    assert len(judge.said) == promised(result).evaluations


def test_where_everything_holds_the_smallest_of_all_is_found() -> None:
    net, judge = small_net(), Judge(lambda model: 0.5)
    result = run(net, judge, max_drop=0.0)
    assert len(judge.said) <= MOST_TRIED + 2
    least = optimize(net, X[:1], calibration=X, passes=SITES, recipe=PLAIN, progress=False, budget=0.5)
    assert result.after.cost.macs < 0.3 * least.before.cost.macs
    assert all(sum(step.ranks) == 1 for step in result.plan.steps)


def test_a_plan_that_was_measured_is_not_measured_again() -> None:
    net = seeded(lambda: nn.Sequential(conv(2, 6), nn.ReLU(), conv(6, 2)), dtype=torch.float32)
    data, judge = noise(8, 2, 5, 5, dtype=torch.float32), Judge(lambda model: -float(size(model) < size(net)))
    result = optimize(
        net, data[:1], calibration=data, evaluate=judge, max_drop=0.5, passes=["reduce"], recipe=PLAIN, progress=False
    )
    sizes = [(each.macs, each.params) for each in promised(result).tried]
    assert len(sizes) == len(set(sizes)) < MOST_TRIED
    assert not result.plan.steps


# Budgets


def test_a_budget_that_holds_is_taken_at_once() -> None:
    net, judge = small_net(), Judge(lambda model: 1.0)
    result = run(net, judge, budget=0.6)
    assert len(judge.said) == 3  # before, after, and to be sure
    assert result.budget_met
    assert result.plan.budget == "macs=0.6"
    plain = run(net, None, budget=0.6, max_drop=None)
    assert same(state(result.model), state(plain.model))
    assert result.plan == plain.plan
    assert promised(result).reason.startswith("the budget macs=0.6 keeps the metric at")


def test_the_floor_wins_over_the_budget() -> None:
    net = small_net()
    result = run(net, quality(net), budget=0.1)
    assert not result.budget_met
    assert result.plan.budget == "macs=0.1"
    assert 0.3 < result.after.cost.macs / result.before.cost.macs < 1
    assert result.verification.metric_after is not None
    assert result.verification.metric_after >= 0.9
    assert promised(result).reason.startswith("the nearest to the budget macs=0.1 of 6 models tried that keeps")
    nearer = [each for each in promised(result).tried if each.macs < result.after.cost.macs]
    assert nearer
    assert not any(each.held for each in nearer)


def test_a_budget_out_of_reach_is_told_and_the_nearest_is_searched_for() -> None:
    result = run(small_net(), lambda model: 1.0, budget=1e-4)
    assert not result.budget_met
    assert "macs=0.0001 is out of reach whatever the metric" in promised(result).reason
    assert all(sum(step.ranks) == 1 for step in result.plan.steps)


def test_without_a_budget_the_plan_names_one_that_gives_the_same_model() -> None:
    net = small_net()
    result = run(net, quality(net))
    again = run(net, None, max_drop=None, budget=result.plan.budget)
    assert again.plan == result.plan
    assert same(state(again.model), state(result.model))
    assert result.budget_met


# The original


def test_where_nothing_holds_the_original_is_returned_with_the_reason() -> None:
    net = small_net()
    judge = Judge(lambda model: 1.0 if size(model) == size(net) else 0.0)
    result = run(net, judge)
    assert result.plan.steps == ()
    assert same(state(result.model), state(net))
    assert result.after.cost == result.before.cost
    assert promised(result).returned is None
    tried = len(promised(result).tried)
    assert promised(result).evaluations == len(judge.said) == 1 + tried
    assert 4 <= tried <= MOST_TRIED
    assert (result.verification.metric_before, result.verification.metric_after) == (1.0, 1.0)
    assert any(f"of {tried} models tried none kept the metric at 0.9" in note for note in result.notes)
    reasons = {each.reason for each in result.skipped if "conv" in each.operation}
    assert "rewriting it was tried, and the metric dropped by more than max_drop=" in reasons
    assert "only the original is within max_drop 0.1" in str(result)


def test_a_model_without_anything_to_rewrite_is_returned_as_it_is() -> None:
    net = Computes(lambda net, x: net.act(x), act=nn.ReLU())
    result = run(net, lambda model: 1.0)
    assert promised(result).tried == ()
    assert any("no smaller model was found to be tried" in note for note in result.notes)


# Recovery, steps, shared bottlenecks


def test_every_model_is_trained_before_it_is_measured() -> None:
    net = small_net()
    plain, trained = (run(net, quality(net), budget=0.5, recover=steps, max_drop=9.0) for steps in (None, 20))
    assert trained.recovery is not None
    assert trained.recovery.accepted
    first, second = (promised(each).tried[0].metric for each in (plain, trained))
    assert first is not None
    assert second is not None
    assert second > first
    assert any("was trained by recover= before it was measured" in note for note in trained.notes)


def test_the_original_is_not_trained() -> None:
    net = small_net()
    result = run(net, lambda model: float(size(model) == size(net)), recover=5)
    assert result.recovery is None
    assert same(state(result.model), state(net))


def test_a_checkpoint_of_recovery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^recover: got checkpoint='.*' with max_drop=, which trains every model"):
        run(small_net(), lambda model: 1.0, recover=Recovery(steps=5, checkpoint=tmp_path / "c.safetensors"))


@pytest.mark.parametrize(
    "options",
    [
        {"passes": None},
        {"passes": ["shared", "reduce"]},
        {"recipe": Recipe(curvature=False, refit=False, steps=2, joint=0)},
        {"recipe": None},
    ],
)
def test_it_goes_with_dropped_channels_shared_bottlenecks_steps_and_all_of_the_method(options: dict[str, Any]) -> None:
    net = seeded(lambda: Computes(lambda n, x: n.a(n.s(x)) + n.b(n.s(x)), s=conv(3, 12), a=conv(12, 8), b=conv(12, 8)))
    net = net.float()
    result = run(net, quality(net), **options)
    assert promised(result).returned is not None
    assert result.verification.metric_after is not None
    assert result.verification.metric_after >= 0.9


# What is said


def test_faults_of_evaluate_are_named() -> None:
    net = small_net()

    def score(model: nn.Module) -> float:
        if size(model) < 0.6 * size(net):
            raise RuntimeError("no labels")
        return math.nan if size(model) < 0.8 * size(net) else 1.0

    result = run(net, score)
    assert 0.8 * size(net) <= size(result.model) < size(net)
    assert "max_drop: macs=0.5 was not taken: evaluate failed: RuntimeError: no labels" in result.notes
    assert any("was not taken: evaluate returned nan" in note for note in result.notes)


@pytest.mark.parametrize("answer", [math.nan, None, []])
def test_a_fault_on_the_original_is_an_error_before_anything_is_calibrated(
    answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"^evaluate: returned .* for the model before; expected a finite number"):
        run(small_net(), lambda model: answer, progress=True)
    assert "calibrate" not in capsys.readouterr().err


def test_an_error_on_the_original_is_the_users_own() -> None:
    with pytest.raises(InputError, match=r"^evaluate: failed on the model before: KeyError: 'labels'") as told:
        run(small_net(), lambda model: dict[str, float]()["labels"])
    assert isinstance(told.value.__cause__, KeyError)


def test_an_interrupt_is_not_a_fault() -> None:
    net = small_net()

    def stopped(model: nn.Module) -> float:
        if size(model) < size(net):
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        run(net, stopped)


@pytest.mark.parametrize(
    ("evaluate", "max_drop", "message"),
    [
        (None, 0.1, r"^max_drop: got 0.1 without evaluate="),
        (lambda model: 1.0, -1.0, r"^max_drop: got -1.0; expected a finite number of at least 0"),
        (0.5, 0.1, r"^evaluate: got float; expected a function of a model"),
    ],
)
def test_what_cannot_be_promised_is_refused_at_once(evaluate: Any, max_drop: float, message: str) -> None:
    never = Computes(lambda net, x: pytest.fail("ran"), c=conv(3, 3))
    with pytest.raises(InputError, match=message):
        run(never, evaluate, max_drop=max_drop)


def test_few_scores_are_told() -> None:
    result = run(small_net(), lambda model: [1.0, 0.0, 1.0])
    assert any("evaluate returned only 3 scores" in note for note in result.notes)
    assert promised(result).samples == 3
    assert "surely at least" in str(result)


def test_the_search_is_written_down(capsys: pytest.CaptureFixture[str]) -> None:
    net = small_net()
    result = run(net, quality(net), progress=True)
    told = capsys.readouterr().err
    assert "max_drop: the original's metric is 1; up to 6 smaller models are made and measured" in told
    assert "max_drop: model 1 of at most 6, macs=0.5\n" in told
    assert "max_drop: model 2 of at most 6" in told
    assert "left\n" in told
    found = json.loads(report_json(result))["promise"]
    assert found["floor"] == pytest.approx(0.9)
    assert [each["returned"] for each in found["tried"]].count(True) == 1
    assert {"budget", "macs", "params", "metric", "held"} <= set(found["tried"][0])
    text = str(result)
    assert "smallest within max_drop 0.1" in text
    assert "at least 0.9" in text
    assert "yes, returned" in text
    assert max(map(len, text.splitlines())) <= 110
    assert len(dict(result.seconds)) == len(result.seconds)


def test_without_max_drop_nothing_is_searched_for() -> None:
    result = run(small_net(), lambda model: 1.0, max_drop=None)
    assert result.promise is None
    assert json.loads(report_json(result))["promise"] is None


def test_the_same_seed_gives_the_same_plan_though_evaluate_draws_numbers() -> None:
    net = small_net()
    first, second = (run(net, hostile("drawing", net, 0), seed=3) for _ in range(2))
    assert promised(first) == promised(second)
    assert first.plan == second.plan
    assert same(state(first.model), state(second.model))


def test_the_result_is_saved_and_loaded(tmp_path: Path) -> None:
    net = small_net()
    for max_drop in (0.1, 0.0):
        result = run(net, quality(net), max_drop=max_drop)
        assert same(state(load(result.save(tmp_path / f"{max_drop}"), net)), state(result.model))
