from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.inputs import (
    Inputs,
    batch_size,
    find_tensors,
    infer_inputs,
    map_tensors,
    noise_batches,
    read_inputs,
    stretch_batch,
    vary_inputs,
)
from bottleneck_opt.noise import make_noise
from tests.networks import conv, noise


@dataclass(frozen=True)
class Sample:
    image: Tensor
    label: int = 3


class Two(NamedTuple):
    a: Tensor
    b: list[Tensor]


X = noise(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "args", "names"),
    [
        (X, 1, []),
        ((X, 3), 2, []),
        ({"x": X, "flag": True}, 0, ["x", "flag"]),
        (([X], {"y": X}), 2, []),
        (Two(X, [X]), 2, []),
    ],
)
def test_every_form_of_inputs_is_read(given: Any, args: int, names: list[str]) -> None:
    inputs = read_inputs(given)
    assert len(inputs.args) == args
    assert list(inputs.kwargs) == names


@pytest.mark.parametrize("wrong", [3, [X], "x", None, object(), X.numpy()])
def test_another_form_is_refused(wrong: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^inputs: got {type(wrong).__name__}; expected a Tensor, a tuple of arguments"
    ):
        read_inputs(wrong)


@pytest.mark.parametrize("wrong", [(), {}, (1, "a"), {"x": None}])
def test_inputs_without_a_tensor_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=rf"^inputs: found no tensor in the {type(wrong).__name__} given"):
        read_inputs(wrong)


@pytest.mark.parametrize("wrong", [X[:0], (X[:0], 3), {"x": X[:0]}])
def test_an_empty_batch_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^inputs: got Tensor 0x3x8x8 float64, an empty batch; expected at least one"):
        read_inputs(wrong)


def test_inputs_without_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"^inputs: got Tensor 2x3x8x8 float64 on the meta device, which holds no"):
        read_inputs(X.to("meta"))


def test_inputs_without_values_are_read_where_shapes_are_enough() -> None:
    assert read_inputs(X.to("meta"), values=False).describe() == "Tensor 2x3x8x8 float64"


def test_a_generator_is_run_to_its_end() -> None:
    assert Inputs((X,)).call(lambda x: (part.shape for part in x)) == ((3, 8, 8), (3, 8, 8))


def test_a_lazy_convolution_is_fed_with_three_channels() -> None:
    inputs, _ = infer_inputs(nn.Sequential(nn.LazyConv2d(4, 3)), always)
    assert tuple(inputs.tensors()[0].shape) == (1, 3, 224, 224)


def test_a_call_hands_over_copies() -> None:
    x = torch.zeros(2)
    read_inputs({"x": x}).call(lambda x: x.add_(1))
    assert torch.equal(x, torch.zeros(2))


def test_nested_values_keep_their_types() -> None:
    value = {"a": [X, (X, 2)], "b": OrderedDict(c=Sample(X)), "d": Two(X, [X]), "e": None}
    mapped = map_tensors(value, lambda tensor: tensor + 1)
    assert type(mapped["b"]) is OrderedDict
    assert type(mapped["d"]) is Two
    assert mapped["b"]["c"].label == 3
    found = list(find_tensors(mapped))
    assert len(found) == len(list(find_tensors(value))) == 5
    assert all(torch.equal(tensor, X + 1) for tensor in found)


def test_tensors_are_changed_in_the_order_in_which_they_are_listed() -> None:
    call = Inputs((X, [X + 1]), {"a": X + 2, "b": (X + 3,)})
    numbers = iter(range(4))
    changed = call.map(lambda _: torch.tensor(next(numbers)))
    assert [int(tensor) for tensor in changed.tensors()] == [0, 1, 2, 3]


