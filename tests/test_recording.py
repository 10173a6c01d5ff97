from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import Inputs, find_tensors
from bottleneck_opt.recording import is_leaf, observe_calls, record_run
from bottleneck_opt.tracing import build_graph_module, trace
from tests.networks import Computes, Repeated, conv, noise, seeded


@dataclass
class Pair:
    left: Tensor
    right: Tensor
    scale: float = 2.0


class Named(NamedTuple):
    first: Tensor
    rest: list[Tensor]


Function = Callable[..., Any]
X = noise(2, 3, 8, 8)


def record(function: Function, *args: Any, **kwargs: Any) -> Traced:
    """The recording of a function with a convolution ``net.c`` at hand."""
    net = seeded(lambda: Computes(function, c=conv(3, 3)))
    return trace(net, Inputs(args, kwargs))


def operations(traced: Traced) -> list[str]:
    return [node.operation for node in traced.structure.nodes if node.kind in ("function", "module")]


def _augmented(y: Tensor, x: Tensor) -> Tensor:
    y += x
    y *= 2
    y -= 1
    y /= 3
    return y


def _overwritten(y: Tensor, x: Tensor) -> Tensor:
    y[:, 0] = 1.0
    y[..., 1:3] = x[..., 1:3]
    y[x > 1] = 0
    return y


def _written_through(y: Tensor, x: Tensor) -> Tensor:
    y[:, 1].mul_(0)
    part = y[:, 2]
    part += x[:, 0]
    return y


@torch.no_grad()
def _without_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y: Tensor = net.c(x)
    return y + 1


