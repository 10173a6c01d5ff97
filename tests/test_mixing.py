from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import calibrate, optimize
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.joint.fitting import split_data
from bottleneck_opt.last_factor import Samples
from bottleneck_opt.mixing import mix, mix_anew, plan_mixes
from bottleneck_opt.recipe import Recipe
from tests.networks import Computes, classifier, noise, seeded

X = noise(20, 3, 8, 8, dtype=torch.float32)


def data(*batches: Tensor | Inputs, made_up: bool = False) -> CalibrationData:
    calls = tuple(each if isinstance(each, Inputs) else Inputs((each,)) for each in batches)
    return CalibrationData(calls, sum(len(call.tensors()[0]) for call in calls), "examples", made_up)


def first_of(batches: tuple[Inputs, ...]) -> Tensor:
    return torch.cat([batch.args[0] for batch in batches])


@pytest.mark.parametrize("sizes", [[8], [3, 5], [1, 1, 6], [4, 4]])
def test_every_mix_lies_between_an_example_and_another_one(sizes: list[int]) -> None:
    corners = torch.eye(8)
    mixed = mix(data(*corners.split(sizes)), nn.Identity(), 1.0, 3, seed=0).data
    found = first_of(mixed.batches)
    assert torch.equal(found[:8], corners)
    assert len(found) == mixed.examples == 32
    assert mixed.mixes == 24
    for turn in found[8:].split(8):
        assert torch.equal((turn > 0).sum(1), torch.full((8,), 2))
        assert (turn.diagonal() > 0).all()
        torch.testing.assert_close(turn.sum(1), torch.ones(8))
        assert torch.equal((turn > 0).sum(0), torch.full((8,), 2))  # each example is the other one once


def test_batches_of_mixes_have_the_sizes_of_the_examples_own() -> None:
    mixed = mix(data(*X.split([12, 8])), nn.Identity(), 1.0, 2, seed=0).data
    assert [len(batch.args[0]) for batch in mixed.batches] == [12, 8, 12, 8, 12, 8]


def test_the_same_seed_gives_the_same_mixes_and_another_one_others() -> None:
    one, same, other = (first_of(mix(data(X), nn.Identity(), 1.0, 1, seed=s).data.batches) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_all_tensors_of_an_example_are_mixed_alike_and_shared_ones_stay() -> None:
    table = torch.eye(5)  # its first axis does not count the examples
    call = Inputs((torch.eye(6), table), {"again": 2 * torch.eye(6)})
    made = mix(data(call), Computes(lambda net, x, table, again: x + again), 1.0, 1, seed=0).data.batches[1]
    assert torch.equal(made.kwargs["again"], 2 * made.args[0])
    assert torch.equal(made.args[1], table)


def test_new_mixes_are_others_than_those_that_were_fitted_to() -> None:
    fitted, new = mix(data(X), nn.Identity(), 1.0, 7, seed=3).data, mix_anew(data(X), seed=3)
    assert new.examples == new.mixes == 80
    assert not set(first_of(new.batches).flatten(1)[:, 0].tolist()) & set(
        first_of(fitted.batches).flatten(1)[:, 0].tolist()
    )


def test_half_precision_stays_half() -> None:
    assert mix(data(X.half()), nn.Identity(), 1.0, 1, seed=0).data.batches[1].args[0].dtype is torch.float16


def test_only_examples_of_one_shape_are_mixed() -> None:
    mixed = mix(data(torch.ones(2, 3), torch.ones(1, 4), torch.ones(3, 3)), nn.Identity(), 1.0, 1, seed=0).data
    assert [tuple(batch.args[0].shape) for batch in mixed.batches[3:]] == [(2, 3), (3, 3)]
    assert mixed.mixes == 5


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (data(torch.arange(6)[:, None]), "not all floating point"),
        (data(Inputs((X, torch.ones(20, dtype=torch.bool)))), "not all floating point"),
        (data(torch.ones(1, 3), torch.ones(1, 4)), "no two examples have the same shape"),
    ],
)
def test_what_cannot_be_mixed_is_left_alone_with_the_reason(given: CalibrationData, reason: str) -> None:
    found = mix(given, nn.Identity(), 1.0, None, seed=0)
    assert found.data is given
    assert reason in found.skipped


def test_a_model_that_refuses_mixes_is_fitted_to_the_examples_alone() -> None:
    def whole_numbers_only(net: nn.Module, x: Tensor) -> Tensor:
        if not torch.equal(x, x.round()):
            raise ValueError("whole numbers only")
        return x

    found = mix(data(X.round()), Computes(whole_numbers_only), 1.0, None, seed=0)
    assert not found.data.mixes
    assert "does not run on them" in found.skipped


