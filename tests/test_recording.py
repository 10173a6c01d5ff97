from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

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


# -- weights that other code reads --------------------------------------------------------------------------------

ATTRIBUTE_READS: dict[str, Function] = {
    "dtype": lambda net, x: net.c(x.to(net.c.weight.dtype)),
    "device": lambda net, x: net.c(x.to(net.c.weight.device)),
    "shape": lambda net, x: net.c(x) * net.c.weight.shape[0] * net.c.weight.size(1) * net.c.weight.dim(),
    "floating": lambda net, x: net.c(x) if torch.is_floating_point(net.c.weight) else x,
    "requires grad": lambda net, x: net.c(x) if not net.c.weight.requires_grad else x,
    "identity": lambda net, x: net.c(x) if net.c.weight is not x and id(net.c.weight) else x,
    "isinstance": lambda net, x: net.c(x) if isinstance(net.c.weight, Tensor) else x,
    "dtype of the first parameter": lambda net, x: net.c(x.to(next(net.parameters()).dtype)),
    "dtype in the dictionary": lambda net, x: net.c(x.to(net.c._parameters["weight"].dtype)),
}
USES: dict[str, Function] = {
    "function": lambda net, x: F.conv2d(net.c(x), net.c.weight),
    "arithmetic": lambda net, x: net.c(x) * net.c.weight.mean(),
    "data": lambda net, x: net.c(x) * net.c.weight.data.mean(),
    "transposed": lambda net, x: net.c(x) * net.c.weight[0, 0].t().mean() * net.c.weight[0, 0].T.mean(),
    "detached": lambda net, x: net.c(x) * net.c.weight.detach().mean(),
    "one value": lambda net, x: net.c(x) * net.c.weight[0, 0, 0, 0].item(),
    "numpy": lambda net, x: net.c(x) * float(net.c.weight.numpy().mean()),
    "address": lambda net, x: net.c(x) if net.c.weight.data_ptr() else x,
    "written": lambda net, x: (net.c.weight.__setitem__(0, 0.5), net.c(x))[1],
    "dictionary": lambda net, x: F.conv2d(net.c(x), net.c._parameters["weight"]),
    "named parameters": lambda net, x: F.conv2d(net.c(x), dict(net.named_parameters())["c.weight"]),
    "state dict": lambda net, x: F.conv2d(net.c(x), net.state_dict()["c.weight"]),
    "bias": lambda net, x: net.c(x) + net.c.bias.mean(),
    "copied": lambda net, x: copy.deepcopy(net.c)(x) + net.c(x),
    "other weights put in": lambda net, x: torch.func.functional_call(
        net.c, {name: value * 2 for name, value in net.c.named_parameters()}, (x,)
    ),
}


@pytest.mark.parametrize("name", ATTRIBUTE_READS)
def test_reading_what_a_weight_is_like_does_no_harm(name: str) -> None:
    traced = record(ATTRIBUTE_READS[name], X)
    assert (dict(traced.weight_reads), dict(traced.attribute_reads)) == ({}, {"c": "Computes"})


@pytest.mark.parametrize("name", USES)
def test_using_the_values_of_a_weight_is_noted(name: str) -> None:
    traced = record(USES[name], X)
    assert (dict(traced.weight_reads), dict(traced.attribute_reads)) == ({"c": "Computes"}, {})


def test_a_layer_that_is_only_called_is_read_by_nobody() -> None:
    class OwnNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)

    traced = trace(seeded(lambda: nn.Sequential(conv(3, 3), OwnNorm(8))), X)
    assert not traced.weight_reads
    assert not traced.attribute_reads


def test_weights_that_torchs_own_layers_hand_to_a_fused_kernel_are_noted() -> None:
    make = lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)  # noqa: E731
    reads = trace(seeded(make), noise(2, 5, 8)).weight_reads
    assert reads["layers.0.linear1"] == reads["layers.0.linear2"] == "TransformerEncoderLayer"
    assert reads["layers.0.self_attn.out_proj"] == "MultiheadAttention"


def test_a_weight_with_two_owners_is_noted_for_both() -> None:
    net = seeded(
        lambda: Computes(lambda net, x: F.linear(net.a(x), net.a.weight), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    )
    net.b.weight = net.a.weight  # type: ignore[union-attr]
    assert set(trace(net, noise(2, 3)).weight_reads) == {"a", "b"}


class Decoder(nn.Linear):
    """The transpose of another layer."""

    def __init__(self, encoder: nn.Linear) -> None:
        super().__init__(encoder.out_features, encoder.in_features)
        self.encoders = [encoder]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.encoders[0].weight.t(), self.bias)


def test_a_layer_that_uses_the_weight_of_another_is_seen() -> None:
    def make() -> nn.Module:
        encoder = nn.Linear(6, 3)
        return nn.Sequential(encoder, Decoder(encoder))

    assert trace(seeded(make), noise(2, 6)).weight_reads == {"0": "Decoder"}


