from __future__ import annotations

from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.allocation import Allocation
from bottleneck_opt.calibrating import choose_sampling
from bottleneck_opt.calibration import collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.choosing import Choice
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Cost
from bottleneck_opt.progress import Stages
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.result import Result
from bottleneck_opt.stepping import NO_TIES, Seen, _keep_better, _look_again, _milder
from bottleneck_opt.subject import Request, Subject, prepare_subject
from tests.layer_samples import correlated, relative_gap
from tests.networks import seeded

_NOTHING = Allocation((), Cost(), 0.0, 0.0, met=True)


def _net() -> nn.Module:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(6, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Conv2d(24, 8, 3))

    return seeded(make, dtype=torch.float32)


@lru_cache(maxsize=1)
def _data() -> Tensor:
    torch.manual_seed(0)
    return correlated(torch.randn(20, 6, 12, 12))


def _optimize(steps: int, *, budget: float = 0.2, examples: int = 20) -> Result:
    data = _data()[:examples]
    return bo.optimize(
        _net(), data[:1], calibration=data, budget=budget, recipe=Recipe(steps=steps, joint=0), progress=False
    )


def _subject() -> Subject:
    data = _data()
    return prepare_subject(_net(), Request(data[:1], data, 64, None, 0, None, None, mixes=0))


def _step_notes(result: Result) -> list[str]:
    return [note for note in result.notes if "step" in note]


def _collect(subject: Subject) -> Seen:
    sampling = choose_sampling(subject, 0)
    found = collect_statistics(subject.working, subject.candidates.layers, subject.data, sampling)
    return Seen(subject, found, NO_TIES)


def test_a_half_way_model_that_changed_nothing_gives_the_same_statistics() -> None:
    subject = _subject()
    before = _collect(subject)
    after = _look_again(before, subject.working, Stages(shown=False))
    for path, layer in before.statistics.layers.items():
        assert torch.equal(after.layers[path].inputs.covariance(), layer.inputs.covariance())
        assert torch.equal(after.layers[path].curvature, layer.curvature)
        assert relative_gap(after.layers[path].outputs.covariance(), layer.outputs.covariance()) < 1e-4
        assert relative_gap(after.layers[path].outputs.mean, layer.outputs.mean) < 1e-4


def test_fresh_statistics_see_the_inputs_that_now_arrive_and_the_old_weights() -> None:
    subject = _subject()
    halfway = _net()
    with torch.no_grad():
        halfway.get_submodule("0").get_parameter("weight").mul_(0.5)
        halfway.get_submodule("0").get_parameter("bias").mul_(0.5)
    before = _collect(subject)
    after = _look_again(before, halfway, Stages(shown=False))
    halved = before.statistics.layers["2"].inputs.covariance() / 4
    assert relative_gap(after.layers["2"].inputs.covariance(), halved) < 1e-4
    same = before.statistics.layers["0"].outputs.covariance()
    assert relative_gap(after.layers["0"].outputs.covariance(), same) < 1e-4


@pytest.mark.parametrize("better", [0, 1])
def test_what_does_better_on_held_out_examples_is_kept(better: int) -> None:
    seen = _collect(_subject())
    choices = (Choice((), _NOTHING, ()), Choice((), _NOTHING, ()))
    held_in: list[int] = []

    def finish(choice: Choice, data: CalibrationData) -> nn.Module:
        held_in.append(data.examples)
        made = _net()
        with torch.no_grad():
            made.get_submodule("4").get_parameter("bias").add_(0.1 if choice is choices[better] else 0.2)
        return made

    found = _keep_better(seen, choices, lambda choice: partial(finish, choice))
    assert found.choice is choices[better]
    assert found.kept == bool(better)
    assert held_in == [16] * 10


def test_steps_keep_the_budget_and_are_told_of() -> None:
    result = _optimize(2)
    assert result.after.cost.macs <= 0.2 * result.before.cost.macs
    assert len(_step_notes(result)) == 1
    assert [name for name, _ in result.seconds].count("calibrate again") == 1


def test_steps_are_the_same_every_time() -> None:
    assert _optimize(3).plan == _optimize(3).plan


def test_one_step_takes_no_statistics_again() -> None:
    result = _optimize(1)
    assert not _step_notes(result)
    assert "calibrate again" not in dict(result.seconds)


def test_too_few_examples_to_judge_by_leave_it_at_one_step() -> None:
    (note,) = _step_notes(_optimize(2, examples=4))
    assert "fewer than 5 examples" in note


def test_milder_limits_are_the_same_factor_apart() -> None:
    assert _milder({"macs": 100}, Cost(macs=1600), 0.5) == {"macs": 400}
    assert _milder({"macs": 2000}, Cost(macs=1600), 0.5) == {"macs": 1600}


def test_no_step_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="steps"):
        Recipe(steps=0)