SPELLINGS: dict[str, Function] = {
    "power": lambda net, x: net.c(x) ** 2,
    "reversed power": lambda net, x: 2 ** net.c(x),
    "minus": lambda net, x: -net.c(x),
    "from one": lambda net, x: 1 - net.c(x),
    "one over": lambda net, x: 1 / (net.c(x).abs() + 1),
    "matmul": lambda net, x: net.c(x) @ x,
    "reversed matmul": lambda net, x: torch.matmul(x.mT, net.c(x)),
    "transposed": lambda net, x: net.c(x)[0, 0].T,
    "real part": lambda net, x: torch.view_as_complex(net.c(x).reshape(2, 3, 8, 4, 2)).real,
    "ellipsis": lambda net, x: net.c(x)[..., 0],
    "none index": lambda net, x: net.c(x)[:, None, 1:3, ::2],
    "mask": lambda net, x: net.c(x) * (x > 0),
    "negative floor": lambda net, x: net.c(x) // 0.5 + net.c(x) % 0.3,
    "comparison": lambda net, x: (net.c(x) <= 0) | (x == 0) ^ ~(x >= 1),
    "shape arithmetic": lambda net, x: net.c(x).reshape(x.shape[0], -1, x.shape[2] // 2) / x.size(1) ** 0.5,
    "size as argument": lambda net, x: net.c(x).expand(*x.shape) + torch.zeros(x.shape, dtype=x.dtype),
    "functional": lambda net, x: F.gelu(F.avg_pool2d(F.pad(net.c(x), (1, 1)), 2)),
    "chunk": lambda net, x: torch.cat([part * 2 for part in net.c(x).chunk(2, 2)], 2),
    "split and stack": lambda net, x: torch.stack(list(net.c(x).split([1, 2], 1)[1].unbind(1))),
    "max with indices": lambda net, x: net.c(x).max(1).values + net.c(x).max(1)[0],
    "topk": lambda net, x: net.c(x).topk(2, dim=-1)[0],
    "einsum": lambda net, x: torch.einsum("bchw,bdhw->bcd", net.c(x), x),
    "where": lambda net, x: torch.where(x > 0, net.c(x), 0.0),
    "add in place": lambda net, x: net.c(x).add_(x).relu_().mul_(2),
    "augmented": lambda net, x: _augmented(net.c(x), x),
    "setitem": lambda net, x: _overwritten(net.c(x), x),
    "written through a view": lambda net, x: _written_through(net.c(x), x),
    "out argument": lambda net, x: torch.add(net.c(x), x, out=torch.empty_like(x)),
    "copy": lambda net, x: torch.empty_like(x).copy_(net.c(x)),
    "arange": lambda net, x: net.c(x) + torch.arange(x.shape[-1], dtype=x.dtype),
    "new tensor": lambda net, x: net.c(x) + x.new_ones(8) + torch.full((8,), 3.0).to(x),
    "detached": lambda net, x: net.c(x).detach().data + x.clone().contiguous(),
    "list index": lambda net, x: net.c(x)[:, [0, 2]],
    "tensor index": lambda net, x: net.c(x)[:, torch.tensor([0, 2])],
    "interpolate": lambda net, x: F.interpolate(net.c(x), scale_factor=2.0, mode="bilinear"),
    "layer norm": lambda net, x: F.layer_norm(net.c(x), (8, 8)),
    "permute": lambda net, x: net.c(x).permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).unsqueeze(-1).squeeze(-1),
    "attention": lambda net, x: F.scaled_dot_product_attention(net.c(x), x, x),
    "type": lambda net, x: net.c(x).float().type_as(x).to(torch.float64),
    "sum of list": lambda net, x: sum([net.c(x), x, x]),
    "no grad inside": _without_gradients,
    "keyword tensors": lambda net, x: torch.addcmul(input=net.c(x), tensor1=x, tensor2=x, value=0.5),
    "module with keyword": lambda net, x: net.c(input=x),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_replays_exactly_on_another_input(name: str) -> None:
    traced = record(SPELLINGS[name], X)
    assert traced.replay.exact, traced.replay.reason
    assert traced.replay.difference < 1e-12
    assert operations(traced).count("Conv2d") >= 1
    traced.graph.lint()


def test_the_spellings_are_not_all_constant() -> None:
    """Negative control: a graph with another weight is seen to differ."""
    net = seeded(lambda: Computes(SPELLINGS["power"], c=conv(3, 3)))
    traced = trace(net, X)
    wrong = seeded(lambda: Computes(SPELLINGS["power"], c=conv(3, 3)), seed=1)
    graph_module = build_graph_module(wrong, traced.graph, traced.constants)
    assert not torch.allclose(graph_module(X), net(X))


def test_a_value_decides_the_path_and_the_note_says_so() -> None:
    traced = record(lambda net, x: net.c(x) if x.mean() > 100 else net.c(x) + 1, X)
    assert operations(traced).count("Conv2d") == 1
    assert any("looks at tensor values" in note for note in traced.notes)


def test_a_path_that_changes_with_the_data_is_not_exact_and_says_why() -> None:
    traced = record(lambda net, x: net.c(x) if x[0, 0, 0, 0] == X[0, 0, 0, 0] else net.c(x) * 5, X)
    assert not traced.replay.exact
    assert "depends on the data" in traced.replay.reason
    assert traced.cost.macs == 2 * 64 * 81


def test_a_shape_that_changes_with_the_data_is_not_exact_and_says_why() -> None:
    traced = record(lambda net, x: net.c(x)[x > 0], X)
    assert operations(traced).count("Conv2d") == 1
    assert traced.replay.exact
    traced = record(lambda net, x: net.c(x).flatten()[: int((x > 0).sum())], X)
    assert not traced.replay.exact
    assert "output shapes depend on the data" in traced.replay.reason


def test_a_number_read_from_data_is_baked_in_and_told() -> None:
    traced = record(lambda net, x: net.c(x) * x.max().item(), X)
    assert not traced.replay.exact
    assert "differs by" in traced.replay.reason


def test_a_model_that_fails_on_a_second_input_says_so() -> None:
    def picky(net: Any, x: Tensor) -> Tensor:
        if not torch.equal(x, X):
            raise ValueError("not this one")
        y: Tensor = net.c(x)
        return y

    traced = record(picky, X)
    assert not traced.replay.exact
    assert "the model fails on a second input: ValueError: not this one" in traced.replay.reason


def test_a_failure_that_the_model_catches_leaves_no_node() -> None:
    def careful(net: Any, x: Tensor) -> Tensor:
        try:
            y: Tensor = net.c(x[:, :2])
        except RuntimeError:
            y = net.c(x)
        return y

    traced = record(careful, X)
    assert operations(traced).count("Conv2d") == 1
    assert traced.replay.exact


def test_calls_of_one_module_are_numbered_and_cost_each_time() -> None:
    traced = trace(seeded(Repeated), noise(1, 3, 8, 8))
    calls = traced.structure.calls_of("loop")
    assert [(call.call, call.calls) for call in calls] == [(0, 3), (1, 3), (2, 3)]
    assert [call.cost.params for call in calls] == [8 * 8 * 9 + 8, 0, 0]
    assert {call.cost.macs for call in calls} == {64 * 64 * 9}
    assert traced.replay.exact


def test_a_module_with_two_names_is_recorded_under_the_first() -> None:
    traced = trace(seeded(Repeated), noise(1, 3, 8, 8))
    assert len(traced.structure.calls_of("first")) == 2
    assert not traced.structure.calls_of("second")
    assert traced.cost.params == sum(p.numel() for p in Repeated().parameters())


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: {"out": net.c(x), "more": [x, (x + 1,)], "n": 3},
        lambda net, x: (net.c(x), None, "text", 2.5),
        lambda net, x: [net.c(x)],
        lambda net, x: Pair(net.c(x), x),
        lambda net, x: Named(net.c(x), [x, x * 2]),
    ],
    ids=["dict", "tuple", "list", "dataclass", "namedtuple"],
)
def test_outputs_of_every_form_are_replayed_as_they_were(function: Function) -> None:
    net = seeded(lambda: Computes(function, c=conv(3, 3)))
    traced = trace(net, X)
    assert traced.replay.exact, traced.replay.reason
    got, expected = build_graph_module(net, traced.graph, traced.constants)(X), net(X)
    assert type(got) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(find_tensors(got), find_tensors(expected), strict=True))


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda net, x, y: net.c(x) + y, (X, X + 1)),
        (lambda net, x, scale=1.0, flag=False: net.c(x) * scale if flag else x, {"x": X, "scale": 2.0, "flag": True}),
        (lambda net, batch: net.c(batch["image"]) + batch["more"][0], ({"image": X, "more": [X]},)),
        (lambda net, pair: net.c(pair.left) * pair.scale + pair.right, (Pair(X, X + 1),)),
        (lambda net, named: net.c(named.first) + named.rest[0], (Named(X, [X]),)),
        (lambda net, x, mask=None: net.c(x) if mask is None else x, (X, None)),
        (lambda net, x, *rest: net.c(x) + sum(rest), (X, X, X)),
        (lambda net, x, **rest: net.c(x) + rest["more"], {"x": X, "more": X}),
        (lambda net, x, index: net.c(x)[:, index], (X, torch.tensor([0, 2, 1]))),
    ],
    ids=["two", "keywords", "dict", "dataclass", "namedtuple", "none", "star", "double star", "integers"],
)
def test_inputs_of_every_form_are_placeholders(function: Function, inputs: Any) -> None:
    net = seeded(lambda: Computes(function, c=conv(3, 3)))
    traced = trace(net, inputs)
    assert traced.replay.exact, traced.replay.reason
    assert operations(traced).count("Conv2d") == 1


