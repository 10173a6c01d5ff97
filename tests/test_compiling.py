"""``torch.compile`` of results: in one graph where the original is one, with the same outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import DigitsResNet
from bottleneck_opt.factored import Factored
from tests.networks import Residual, classifier, noise, seeded

X = noise(8, 3, 8, 8, dtype=torch.float32)
DIGITS = noise(8, 1, 16, 16, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def hooked() -> nn.Module:
    """A layer with a hook before and one behind it."""
    net = classifier(16)
    layer = next(each for each in reversed(list(net.modules())) if isinstance(each, nn.Conv2d))
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    return net


def channels_last() -> nn.Module:
    """All weights lie in memory with the channels last."""
    made: nn.Module = Residual().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "plain": (lambda: classifier(16), X, ["reduce", "expand", "tucker", "spatial"]),
    "residual with dropped channels": (DigitsResNet, DIGITS, ["select:caution=1", "reduce", "expand"]),
    "hooks": (hooked, X, ["reduce"]),
    "channels last": (channels_last, X.contiguous(memory_format=torch.channels_last), ["reduce", "expand"]),
}


def compress(case: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The original, the result and data; the result has layers of ours."""
    make, data, passes = CASES[case]
    net = seeded(make, dtype=torch.float32).eval()
    result = bo.optimize(net, data[:1], calibration=data, passes=passes, budget=0.5, progress=False)
    assert {step.pass_name for step in result.plan.steps} >= {passes[0].partition(":")[0]}
    assert any(isinstance(module, Factored) for module in result.model.modules())
    return net, result.model.eval(), data


@pytest.mark.parametrize("case", CASES)
def test_a_result_compiles_in_one_graph_as_its_original_does(case: str) -> None:
    net, model, data = compress(case)
    for each in (net, model):
        compiled: Any = torch.compile(each, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            got, expected = compiled(data), each(data)
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("case", ["residual with dropped channels", "hooks"])
def test_a_result_is_compiled_no_more_often_than_its_original(case: str) -> None:
    net, model, data = compress(case)
    counts = []
    for each in (net, model):
        torch.compiler.reset()
        counter = CompileCounter()
        compiled: Any = torch.compile(each, backend=counter)
        with torch.no_grad():
            for size in (4, 4, 5, 7, 8, 1, 3):
                compiled(data[:size])
        counts.append(counter.frame_count)
    assert counts[1] == counts[0]


def test_gradients_of_a_compiled_result_are_those_of_the_result() -> None:
    _, model, data = compress("plain")
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(model(data).square().mean(), list(model.parameters()))
    got = torch.autograd.grad(compiled(data).square().mean(), list(model.parameters()))
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own compiler needs a C++ compiler, there is no g++")
@pytest.mark.parametrize("case", CASES)
def test_generated_code_computes_the_same(case: str) -> None:
    _, model, data = compress(case)
    compiled: Any = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(data), model(data), rtol=1e-4, atol=1e-5)
