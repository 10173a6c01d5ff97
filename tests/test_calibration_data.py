from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bottleneck_opt import InputError, calibration_data, optimize
from bottleneck_opt.calibration_data import CalibrationData, choose_batch, choose_noise_examples, read_calibration
from bottleneck_opt.inputs import Inputs, batch_size, read_inputs
from tests.networks import Computes, conv, noise, seeded

X = noise(1, 3, 4, 4)
DATA = noise(20, 3, 4, 4, seed=1)


def read(calibration: Any, inputs: Any = X, *, limit: int = 256, runs: bool = True) -> CalibrationData:
    return read_calibration(calibration, read_inputs(inputs), given=inputs, limit=limit, seed=0, runs=lambda call: runs)


def joined(data: CalibrationData, position: int = 0) -> Tensor:
    return torch.cat([batch.tensors()[position] for batch in data.batches])


def labelled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA, torch.arange(20)), batch_size=6)


@pytest.mark.parametrize(
    "form",
    [
        DATA,
        list(DATA.split(7)),
        [(batch, "label") for batch in DATA.split(7)],
        [[batch, 1, 2, 3] for batch in DATA.split(7)],
        DATA.split(7),
        iter(DATA.split(7)),
        labelled(),
        DataLoader(TensorDataset(DATA), batch_size=3),
    ],
    ids=["tensor", "list", "pairs", "longer", "tuple", "iterator", "labelled loader", "loader"],
)
def test_every_form_for_one_tensor_is_read(form: Any) -> None:
    data = read(form)
    assert data.examples == 20
    assert torch.equal(joined(data), DATA)
    assert data.description == "20 unlabelled examples"
    assert not data.noise


def test_a_tensor_is_split_along_axis_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_data, "MOST_BATCH", 8)
    assert [batch_size(batch) for batch in read(DATA).batches] == [8, 8, 4]


@pytest.mark.parametrize(
    "form",
    [
        [(DATA, DATA + 1)],
        [[DATA, DATA + 1]],
        [(DATA, DATA + 1, "label")],
        [((DATA, DATA + 1), "target")],
        [[(DATA, DATA + 1), torch.zeros(20)]],
        DataLoader(TensorDataset(DATA, DATA + 1, torch.arange(20)), batch_size=20),
    ],
    ids=["tuple", "list", "longer", "pair with target", "list with target", "loader"],
)
def test_every_form_for_several_arguments_is_read(form: Any) -> None:
    data = read(form, (X, X))
    assert torch.equal(joined(data), DATA)
    assert torch.equal(joined(data, 1), DATA + 1)


@pytest.mark.parametrize(
    "form",
    [
        [{"x": DATA, "y": DATA + 1}],
        [{"y": DATA + 1, "x": DATA, "labels": torch.arange(20)}],
        [({"x": DATA, "y": DATA + 1}, "target")],
        [[{"x": DATA, "y": DATA + 1}, torch.zeros(20)]],
    ],
    ids=["dict", "dict with more", "pair with target", "list with target"],
)
def test_every_form_for_keywords_is_read(form: Any) -> None:
    data = read(form, {"x": X, "y": X})
    assert [list(batch.kwargs) for batch in data.batches] == [["x", "y"]]
    assert torch.equal(joined(data, 1), DATA + 1)


def test_one_argument_in_a_tuple_is_read() -> None:
    assert torch.equal(joined(read([(DATA, torch.arange(20))], (X,))), DATA)


@pytest.mark.parametrize(("limit", "sizes"), [(1, [1]), (6, [6]), (7, [6, 1]), (256, [6, 6, 6, 2])])
def test_the_limit_is_kept(limit: int, sizes: list[int]) -> None:
    data = read(labelled(), limit=limit)
    assert [batch_size(batch) for batch in data.batches] == sizes
    assert data.examples == min(limit, 20)
    assert torch.equal(joined(data), DATA[:limit])