def test_outputs_of_inner_modules_may_be_of_any_form() -> None:
    inner = Computes(lambda net, x: Pair(net.c(x), {"deep": [x]}["deep"][0]), c=conv(3, 3))
    traced = trace(seeded(lambda: Computes(lambda net, x: net.inner(x).left + net.inner(x).right, inner=inner)), X)
    assert traced.replay.exact


def test_a_leaf_that_returns_a_tuple_is_taken_apart() -> None:
    traced = trace(seeded(lambda: Computes(lambda net, x: net.rnn(x)[1][0], rnn=nn.LSTM(4, 5))), noise(2, 3, 4))
    assert operations(traced) == ["LSTM", "getitem", "getitem"]
    assert traced.replay.exact


def test_a_tensor_from_outside_is_a_constant_and_is_told() -> None:
    outside = noise(8)
    traced = record(lambda net, x: net.c(x) + outside, X)
    assert [torch.equal(value, outside) for value in traced.constants.values()] == [True]
    assert any("unknown origin" in note for note in traced.notes)
    assert traced.replay.exact


def test_parameters_and_buffers_are_read_from_the_model() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3, 1, 1))
            self.shift = nn.Buffer(torch.zeros(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain + self.shift

    traced = trace(seeded(lambda: nn.Sequential(conv(3, 3), Scaled())), X)
    assert {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"} == {"1.gain", "1.shift"}
    assert not traced.constants
    assert traced.replay.exact


def test_a_model_that_counts_its_calls_is_still_recorded() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 3)
            self.calls = nn.Buffer(torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            out: Tensor = self.conv(x)
            return out

    net = seeded(Counts)
    traced = trace(net, X)
    assert traced.replay.exact
    assert int(net.calls) == 0


def test_hooks_of_the_model_fire_and_their_effect_is_recorded() -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 3), nn.ReLU()))
    seen: list[str] = []
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    net[1].register_forward_pre_hook(lambda module, args: seen.append("before"))
    traced = trace(net, X)
    assert seen
    assert "mul" in operations(traced) or traced.replay.exact
    graph_module = build_graph_module(net, traced.graph, traced.constants)
    assert torch.equal(graph_module(X), net(X))