# -- convolutions without a layer ---------------------------------------------------------------------------------


class Blur(nn.Module):
    """Called by its own code: a parameter, a computed weight and one that is made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel)
        x = F.conv2d(x, weight=self.kernel * 2)
        return F.linear(x, OUTSIDE)


OUTSIDE = noise(8, 8)


def test_functional_layers_tell_their_weight_their_caller_and_their_line() -> None:
    traced = trace(seeded(lambda: nn.Sequential(conv(3, 3), Blur())), X)
    first = Blur.forward.__code__.co_firstlineno + 1
    assert [(each.operation, each.path, each.weight, each.source, each.macs) for each in traced.functional] == [
        ("conv2d", "1", "1.kernel", f"tests/test_recording.py:{first}", 2 * 64 * 9),
        ("conv2d", "1", "", f"tests/test_recording.py:{first + 1}", 2 * 64 * 9),
        ("linear", "1", "", f"tests/test_recording.py:{first + 2}", 2 * 3 * 64 * 8),
    ]
    weights = [traced.structure.node(each.node).weight for each in traced.functional]
    assert weights == ["1.kernel", "(computed)", "(constant)"]


def test_a_layer_whose_forward_is_called_directly_is_a_function_of_its_weight() -> None:
    traced = record(lambda net, x: net.c.forward(x), X)
    assert [(each.operation, each.weight) for each in traced.functional] == [("conv2d", "c.weight")]
    assert traced.functional[0].source.startswith("tests/test_recording.py:")
    assert traced.weight_reads == {"c": "Computes"}
    assert "used by a function" in traced.unexecuted["c"]


# -- what models do ------------------------------------------------------------------------------------------------


class OwnSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + x  # type: ignore[no-untyped-call]
        return out


class OwnList(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class OwnConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=1)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def _one_by_one(net: Any, x: Tensor) -> Iterator[Tensor]:
    for part in x:
        yield net.c(part[None])


def _in_autocast(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y: Tensor = net.c(x)
    return y.to(x.dtype)


def _in_inference_mode(net: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y: Tensor = net.c(x)
    return y


def _makes_a_layer(net: Any, x: Tensor) -> Tensor:
    y: Tensor = nn.Conv2d(3, 3, 1, device=x.device, dtype=x.dtype)(net.c(x))
    return y


def _writes_a_view(net: Any, x: Tensor) -> Tensor:
    y: Tensor = net.c(x)
    y.view(-1)[:5].zero_()
    y.data = y.data * 2
    return y


def _with_forward(make: Callable[[nn.Conv2d], Function]) -> nn.Module:
    layer = conv(3, 3)
    layer.forward = make(layer)  # type: ignore[method-assign]
    return nn.Sequential(layer, nn.ReLU())


def _with_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return nn.Sequential(layer, nn.ReLU())


def _with_keyword_hook() -> nn.Module:
    net = Computes(lambda net, x: net.c(input=x), c=conv(3, 3))
    net.c.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda module, args, kwargs: (args, {"input": kwargs["input"] * 2}), with_kwargs=True
    )
    return net


def _parametrized() -> nn.Module:
    net = nn.Sequential(conv(3, 3))
    torch.nn.utils.parametrize.register_parametrization(net[0], "weight", Twice())
    return net


def _of(function: Function) -> Callable[[], nn.Module]:
    return lambda: Computes(function, c=conv(3, 3))


EXACT: dict[str, Callable[[], nn.Module]] = {
    "forward replaced by a function": lambda: _with_forward(
        lambda layer: lambda x: F.conv2d(x, layer.weight, padding=1) * 2
    ),
    "forward replaced by a method": lambda: _with_forward(
        lambda layer: types.MethodType(lambda self, x: F.conv2d(x, self.weight, padding=1), layer)
    ),
    "forward called directly": _of(lambda net, x: net.c.forward(x)),
    "sequential with its own forward": lambda: OwnSequential(conv(3, 3), nn.ReLU()),
    "list with its own forward": lambda: OwnList([conv(3, 3), nn.ReLU()]),
    "checkpoint": _of(lambda net, x: checkpoint(net.c, x, use_reentrant=False) + 1),
    "re-entrant checkpoint": _of(lambda net, x: checkpoint(net.c, x, use_reentrant=True) + 1),
    "inference mode": _of(_in_inference_mode),
    "autograd function": _of(lambda net, x: Doubles.apply(net.c(x)) + 1),  # type: ignore[no-untyped-call]
    "autograd function with a weight": _of(
        lambda net, x: OwnConvolution.apply(x, net.c.weight)  # type: ignore[no-untyped-call]
    ),
    "input returned": _of(lambda net, x: x),
    "nothing returned": _of(lambda net, x: None),
    "a mapping returned": _of(lambda net, x: {"a": net.c(x), "b": "text", "c": None, "d": True, "e": [x, (x, 1)]}),
    "generator returned": _of(_one_by_one),
    "generator inside": _of(lambda net, x: torch.cat(list(_one_by_one(net, x)))),
    "functional dropout in eval": _of(lambda net, x: F.dropout(net.c(x), 0.5, training=net.training)),
    "functional dropout always": _of(lambda net, x: F.dropout(net.c(x), 0.5)),
    "random numbers": _of(lambda net, x: net.c(x) + torch.rand(8, dtype=x.dtype) + torch.randn_like(x)),
    "written through views": _of(_writes_a_view),
    "layer made in forward": _of(_makes_a_layer),
    "hook": lambda: _with_hook(conv(3, 3)),
    "hook on a sequential": lambda: _with_hook(nn.Sequential(conv(3, 3))),
    "hook before with keywords": _with_keyword_hook,
    "parametrization": _parametrized,
    "weight norm": lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(conv(3, 3))),
    "old weight norm": lambda: nn.Sequential(torch.nn.utils.weight_norm(conv(3, 3))),
    "script inside": lambda: nn.Sequential(torch.jit.script(nn.Sequential(conv(3, 3).double(), nn.ReLU())), nn.ReLU()),
    "data parallel inside": lambda: nn.Sequential(nn.DataParallel(conv(3, 3)), nn.ReLU()),
    "one layer twice": _of(lambda net, x: net.c(net.c(x))),
    "recurrent": lambda: Computes(lambda net, x: net.g(x[0, 0][None])[0], g=nn.GRU(8, 4)),
}
INEXACT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vmap over a layer": (_of(lambda net, x: torch.vmap(net.c)(x) + 1), "torch.func"),
    "vmap over functions": (_of(lambda net, x: net.c(torch.vmap(lambda y: F.relu(y * 2))(x))), "torch.func"),
    "jvp": (_of(lambda net, x: torch.func.jvp(net.c, (x,), (x,))[1]), "torch.func"),
    "other weights put in": (_of(USES["other weights put in"]), "differs"),
}


def count_by_torch(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Inputs((x,)).call(net)
    return int(counter.get_total_flops()) // 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", EXACT)
def test_what_models_do_is_replayed_exactly_and_counted_once(name: str) -> None:
    net = seeded(EXACT[name])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    traced = trace(net, X)
    assert traced.replay.exact, traced.replay.reason
    assert traced.cost.macs == count_by_torch(net, X)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", INEXACT)
def test_what_no_graph_can_hold_is_counted_and_told(name: str) -> None:
    make, reason = INEXACT[name]
    net = seeded(make)
    traced = trace(net, X)
    assert not traced.replay.exact
    assert reason in traced.replay.reason
    assert traced.cost.macs == count_by_torch(net, X)
    traced.graph.lint()


def test_what_goes_through_vmap_stays_connected() -> None:
    traced = record(lambda net, x: net.c(torch.vmap(lambda y: F.relu(y * 2))(x)), X)
    names = [node.name for node in traced.structure.nodes]
    assert nx.has_path(traced.networkx(), names[0], names[-1])
    assert not traced.constants


def test_autocast_is_noted() -> None:
    net = seeded(_of(_in_autocast), dtype=torch.float32)
    traced = trace(net, X.float())
    assert any("inside autocast" in note for note in traced.notes)
    assert traced.cost.macs == count_by_torch(net, X.float())
    assert not traced.replay.exact


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.parametrizations.spectral_norm, torch.nn.utils.spectral_norm])
def test_spectral_norm_keeps_its_vectors_and_the_matrix_product_is_counted(norm: Any) -> None:
    net = seeded(lambda: nn.Sequential(norm(conv(3, 3)))).train()
    before = copy.deepcopy(net.state_dict())
    traced = trace(net, X)
    assert traced.replay.exact
    assert traced.cost.macs > 2 * 64 * 81
    assert traced.cost.macs - 2 * 64 * 81 < 2 * 81
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_nodes_that_nobody_counts() -> None:
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    traced = trace(net, torch.randn(2, 8))
    assert operations(traced) == ["Linear", "ReLU", "Linear"]
    assert traced.replay.exact
    assert traced.uncounted["quantized::linear_dynamic"] == 2


def test_a_replaced_forward_is_the_reason_why_a_layer_is_left_alone() -> None:
    net = EXACT["forward replaced by a method"]()
    assert "its forward was replaced on this object" in trace(net, X.float()).unexecuted["0"]


def test_tensors_kept_as_constants_are_no_operations_and_can_be_trained_with() -> None:
    traced = record(lambda net, x: net.c(x) + torch.relu(OUTSIDE), X)
    assert "aten::clone" not in traced.uncounted
    (constant,) = traced.constants.values()
    assert not constant.is_inference()
