from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.recovery import distil, list_recovery_notes
from bottleneck_opt.recovery.examples import make_batch, split_examples
from tests.networks import conv
from tests.recovery.samples import QUICK, X, data, double


def watched(seen: list[Tensor]) -> tuple[nn.Module, nn.Module]:
    """The same, writing down what the student is trained on."""

    def run(net: nn.Module, x: Tensor) -> Any:
        y = net.get_submodule("c")(x)
        if y.requires_grad:
            seen.append(x.detach())
        return y

    return double(run)


def test_held_out_examples_are_not_trained_on_and_all_others_are() -> None:
    seen: list[Tensor] = []
    options = replace(QUICK, steps=4, batch=4, learning_rate=0.001)  # no batches are looked at to choose one
    measured, trained = 4, 4
    found = distil(*watched(seen), data(X), options)
    assert (found.trained_on, found.held_out) == (16, 4)
    assert len({float(example.sum()) for batch in seen for example in batch}) == 16
    assert [len(batch) for batch in seen] == [4] * (measured + trained)


def test_examples_of_several_sizes_are_trained_on_in_batches_of_their_own() -> None:
    seen: list[Tensor] = []
    found = distil(*watched(seen), data(X, X[:10, :, :6, :6]), replace(QUICK, batch=4))
    assert {tuple(batch.shape[2:]) for batch in seen} == {(8, 8), (6, 6)}
    assert found.after < found.before


def test_crops_and_flips_are_of_the_pictures() -> None:
    seen: list[Tensor] = []
    ramp = torch.arange(8.0).expand(20, 3, 8, 8) + X[:, :1, :1, :1]
    found = distil(*watched(seen), data(ramp), replace(QUICK, crop=5, flip=True))
    pictures = torch.cat(seen)
    assert pictures.shape[1:] == (3, 5, 5)
    steps = pictures.diff(dim=3)
    assert {float(step.median().round()) for step in steps} == {-1.0, 1.0}
    assert len({round(float(p.min() % 1), 3) for p in pictures}) == found.trained_on


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (X, {"crop": 9}, "got 9; expected at most 8, for pictures of 8x8"),
        (X[:, 0, 0], {"flip": True}, r"crop and flip need pictures .*got Tensor 1x8 float32"),
    ],
)
def test_what_cannot_be_cropped_is_told(given: Tensor, options: dict[str, Any], message: str) -> None:
    teacher = nn.Linear(8, 2) if given.dim() == 2 else conv(3, 3)
    with pytest.raises(InputError, match=message):
        distil(teacher, copy.deepcopy(teacher), data(given), replace(QUICK, **options))


def test_a_model_that_takes_no_such_batch_is_told_how() -> None:
    pair = double(lambda net, x: net.c(x).view(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"in batches of 8: the model fails on Tensor 8x3x8x8.*Recovery\(batch=1\)"):
        distil(*pair, data(*X.split(1)), QUICK)
    assert distil(*pair, data(*X.split(1)), replace(QUICK, batch=1)).accepted


def test_one_example_is_too_few(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(InputError, match="got 1 example to recover with; expected at least 2"):
        distil(*pair, data(X[:1]), QUICK)


MIXED = replace(QUICK, mixes=True)


def test_every_mix_is_of_two_examples_and_each_example_is_in_turn_one_of_them() -> None:
    split = split_examples(data(torch.eye(16)), nn.Identity(), MIXED)
    batches = [make_batch(split, MIXED, step).args[0] for step in range(40)]
    rows = torch.cat(batches)
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows)))
    assert ((rows > 0).sum(1) <= 2).all()
    assert not torch.equal(batches[0], batches[20])
    assert all((torch.cat(batches[turn : turn + 2]) > 0).any(0).all() for turn in range(0, 40, 2))


def test_mixes_are_judged_by_the_examples_and_by_mixes_that_are_never_trained_on() -> None:
    split = split_examples(data(torch.eye(16)), nn.Identity(), MIXED)
    judged = torch.cat([batch.args[0] for batch in split.held_out])
    trained = torch.cat([make_batch(split, MIXED, step).args[0] for step in range(200)])
    assert torch.equal(judged[:16], torch.eye(16))
    assert len(judged) == split.held_out_examples == 16 + 64
    assert not {tuple(row) for row in judged[16:].tolist()} & {tuple(row) for row in trained.tolist()}


def test_tensors_of_one_example_are_mixed_alike_and_shared_ones_stay() -> None:
    table = torch.eye(5)
    given = data(Inputs((torch.eye(6), table), {"again": 2 * torch.eye(6)}))
    teacher = double(lambda net, x, table, again: x + again)[0]
    batch = make_batch(split_examples(given, teacher, MIXED), replace(MIXED, batch=4), 0)
    torch.testing.assert_close(batch.kwargs["again"], 2 * batch.args[0])
    assert torch.equal(batch.args[1], table)


def test_crops_of_two_pictures_are_mixed() -> None:
    seen: list[Tensor] = []
    distil(*watched(seen), data(X), replace(MIXED, crop=5, flip=True))
    assert {tuple(batch.shape[2:]) for batch in seen} == {(5, 5)}


@pytest.mark.parametrize(
    "options", [{"mixes": False}, {"loss": lambda got, expected, batch: (got - expected).square().mean()}]
)
def test_examples_are_trained_on_alone_where_that_is_asked_for(options: dict[str, Any]) -> None:
    found = distil(*double(lambda net, x: net.get_submodule("c")(x)), data(), replace(MIXED, **options))
    assert (found.mixed, found.unmixed, found.held_out) == (False, "", 4)


def test_many_examples_and_noise_are_not_mixed() -> None:
    for given in (data(X.repeat(13, 1, 1, 1)), replace(data(), noise=True)):
        assert not split_examples(given, nn.Identity(), MIXED).mixed


def test_what_cannot_be_mixed_is_trained_on_alone_and_the_reason_is_told() -> None:
    pair = double(lambda net, x, bias: net.get_submodule("c")(x) + bias.view(-1, 1, 1, 1))
    found = distil(*pair, data(Inputs((X, torch.arange(20)))), MIXED)
    assert (found.mixed, found.held_out) == (False, 4)
    assert list_recovery_notes(found)[1] == (
        "recovery: trained on the few examples alone, on no mixes of them: the inputs are not all floating point"
    )


def test_batch_norms_are_measured_on_examples_and_not_on_mixes() -> None:
    teacher = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4)).requires_grad_(False).eval()
    student = copy.deepcopy(teacher)
    student.get_submodule("1").get_buffer("running_mean").add_(3)
    with torch.no_grad():
        for model in (teacher, student):
            mean, variance = (getattr(model[0](X), name)(dim=(0, 2, 3)) for name in ("mean", "var"))
            teacher.get_submodule("1").get_buffer("running_mean").copy_(mean)
            teacher.get_submodule("1").get_buffer("running_var").copy_(variance)
    found = distil(teacher, student, data(), replace(MIXED, steps=1, learning_rate=1e-9, batch=10))
    assert found.norms == "kept"
    assert math.isclose(found.after, 0, abs_tol=1e-3)
