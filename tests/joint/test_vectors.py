from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bottleneck_opt.joint.vectors import add, dot, parameters_of, to_matrix, write_matrix
from bottleneck_opt.layers import describe_layer
from tests.networks import noise, seeded

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 6),
    "no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "1d": lambda: nn.Conv1d(4, 6, 3),
    "3d": lambda: nn.Conv3d(4, 6, (1, 2, 3)),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=2),
    "transposed grouped": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_survive_the_way_to_a_vector_and_back(kind: str) -> None:
    layer, other = seeded(KINDS[kind]), seeded(KINDS[kind], seed=1)
    spec = describe_layer(layer)
    assert spec is not None
    write_matrix(spec, to_matrix(spec, parameters_of(layer)), other)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_of_vectors_is_that_of_the_parameters(kind: str) -> None:
    one, other = seeded(KINDS[kind]), seeded(KINDS[kind], seed=1)
    spec = describe_layer(one)
    assert spec is not None
    vectors = [{"layer": to_matrix(spec, parameters_of(each))} for each in (one, other)]
    plain = sum(float((a * b).sum().detach()) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert dot(*vectors) == pytest.approx(plain)


def test_vectors_add_up_layer_by_layer() -> None:
    one, other = {"a": noise(1, 2, 3)}, {"a": noise(1, 2, 3, seed=1)}
    torch.testing.assert_close(add(one, 2.0, other)["a"], one["a"] + 2 * other["a"])