def test_a_generator_is_read_once_and_no_further_than_needed() -> None:
    drawn: list[int] = []

    def endless() -> Iterator[Tensor]:
        while True:
            drawn.append(1)
            yield DATA

    assert read(endless(), limit=50).examples == 50
    assert len(drawn) == 3


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=rf"^calibration_limit: got {limit}; expected a whole number, at least 1"):
        read(DATA, limit=limit)


@pytest.mark.parametrize("limit", ["a", 2.5, None])
def test_a_limit_that_is_no_whole_number_is_refused(limit: Any) -> None:
    with pytest.raises(InputError, match=rf"^calibration_limit: got {limit!r}; expected a whole number"):
        read(DATA, limit=limit)


@pytest.mark.parametrize("empty", [[], (), iter([]), DATA[:0], [DATA[:0]], torch.tensor(1.0)])
def test_no_data_is_refused(empty: Any) -> None:
    with pytest.raises(InputError, match=r"^calibration: the \w+ holds no batch; expected at least one example"):
        read(empty)


@pytest.mark.parametrize("wrong", ["images/", b"x", 3, {"x": DATA}, object()])
def test_the_wrong_kind_is_refused(wrong: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^calibration: got {type(wrong).__name__}; expected a Tensor or an iterable"
    ):
        read(wrong)


@pytest.mark.parametrize("wrong", [[3], [["a"]], [{"x": DATA}], [np.zeros((1, 3, 4, 4))], [()], [None]])
def test_a_batch_of_the_wrong_kind_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^calibration: a batch is a \w+; expected a Tensor, or a list or tuple that"):
        read(wrong)


@pytest.mark.parametrize(
    ("wrong", "inputs", "expected"),
    [
        ([DATA], (X, X), "a Tensor; expected a tuple of 2 arguments"),
        ([(DATA,)], (X, X), "a tuple; expected a tuple of 2 arguments"),
        ([DATA], {"x": X}, "a Tensor; expected a dict with x"),
        ([(DATA,)], {"x": X}, "a tuple; expected a dict with x"),
        ([{"x": DATA}], (X, X), "a dict; expected a tuple of 2 arguments"),
    ],
)
def test_a_batch_of_another_form_than_the_inputs_is_refused(wrong: Any, inputs: Any, expected: str) -> None:
    with pytest.raises(InputError, match=rf"^calibration: a batch is {expected}"):
        read(wrong, inputs)


def test_a_batch_without_one_of_the_keywords_is_refused() -> None:
    with pytest.raises(InputError, match=r"^calibration batch 0: got Tensor 20x3x4x4 float64; expected the form of"):
        read([{"x": DATA}], {"x": X, "y": X})


@pytest.mark.parametrize("wrong", [DATA[0], DATA.flatten(1), DATA.long(), DATA[None]])
def test_a_batch_of_another_shape_or_type_is_refused(wrong: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"^calibration batch 1: got .*; expected the form of the example input, Tensor 1x3x4x4"
    ):
        read([DATA, wrong])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_refused(value: float) -> None:
    bad = DATA.clone()
    bad[3, 0, 0, :2] = value
    with pytest.raises(InputError, match=r"^calibration batch 0: 2 of 960 values are NaN or infinite; expected finite"):
        read(bad)


def test_without_data_noise_is_used_and_said() -> None:
    data = read(None)
    assert data.noise
    assert data.examples == 32
    assert data.description == "32 examples of Gaussian noise"
    assert [batch_size(batch) for batch in data.batches] == [32]


def test_noise_keeps_the_batch_of_models_that_need_it() -> None:
    assert {batch_size(batch) for batch in read(None, runs=False).batches} == {1}


def test_noise_respects_the_limit() -> None:
    assert read(None, limit=5).examples == 5


def test_data_stay_on_the_cpu_without_history() -> None:
    x = DATA.clone().requires_grad_() * 2
    batch = read(x).batches[0].tensors()[0]
    assert batch.device.type == "cpu"
    assert not batch.requires_grad


def test_a_made_up_input_reads_data_as_for_one_tensor() -> None:
    data = read_calibration([(DATA, 1)], Inputs((X,)), given=None, limit=9, seed=0, runs=lambda call: True)
    assert data.examples == 9


