from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.report.keras import WIDTH
from tests.networks import Computes
from tests.torchvision_models import build


def summary_of(model: nn.Module, *shape: int) -> str:
    return bo.profile(model, torch.zeros(shape), timed=False).keras()


def cells(text: str) -> list[list[str]]:
    """The rows of the table below its heading."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def totals(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if "params:" in line]


@pytest.mark.parametrize(
    ("kernel", "row", "size"),
    [
        (3, ["conv (Conv2d)", "(None, 2, 4, 4)", "56"], "56 (224.00 B)"),
        (1, ["conv (Conv2d)", "(None, 2, 6, 6)", "8"], "8 (32.00 B)"),
    ],
)
def test_two_filters_on_six_by_six(kernel: int, row: list[str], size: str) -> None:
    text = summary_of(Computes(lambda net, x: net.conv(x), conv=nn.Conv2d(3, 2, kernel)), 1, 3, 6, 6)
    assert text.startswith('Model: "Computes"\n┏━')
    assert cells(text) == [row]
    assert totals(text) == [f"Total params: {size}", f"Trainable params: {size}", "Non-trainable params: 0 (0.00 B)"]
    assert "the channels come right after the batch" in text


def test_running_statistics_are_not_trainable_as_in_keras() -> None:
    with torch.device("meta"):
        text = summary_of(build("resnet50"), 1, 3, 64, 64)
    assert totals(text)[1:] == ["Trainable params: 25,557,032 (97.49 MB)", "Non-trainable params: 53,120 (207.50 KB)"]
    assert "53,120 running statistics (torch's buffers)" in text


def test_frozen_layers_are_not_trainable() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    assert totals(summary_of(net, 5, 3)) == [
        "Total params: 26 (104.00 B)", "Trainable params: 10 (40.00 B)", "Non-trainable params: 16 (64.00 B)"
    ]  # fmt: skip


def test_sizes_are_those_of_the_models_own_precision() -> None:
    assert "Total params: 16 (32.00 B)" in totals(summary_of(nn.Sequential(nn.Linear(3, 4)).half(), 1, 3))


def test_a_shared_layer_is_listed_once_and_tied_weights_count_once() -> None:
    def forward(net: Computes, x: Tensor) -> Tensor:
        out: Tensor = net.get_submodule("two")(net.get_submodule("one")(net.get_submodule("one")(x)))
        return out

    net = Computes(forward, one=nn.Linear(3, 3), two=nn.Linear(3, 3))
    net.get_submodule("two").weight = net.get_parameter("one.weight")
    text = summary_of(net, 1, 3)
    assert [row[0] for row in cells(text)] == ["one (Linear)", "two (Linear)"]
    assert [row[2] for row in cells(text)] == ["12", "12"]
    assert totals(text)[0] == "Total params: 15 (60.00 B)"
    assert "channels" not in text


def test_every_weight_is_in_a_row() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.first, self.unused = nn.Parameter(torch.ones(1, 4)), nn.LazyLinear(4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.first(x) * self.scale
            return out

    assert cells(summary_of(Net(), 1, 3)) == [
        ["first (Linear)", "(None, 4)", "16"],
        ["scale (Parameter)", "(1, 4)", "4"],
        ["unused (Linear)", "(did not run)", "6"],
    ]


def test_a_long_path_is_folded() -> None:
    net: nn.Module = nn.Linear(3, 3)
    for _ in range(12):
        net = Computes(lambda self, x: self.a_long_name(x), a_long_name=net)
    text = summary_of(net, 1, 3)
    assert max(map(len, text.splitlines())) == WIDTH
    assert "".join(row[0] for row in cells(text)).count("a_long_name") >= 11
