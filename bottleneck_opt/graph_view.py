"""A model's recorded run as a ``torch.fx.GraphModule``: of the original, and of the rewritten one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn

from bottleneck_opt.errors import ModelError
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import Inputs, vary_inputs
from bottleneck_opt.layers import LayerSpec, build_layer
from bottleneck_opt.plan import Plan
from bottleneck_opt.probing import describe_call, name_arguments
from bottleneck_opt.rewriting import rewrite_graph
from bottleneck_opt.tracing import (
    build_graph_module,
    build_lazy_layers,
    compare_runs,
    place_constants,
    prepare_trace,
    trace_working,
)
from bottleneck_opt.working_copy import copy_model, model_device, undisturbed, unwrap_model, working_inputs


@dataclass(frozen=True)
class GraphView:
    """The rewritten graph over a rewritten model's parameters.

    Attributes:
        graph_module: None where the graph does not give the model's outputs.
        difference: How far its output was from the model's on a new input; None where it was not run.
        notes: Why there is none.
    """

    graph_module: torch.fx.GraphModule | None
    difference: float | None
    notes: tuple[str, ...]


def view_rewritten(before: Traced, plan: Plan, model: nn.Module, working: nn.Module) -> GraphView:
    """The rewritten graph over a model's parameters, checked against the model on a new input.

    Args:
        before: The original's recording.
        plan: What was rewritten.
        model: The rewritten model.
        working: Its working copy, with the same values.
    """
    if not before.replay.exact:
        return GraphView(None, None, (f"no graph_module: {before.replay.reason}",))
    graph = rewrite_graph(before.graph, plan)
    checked = build_graph_module(working, graph, place_constants(before.constants, working))
    example = working_inputs(before.inputs, working, model_device(working))
    with torch.no_grad():
        replay = compare_runs(working, checked, vary_inputs(example, seed=2))
    if not replay.exact:
        return GraphView(None, replay.difference, (f"no graph_module: {replay.reason}",))
    return GraphView(build_graph_module(model, graph, place_constants(before.constants, model)), replay.difference, ())


def to_graph_module(model: nn.Module, inputs: Any = None) -> torch.fx.GraphModule:
    """The model's run as a ``torch.fx.GraphModule`` over a copy of its weights, for layers that have no module.

    ``F.conv2d(x, self.weight)`` in the middle of a forward cannot be replaced inside the model: there is no module to
    exchange. In this graph it is one, so :func:`bottleneck_opt.optimize` can rewrite it. The price: the result is a
    GraphModule, not a model of the same class, and holds for inputs of this shape.

    Args:
        model: Any module; it is not changed.
        inputs: One example call; None to infer it.

    Raises:
        ModelError: The recorded graph does not give the model's outputs on a second input.
        InputError: The model fails on the input.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        ...     def forward(self, x):
        ...         return torch.nn.functional.conv2d(x, self.kernel).relu()
        >>> to_graph_module(Net(), torch.zeros(1, 3, 8, 8)).kernel_layer
        Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), bias=False)
    """
    original = build_lazy_layers(unwrap_model(model), inputs)
    with undisturbed():
        working, example, _ = prepare_trace(original, inputs)
        return record_as_module(original, working, example)


def record_as_module(
    original: nn.Module, working: nn.Module, example: Inputs,
    advice: str = "Use the model itself, and make its functions on parameters modules.",
) -> torch.fx.GraphModule:  # fmt: skip
    """The recorded run of a model's working copy over a copy of the model's own weights, functions made layers.

    Args:
        original: The model; it is neither run nor changed.
        working: A copy that may be run freely.
        example: The call to record.
        advice: What to do where the graph is not the model.

    Raises:
        ModelError: The recorded graph does not give the model's outputs on a second input.
    """
    traced = trace_working(working, example)
    if not traced.replay.exact:
        raise ModelError(
            f"{type(original).__name__}: its recorded graph cannot stand for it: {traced.replay.reason}. {advice}"
        )
    root = copy_model(original)
    graph = _copy_graph(traced.graph)
    for node in list(graph.nodes):
        if node.op == "call_function":
            _make_layer(root, node)
    graph.lint()
    made = build_graph_module(root, graph, place_constants(traced.constants, root))
    return made.train(original.training)


def _copy_graph(graph: torch.fx.Graph) -> torch.fx.Graph:
    copied, values = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    for node in graph.nodes:
        values[node] = copied.node_copy(node, values.__getitem__)
    return copied


def _make_layer(root: nn.Module, node: torch.fx.Node) -> None:
    """Turn a call of a layer function on parameters that nothing else uses into a call of a new module."""
    known = name_arguments(node.target, node.args, node.kwargs)
    if known is None:
        return
    kind, given = known
    weight, bias = _own_parameter(root, given["weight"]), _own_parameter(root, given.get("bias"))
    numbers = [value for name, value in given.items() if name not in ("input", "weight", "bias")]
    if weight is None or (bias is None and given.get("bias") is not None) or _holds_node(numbers):
        return
    name = f"{str(given['weight'].target).replace('.', '_')}_layer"
    root.add_module(name, _build(describe_call(kind, {**given, "weight": weight}), weight, bias))
    with node.graph.inserting_before(node):
        called = node.graph.call_module(name, (given["input"],))
    called.meta = dict(node.meta)
    node.replace_all_uses_with(called)
    node.graph.erase_node(node)
    for part in (given["weight"], given.get("bias")):
        if part is not None:
            node.graph.erase_node(part)


def _own_parameter(root: nn.Module, node: Any) -> nn.Parameter | None:
    """The parameter that a node reads, if this is its only reader."""
    if not isinstance(node, torch.fx.Node) or node.op != "get_attr" or len(node.users) != 1:
        return None
    readers = Counter(str(each.target) for each in node.graph.nodes if each.op == "get_attr")
    return dict(root.named_parameters()).get(str(node.target)) if readers[str(node.target)] == 1 else None


def _holds_node(values: list[Any]) -> bool:
    found: list[torch.fx.Node] = []
    torch.fx.node.map_arg(values, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return bool(found)


def _build(layer: LayerSpec, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    built = build_layer(layer.named("layer", bias=bias is not None), device=weight.device, dtype=weight.dtype)
    built.register_parameter("weight", weight)
    built.register_parameter("bias", bias)
    return built