def test_noise_is_not_mixed_as_there_is_more_of_it() -> None:
    assert mix(data(X, made_up=True), nn.Identity(), 1.0, 3, seed=0).data.mixes == 0


@pytest.mark.parametrize(
    ("examples", "macs", "expected"),
    [(2, 1e6, 7), (16, 1e6, 7), (64, 1e6, 3), (128, 1e6, 1), (200, 1e6, 0), (64, 1e8, 1), (64, 2e8, 0)],
)
def test_few_examples_of_a_small_model_get_the_most_mixes(examples: int, macs: float, expected: int) -> None:
    assert plan_mixes(data(torch.zeros(examples, 3)), macs) == expected


def test_examples_that_fill_the_memory_are_not_mixed() -> None:
    assert plan_mixes(data(torch.zeros(1).expand(2, 2**26)), 1.0) == 0


def test_a_negative_number_of_mixes_is_refused() -> None:
    with pytest.raises(InputError, match=r"mixes: got -1; expected at least 0"):
        Recipe(mixes=-1)


def test_the_fits_hold_out_examples_and_no_mixes() -> None:
    mixed = mix(data(X), nn.Identity(), 1.0, 2, seed=0).data
    fitting, held_out = split_data(mixed)
    assert torch.equal(first_of(held_out.batches), X[::5])
    assert fitting.examples == 16 + 40


@pytest.mark.parametrize(("most", "mixes"), [(10, 0), (20, 0), (30, 20), (60, 40)])
def test_the_first_batches_are_taken_with_the_mixes_among_them(most: int, mixes: int) -> None:
    taken = mix(data(X), nn.Identity(), 1.0, 2, seed=0).data.take(most)
    assert (taken.real, taken.mixes) == (20, mixes)


def test_a_last_factor_is_judged_by_examples_and_takes_the_mixes_last() -> None:
    rows = torch.arange(14.0)[:, None]
    samples = Samples(rows, rows, 14, mixes=4)
    parts = samples.held_out(), samples.first_half(), samples.second_half(), samples.mixed()
    assert [part.patches.flatten().tolist() for part in parts] == [
        [0, 5], [1, 3, 6, 8], [2, 4, 7, 9], [10, 11, 12, 13]
    ]  # fmt: skip


def test_what_is_reported_is_measured_on_the_examples_alone() -> None:
    result = optimize(seeded(classifier), X[:1], calibration=X, budget=0.6, progress=False)
    assert any("to the 20 examples and, as they are few, to 140 mixes of two of them" in note for note in result.notes)
    assert result.verification.examples == 20
    assert result.verification.held_out_data == "new mixed inputs"
    assert 0 < (result.verification.measured_change or 0) < (result.verification.held_out_change or 0)
    assert any("examples of which only mixes were fitted to" in note for note in result.notes)


def test_without_mixes_the_held_out_examples_are_reported() -> None:
    result = optimize(
        seeded(classifier), X[:1], calibration=X, budget=0.6, recipe=Recipe(mixes=0), progress=False
    )  # fmt: skip
    assert result.verification.held_out_change is not None
    assert result.verification.held_out_data == "held-out inputs"
    assert not any("mixes" in note for note in result.notes)


def test_the_outputs_spread_is_that_of_the_examples() -> None:
    net = seeded(classifier, dtype=torch.float32)
    (scale,) = calibrate(net, X[:1], calibration=X, progress=False).scales
    with torch.no_grad():
        assert scale.deviation == pytest.approx(float(net(X).std(correction=0)), rel=1e-4)


def test_a_model_fitted_to_mixes_too_is_nearer_to_the_original_on_new_inputs() -> None:
    """Inputs of few directions, as real ones are, of which eight examples show too little."""
    few = torch.randn(3, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))

    def draw(count: int, seed: int) -> Tensor:
        return (torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) @ few).view(-1, 3, 8, 8) / 3**0.5

    net, new = seeded(lambda: classifier(24), dtype=torch.float32), draw(300, 2)

    def change(mixes: int) -> float:
        result = optimize(
            net, new[:1], calibration=draw(8, 1), budget=0.5, recipe=Recipe(mixes=mixes), allow_slower=True,
            progress=False,
        )  # fmt: skip
        with torch.no_grad():
            return float((result.model(new) - net(new)).square().mean())

    assert change(7) < 0.6 * change(0)  # measured 0.32
