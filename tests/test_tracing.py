from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.graph import Cost
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.tracing import build_graph_module, compare_runs, trace
from bottleneck_opt.working_copy import is_lazy
from tests.networks import Computes, Repeated, Residual, classifier, conv, noise, seeded

X = noise(1, 3, 8, 8)


def total(costs: list[Cost]) -> Cost:
    return sum(costs, Cost())


@pytest.mark.parametrize("make", [classifier, Residual, Repeated])
def test_costs_of_all_nodes_add_up_to_the_total(make: Any) -> None:
    traced = trace(seeded(make), X)
    assert total([node.cost for node in traced.structure.nodes]) == traced.cost


@pytest.mark.parametrize("make", [classifier, Residual, Repeated])
def test_parameters_are_counted_once(make: Any) -> None:
    net = seeded(make)
    assert trace(net, X).cost.params == sum(parameter.numel() for parameter in net.parameters())


def test_tied_parameters_are_counted_once() -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 3), conv(3, 3)))
    net[1].weight = net[0].weight
    traced = trace(net, X)
    assert [node.cost.params for node in traced.structure.nodes if node.kind == "module"] == [84, 3]
    assert traced.cost.params == 87


def test_the_graph_is_a_torch_fx_graph_that_runs() -> None:
    net = seeded(Residual)
    traced = trace(net, X)
    graph_module = build_graph_module(net, traced.graph, traced.constants)
    assert torch.equal(graph_module(X), net(X))
    assert {id(parameter) for parameter in graph_module.parameters()} == {id(p) for p in net.parameters()}


def test_nodes_of_graph_and_structure_are_the_same() -> None:
    traced = trace(seeded(Residual), X)
    assert [node.name for node in traced.graph.nodes] == [node.name for node in traced.structure.nodes]


def test_the_networkx_view_has_every_node_and_edge_and_no_cycle() -> None:
    traced = trace(seeded(Residual), X)
    graph = traced.networkx()
    assert set(graph) == {node.name for node in traced.graph.nodes}
    assert set(graph.edges) == {
        (source.name, node.name) for node in traced.graph.nodes for source in node.all_input_nodes
    }
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.has_path(graph, traced.structure.nodes[0].name, traced.structure.nodes[-1].name)
    assert graph.nodes["stem"]["node"] is traced.structure.node("stem")


def test_shapes_of_every_module_are_written_down() -> None:
    traced = trace(seeded(classifier), noise(2, 3, 8, 8))
    shapes = {
        node.path: (node.input_shapes, node.output_shapes) for node in traced.structure.nodes if node.kind == "module"
    }
    assert shapes["4"] == (((2, 12, 8, 8),), ((2, 24, 4, 4),))
    assert shapes["8"] == (((2, 24),), ((2, 5),))


def test_the_model_is_neither_run_nor_changed() -> None:
    net = seeded(Residual).train()
    before = copy.deepcopy(net.state_dict())
    calls: list[str] = []
    net.register_forward_hook(lambda *_: calls.append("on the copy"))
    statistics = net.blocks[0].bn1.running_mean  # type: ignore[union-attr]
    trace(net, X)
    assert net.training
    assert net.blocks[0].bn1.running_mean is statistics  # type: ignore[union-attr]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def fails(net: Any, x: Tensor) -> Tensor:
    torch.rand(3)
    raise ValueError("deep inside")


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_global_state_is_as_it_was_even_after_an_error(fine: bool, grad: bool) -> None:
    torch.manual_seed(5)
    state, call = torch.get_rng_state(), nn.Module.__call__
    model = seeded(classifier) if fine else Computes(fails)
    with torch.set_grad_enabled(grad):
        if fine:
            trace(model, X)
        else:
            with pytest.raises(InputError, match="deep inside"):
                trace(model, X)
        assert torch.is_grad_enabled() is grad
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.Module.__call__ is call


def test_dropout_and_batch_norm_are_recorded_in_eval_mode() -> None:
    net = nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.Dropout(0.9)).double().train()
    assert trace(net, X).replay.exact


def test_half_precision_is_recorded_in_float32() -> None:
    traced = trace(classifier().bfloat16(), X.bfloat16())
    assert traced.replay.exact
    assert traced.inputs.tensors()[0].dtype == torch.float32