def test_data_that_the_model_refuses_are_told() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.c(x), c=conv(3, 8)))
    with pytest.raises(InputError, match=r"calibration batch 0.*in c \(Conv2d\): RuntimeError.*channels"):
        optimize(net, X, calibration=noise(4, 5, 4, 4), progress=False)


def test_a_loader_that_fails_is_told_with_its_own_error() -> None:
    def failing() -> Iterator[Tensor]:
        yield DATA
        raise OSError("disk gone")

    with pytest.raises(
        InputError, match=r"^calibration: the generator failed at batch 1: OSError: disk gone\."
    ) as told:
        read(failing())
    assert isinstance(told.value.__cause__, OSError)
    assert read(failing(), limit=20).examples == 20


def test_an_empty_batch_among_others_is_passed_over() -> None:
    assert [batch_size(batch) for batch in read([DATA[:0], DATA[:3]]).batches] == [3]


def test_data_without_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"^calibration: got Tensor 20x3x4x4 float64 on the meta device"):
        read(DATA.to("meta"))


@pytest.mark.parametrize(("shape", "batch"), [((1, 3, 224, 224), 8), ((1, 3, 96, 96), 43), ((1, 1, 16, 16), 64)])
def test_small_examples_run_in_larger_batches(shape: tuple[int, ...], batch: int) -> None:
    assert choose_batch(torch.zeros(shape)) == batch


@pytest.mark.parametrize(
    ("macs", "positions", "examples"), [(4.1e9, 1, 32), (1e9, 1, 130), (0.0, 1024, 256), (1e6, 4096, 64)]
)
def test_cheap_models_get_more_noise_and_large_inputs_less(macs: float, positions: int, examples: int) -> None:
    assert choose_noise_examples(macs, positions) == examples


def test_the_first_batches_are_taken_until_they_hold_enough() -> None:
    data = read([DATA[:4], DATA[4:8], DATA[8:12]])
    some = data.take(5)
    assert (len(some.batches), some.examples, some.description) == (2, 8, "the first 8 of 12 unlabelled examples")
    assert data.take(9) is data
    assert data.take(100) is data


@pytest.mark.parametrize(
    "form", [DATA, list(DATA.split(7)), iter(DATA.split(7)), labelled()], ids=["tensor", "list", "iterator", "loader"]
)
def test_without_an_example_the_data_tells_what_a_call_looks_like(form: Any) -> None:
    result = optimize(seeded(lambda: conv(3, 8)), calibration=form, budget=1.0, progress=False)
    assert result.provenance.inputs == "Tensor 1x3x4x4 float64"
    assert result.verification.examples == 20
    assert "inputs: Tensor 1x3x4x4 float64, the first example of the calibration data" in result.notes


def test_a_model_that_needs_several_examples_gets_the_first_batch() -> None:
    net = seeded(lambda: Computes(lambda self, x: self.conv(x[[0, 1]]), conv=conv(3, 8)))
    result = optimize(net, calibration=DATA.split(5), budget=1.0, progress=False)
    assert "inputs: Tensor 5x3x4x4 float64, the first batch of the calibration data" in result.notes


def test_data_that_the_model_fails_on_is_called_calibration() -> None:
    with pytest.raises(InputError, match=r"^calibration: the model fails on Tensor 1x2x4x4.* Pass calibration="):
        optimize(seeded(lambda: conv(3, 8)), calibration=noise(4, 2, 4, 4), progress=False)


def test_the_batches_of_data_without_an_example_must_agree() -> None:
    with pytest.raises(InputError, match="calibration batch 1: got Tensor 3x4x4"):
        optimize(seeded(lambda: conv(3, 8)), calibration=[DATA[:4], DATA[0]], progress=False)


def test_a_numpy_array_is_to_be_made_a_tensor() -> None:
    with pytest.raises(InputError, match=r"numpy array of shape \(20, 3, 4, 4\).* Pass torch\.from_numpy"):
        read(DATA.numpy())