def test_another_input_is_of_the_same_kind_but_different() -> None:
    pictures = noise(2, 3, 16, 16) * 5 + 100
    inputs = Inputs((pictures, torch.arange(6), torch.tensor(True)), {"z": torch.zeros(2, 2)})
    other = vary_inputs(inputs, seed=1)
    for mine, theirs in zip(inputs.tensors(), other.tensors(), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    assert other.args[0].mean() == pytest.approx(100, abs=2)
    assert other.args[0].std() == pytest.approx(5, rel=0.3)
    assert other.args[1].tolist() == [5, 4, 3, 2, 1, 0]
    assert not torch.equal(other.kwargs["z"], torch.zeros(2, 2))
    assert torch.equal(vary_inputs(inputs, seed=1).args[0], other.args[0])
    assert not torch.equal(vary_inputs(inputs, seed=2).args[0], other.args[0])


def test_noise_holds_as_many_examples_as_asked() -> None:
    batches = noise_batches(Inputs((noise(3, 4),)), examples=7, seed=0)
    assert [batch_size(batch) for batch in batches] == [3, 3, 3]
    assert not torch.equal(batches[0].args[0], batches[1].args[0])


def test_a_batch_is_stretched_where_it_is_a_batch() -> None:
    stretched = stretch_batch(Inputs((X, torch.zeros(5)), {"s": torch.tensor(1.0)}), 7)
    assert [tuple(tensor.shape) for tensor in stretched.tensors()] == [(8, 3, 8, 8), (5,), ()]


def test_inputs_are_described_in_words() -> None:
    assert Inputs((X, 3), {"y": torch.zeros(2, dtype=torch.int64)}).describe() == (
        "Tensor 2x3x8x8 float64, Tensor 2 int64"
    )
    assert Inputs().describe() == "no tensors"


def always(inputs: Inputs) -> str:
    return ""


class Hinted(nn.Module):
    def __init__(self, **hints: Any) -> None:
        super().__init__()
        self.conv = conv(3, 4)
        for name, value in hints.items():
            setattr(self, name, value)


class Config:
    image_size = 48
    num_channels = 3
    input_size = (3, 40, 40)


@pytest.mark.parametrize(
    ("hints", "shape", "source"),
    [
        ({"example_input_array": torch.zeros(2, 3, 5, 5)}, (2, 3, 5, 5), "example_input_array"),
        ({"default_cfg": {"input_size": (3, 96, 96)}}, (1, 3, 96, 96), "default_cfg"),
        ({"pretrained_cfg": Config()}, (1, 3, 40, 40), "pretrained_cfg"),
        ({"config": Config()}, (1, 3, 48, 48), "config"),
        ({}, (1, 3, 224, 224), "the first convolution at size 224"),
        ({"default_cfg": {}, "config": {}}, (1, 3, 224, 224), "the first convolution"),
    ],
)
def test_the_models_own_hints_come_first(hints: dict[str, Any], shape: tuple[int, ...], source: str) -> None:
    inputs, note = infer_inputs(Hinted(**hints), always)
    assert tuple(inputs.tensors()[0].shape) == shape
    assert note.startswith("inputs: ")
    assert source in note


def test_sizes_are_tried_in_turn_and_the_one_used_is_named() -> None:
    tried: list[tuple[int, ...]] = []

    def fault(inputs: Inputs) -> str:
        tried.append(tuple(inputs.tensors()[0].shape))
        return "" if tried[-1][-1] == 128 else "too small"

    _, note = infer_inputs(nn.Sequential(conv(5, 4)), fault)
    assert [shape[-1] for shape in tried] == [224, 32, 64, 128]
    assert "Tensor 1x5x128x128" in note


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv1d(2, 3, 3), (1, 2, 4096)), (nn.Conv3d(2, 3, 3), (1, 2, 32, 32, 32))]
)
def test_other_convolutions_have_sizes_of_their_own(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert tuple(infer_inputs(nn.Sequential(layer), always)[0].tensors()[0].shape) == shape


def test_made_up_inputs_have_the_models_precision() -> None:
    assert infer_inputs(nn.Sequential(conv(3, 4)).double(), always)[0].tensors()[0].dtype == torch.float64


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 3)), nn.Sequential(conv(3, 3))])
def test_when_nothing_fits_the_user_is_asked(model: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"^Sequential: no input was given and none of the guesses ran.*Pass inputs="):
        infer_inputs(model, lambda inputs: "inputs: the model fails. Pass inputs= that it runs on.")


def test_the_models_own_error_is_told_when_no_guess_runs() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("an error of the model's own")

    with pytest.raises(ModelError, match=r"none of the guesses ran.* The first of them: .*an error of the model's own"):
        bo.trace(Broken())


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 9), (2, 3, 8, 8), (1, 2, 5, 7), (1, 1, 4, 6, 8), (1, 1, 1, 1)])
def test_noise_has_the_shape_and_unit_scale(shape: tuple[int, ...]) -> None:
    made = make_noise(shape, torch.Generator().manual_seed(0))
    assert made.shape == shape
    assert torch.isfinite(made).all()
    if made.numel() > 20:
        assert 0.5 < float(made.std()) < 1.5


def test_picture_noise_has_neighbours_alike_and_sequences_have_not() -> None:
    generator = torch.Generator().manual_seed(0)
    picture, sequence = make_noise((4, 3, 32, 32), generator), make_noise((4, 64, 64), generator)
    alike = [float((x[..., 1:] * x[..., :-1]).mean() / x.square().mean()) for x in (picture, sequence)]
    assert alike[0] > 0.5
    assert abs(alike[1]) < 0.1