def test_attention_layers_are_recorded_with_their_matrix_products() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)))
    traced = trace(net, noise(2, 5, 8))
    projections, scores = 4 * 2 * 5 * 8 * 8, 2 * (2 * 5 * 5 * 8)
    assert traced.cost.macs == projections + scores
    assert traced.replay.exact, traced.replay.reason


def test_a_transformer_layer_is_recorded() -> None:
    net = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    traced = trace(net, noise(2, 5, 8))
    assert {"linear1", "linear2"} <= {node.path for node in traced.structure.nodes if node.operation == "Linear"}
    assert traced.replay.exact, traced.replay.reason


def test_a_script_module_is_one_leaf() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(conv(3, 3).double(), X)
    assert is_leaf(scripted)
    traced = trace(nn.Sequential(scripted, nn.ReLU()), X)
    assert traced.cost.macs == 2 * 64 * 81
    assert traced.replay.exact


def test_nested_modules_are_entered_and_the_stack_is_written_down() -> None:
    traced = trace(seeded(lambda: nn.Sequential(nn.Sequential(conv(3, 3)), nn.ReLU())), X)
    node = traced.structure.calls_of("0.0")[0]
    assert node.stack == (("", "Sequential"), ("0", "Sequential"))


def test_module_calls_are_restored_after_success_and_failure() -> None:
    original = nn.Module.__call__

    def fail(net: Any, x: Tensor) -> Tensor:
        raise ValueError("no")

    record_run(nn.ReLU(), Inputs((X,)))
    with pytest.raises(ValueError, match="no"):
        record_run(Computes(fail), Inputs((X,)))
    with pytest.raises(KeyError), observe_calls(lambda original, module, args, kwargs: original(module, *args)):
        raise KeyError
    assert nn.Module.__call__ is original


def test_modules_called_in_other_threads_are_left_alone() -> None:
    def threaded(net: Any, x: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(nn.ReLU(), x).result()
        y: Tensor = net.c(x)
        return y

    assert operations(record(threaded, X)) == ["Conv2d"]
