"""The same thing has the same fingerprint, also in another process; anything else has another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.fingerprints import describe_pass, describe_surroundings, fingerprint
from bottleneck_opt.passes.tucker import Tucker
from bottleneck_opt.spilling import Storage, open_matrix
from tests.networks import Computes, Residual, classifier, seeded


class Scaled(nn.Module):
    """Has a number that is neither parameter nor buffer."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv, self.scale, self.table = nn.Conv2d(3, 4, 3), scale, np.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * self.scale
        return out


def make() -> Scaled:
    return seeded(Scaled, dtype=torch.float32)


def change_weight(net: Scaled) -> None:
    net.conv.weight.data[0, 0, 0, 0] += 1e-6


def change_attribute(net: Scaled) -> None:
    net.scale = 2.0


def change_array(net: Scaled) -> None:
    net.table = np.zeros(2)


def change_stride(net: Scaled) -> None:
    net.conv.stride = (2, 2)


def add_hook(net: Scaled) -> None:
    net.conv.register_forward_hook(lambda module, args, output: output + 1)


def test_the_same_network_has_the_same_fingerprint() -> None:
    assert fingerprint(make()) == fingerprint(make())


@pytest.mark.parametrize("change", [change_weight, change_attribute, change_array, change_stride, add_hook])
def test_another_network_has_another(change: Callable[[Scaled], None]) -> None:
    other = make()
    change(other)
    assert fingerprint(other) != fingerprint(make())


def test_other_code_has_another_fingerprint() -> None:
    def variant(factor: int) -> Callable[..., Any]:
        return lambda net, x: x * factor

    nets = [Computes(variant(2)), Computes(variant(2)), Computes(variant(3)), Computes(lambda net, x: x + 2)]
    found = [fingerprint(net) for net in nets]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_another_process_finds_the_same() -> None:
    code = (
        "from tests.networks import *; from bottleneck_opt.fingerprints import *; "
        "print(fingerprint(seeded(Residual)), fingerprint(seeded(classifier)), fingerprint(*describe_pass(Tucker())))"
    )
    code = f"from bottleneck_opt.passes.tucker import Tucker; {code}"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    here = [fingerprint(seeded(Residual)), fingerprint(seeded(classifier)), fingerprint(*describe_pass(Tucker()))]
    assert run.stdout.split() == here


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        (None, "None"),
        ([1, 2], [2, 1]),
        ([[1], 2], [[1, 2]]),
        ({"a": 1}, {"a": 2}),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), torch.zeros(2, device="meta")),
        (torch.zeros(2).to_sparse(), torch.ones(2).to_sparse()),
        (torch.tensor([1j]), torch.tensor([1j]).conj()),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (Tucker(), Tucker(steps=3)),
        (partial(max, 1), partial(max, 2)),
    ],
)
def test_different_values_are_told_apart(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one, other) != fingerprint(other, one)


def test_order_tells_nothing_where_there_is_none() -> None:
    assert fingerprint({"a": 1, "b": {"x", "y"}}) == fingerprint({"b": {"y", "x"}, "a": 1})


def test_what_holds_itself_is_told() -> None:
    held: list[object] = [1]
    held.append(held)
    assert fingerprint(held) == fingerprint(held)


def test_a_spilled_matrix_is_told_by_its_values() -> None:
    with Storage(limit=0) as storage:
        (matrix,) = storage.allocate([300])
        open_matrix(matrix).add_(torch.eye(300))
        assert fingerprint(matrix) == fingerprint(torch.eye(300, dtype=torch.float64))


def test_a_pass_is_told_by_its_options_and_its_package() -> None:
    assert fingerprint(*describe_pass(Tucker())) != fingerprint(*describe_pass(Tucker(steps=2)))
    assert describe_pass(Tucker())[-1] != ""


def test_threads_are_part_of_the_surroundings() -> None:
    before, threads = describe_surroundings(torch.device("cpu")), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert describe_surroundings(torch.device("cpu")) != before
    finally:
        torch.set_num_threads(threads)


def test_a_single_value_has_a_fingerprint_whatever_its_stride() -> None:
    assert fingerprint(torch.ones(5, 7)[0, :1].as_strided((1, 1), (7, 7))) == fingerprint(torch.ones(1, 1))