def test_a_model_that_forbids_inference_mode_is_recorded_without_it() -> None:
    def forbids(net: Any, x: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("Inference tensors do not track version counter.")
        y: Tensor = net.bn(net.c(x))
        return y

    traced = trace(seeded(lambda: Computes(forbids, c=conv(3, 4), bn=nn.BatchNorm2d(4))), X)
    assert traced.cost.macs == 64 * 4 * 27
    assert traced.replay.exact
    assert any("outside inference mode" in note for note in traced.notes)


def test_a_model_that_needs_gradients_inside_is_recorded() -> None:
    def uses_gradient(net: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = net.c(x).square().sum()
            (slope,) = torch.autograd.grad(energy, x)
        return slope

    traced = trace(seeded(lambda: Computes(uses_gradient, c=conv(3, 4))), X)
    assert len(traced.structure.calls_of("c")) == 1


def test_layers_that_did_not_run_are_listed_with_the_reason() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return nn.functional.conv2d(net.a(x), net.b.weight)

    net = seeded(lambda: Computes(forward, a=conv(3, 3), b=conv(3, 3), never=nn.Linear(2, 2)))
    assert trace(net, X).unexecuted == {
        "b": "its weight is used by a function, not by calling it",
        "never": "not executed by this input",
    }


def test_functions_carry_the_path_of_the_module_that_calls_them() -> None:
    traced = trace(seeded(Residual), X)
    adds = [node for node in traced.structure.nodes if node.operation == "iadd" or "add" in node.operation]
    assert {node.path for node in adds} == {"blocks.0", "blocks.1"}


@pytest.mark.parametrize("wrong", [nn.Conv2d, {"weight": torch.zeros(1)}, "model.pt", None, lambda x: x])
def test_what_is_no_module_is_refused(wrong: Any) -> None:
    kind = type(wrong).__name__
    with pytest.raises(ModelError, match=rf"^model: got {kind}; expected a torch.nn.Module. Pass the model object"):
        trace(wrong, X)


def test_a_wrong_shape_is_told_with_the_models_own_error_and_place() -> None:
    with pytest.raises(InputError, match=r"fails on Tensor 1x4x8x8 float64: in stem \(Conv2d\): Runtime.*channels"):
        trace(seeded(Residual), noise(1, 4, 8, 8))


def test_a_wrong_number_of_inputs_is_told() -> None:
    with pytest.raises(InputError, match=r"in the model itself \(Residual\): TypeError: .* arguments but 3"):
        trace(seeded(Residual), (X, X))


def test_the_innermost_module_that_fails_is_named() -> None:
    net = nn.Sequential(nn.Sequential(nn.Identity(), Computes(fails)))
    with pytest.raises(InputError, match=r"in 0\.1 \(Computes\): ValueError: deep inside\. Pass inputs="):
        trace(net, X)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    x = X.clone()
    x[0, 0, 0, :2] = value
    with pytest.raises(InputError, match=r"^inputs: 2 of 192 values are NaN or infinite; expected finite data"):
        trace(seeded(classifier), x)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    net = seeded(Residual)
    net.head.weight.data[0, 0] = value
    with pytest.raises(ModelError, match=r"^head\.weight: 1 of 60 values are NaN or infinite; expected finite weights"):
        trace(net, X)


def test_buffers_that_are_not_finite_are_refused() -> None:
    net = seeded(Residual)
    net.blocks[0].bn1.running_var.fill_(float("inf"))  # type: ignore[union-attr, operator]
    with pytest.raises(ModelError, match=r"^blocks\.0\.bn1\.running_var: 12 of 12"):
        trace(net, X)


@pytest.mark.parametrize("inputs", [noise(1, 3, 224, 224, dtype=torch.float32), None], ids=["given", "inferred"])
def test_a_lazy_model_is_traced_and_stays_lazy(inputs: Any) -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))
    traced = trace(net, inputs)
    assert traced.cost.macs == 222 * 222 * 4 * 3 * 9 + 4 * 5
    assert traced.replay.exact
    assert is_lazy(net)
    assert isinstance(net[0], nn.LazyConv2d)


def test_a_lazy_layer_that_is_not_reached_is_named() -> None:
    net = Computes(lambda net, x: net.a(x), a=nn.LazyConv2d(4, 3), b=nn.LazyLinear(2))
    with pytest.raises(ModelError, match=r"^b\.weight: this lazy parameter has no shape yet"):
        trace(net, X.float())


@pytest.mark.parametrize("name", ["child", "method", "function", "root"])
def test_compiled_parts_are_recorded_as_the_python_they_were_made_from(name: str) -> None:
    net: Any = seeded(lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 3)))
    expected = trace(net, X).cost
    ran: list[str] = []
    compiled: Any = torch.compile

    def backend(graph: Any, example: Any) -> Any:
        ran.append("compiled")
        return graph.forward

    if name == "method":
        net[0].compile(backend=backend)
    made: dict[str, Callable[[], nn.Module]] = {
        "child": lambda: nn.Sequential(compiled(net, backend=backend)),
        "method": lambda: net,
        "function": lambda: Computes(compiled(lambda root, x: root.c(x), backend=backend), c=net),
        "root": lambda: compiled(net, backend=backend),
    }
    traced = trace(made[name](), X)
    assert traced.cost == expected
    assert traced.replay.exact
    assert not ran


def test_a_deeply_nested_model_is_traced() -> None:
    net: nn.Module = conv(3, 3).double()
    for _ in range(200):
        net = nn.Sequential(net)
    net(X)
    assert trace(net, X).cost.macs == 64 * 81


def test_a_thousand_layers_are_traced() -> None:
    net = seeded(lambda: nn.Sequential(*(layer for _ in range(500) for layer in (conv(3, 3), nn.Tanh()))))
    traced = trace(net, X)
    assert traced.cost.macs == 500 * 64 * 81
    assert traced.replay.exact


def test_the_same_model_gives_the_same_text() -> None:
    first, second = trace(seeded(Residual), X), trace(seeded(Residual), X)
    assert str(first.graph) == str(second.graph)
    assert first.structure == second.structure


def test_a_graph_that_fails_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def folds(net: Any, x: Tensor) -> Tensor:
        rows: Tensor = net.c(x)[x > 0]
        return rows.reshape(len(rows), 1)

    traced = trace(seeded(lambda: Computes(folds, c=conv(3, 3))), X)
    assert "the graph fails on a second input" in traced.replay.reason
    assert capsys.readouterr().err == ""


def test_the_callers_autocast_is_left_out() -> None:
    with torch.autocast("cpu"):
        traced = trace(classifier(), X.float())
    assert not traced.notes


def test_what_the_model_lets_go_is_not_kept_while_recording() -> None:
    freed: list[bool] = []

    def watches(net: Any, x: Tensor) -> Tensor:
        y = net.c(x)
        first = weakref.ref(y)
        y = net.c(y * 2)
        freed.append(first() is None)
        out: Tensor = y
        return out

    trace(seeded(lambda: Computes(watches, c=conv(3, 3))), X)
    assert freed
    assert all(freed)


def test_wrappers_are_taken_off() -> None:
    net = seeded(classifier)
    compiled: Any = torch.compile(net, backend="eager")
    assert trace(compiled, X).cost == trace(nn.DataParallel(net), X).cost == trace(net, X).cost


def test_tensors_with_a_history_do_not_stop_the_copy() -> None:
    net, layer = seeded(nn.Sequential), conv(3, 3).double()
    net.append(layer)
    net.cached = layer.weight * 2
    net.kept = [layer.weight + 1]  # type: ignore[assignment]
    net.register_buffer("computed", layer.weight * 3)
    assert trace(net, X).replay.exact


@torch.no_grad()
def test_comparing_runs_sees_another_shape_a_difference_and_a_failure() -> None:
    net, inputs = seeded(classifier), Inputs((X,))
    assert compare_runs(net, net, inputs).exact
    assert "output shapes" in compare_runs(net, lambda x: net(x)[:, :2], inputs).reason
    assert "differs by" in compare_runs(net, lambda x: net(x) * 1.01, inputs).reason
    assert "graph fails" in compare_runs(net, seeded(lambda: conv(4, 4)), inputs).reason


@torch.no_grad()
def test_a_nan_in_the_replay_is_a_difference() -> None:
    net, inputs = seeded(classifier), Inputs((X,))
    assert not compare_runs(net, lambda x: net(x) * float("nan"), inputs).exact
