"""Model and example input in, :class:`Traced` out: recorded, priced and replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from bottleneck_opt.adoption import find_own_layers
from bottleneck_opt.costs import add_costs, list_uncounted
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Cost, FunctionalLayer, ModelGraph, Node, Replay, Traced
from bottleneck_opt.inputs import Inputs, find_tensors, infer_inputs, is_without_values, read_inputs, vary_inputs
from bottleneck_opt.layers import LayerSpec, describe_layer
from bottleneck_opt.recording import COMPUTED, CONSTANT, TRANSFORM, Recording, record_run
from bottleneck_opt.working_copy import (
    at_home,
    copy_for_tracing,
    is_lazy,
    materialise,
    model_device,
    run_on_example,
    undisturbed,
    unwrap_model,
    working_inputs,
)

EXACT = 1e-5
_KINDS = {
    "placeholder": "input", "call_module": "module", "call_function": "function", "call_method": "function",
    "get_attr": "attribute", "output": "output",
}  # fmt: skip


def trace(model: nn.Module, inputs: Any = None) -> Traced:
    """Record one run of a model as a ``torch.fx.Graph`` with shapes and costs. The model itself is not run or changed.

    Args:
        model: Any module.
        inputs: One example call: a Tensor, a tuple of arguments or a dict of keyword arguments; None to infer it.

    Raises:
        ModelError: Not a module, weights that are not finite, or no input could be inferred.
        InputError: The model fails on the input.

    Example:
        >>> traced = trace(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), torch.zeros(1, 3, 6, 6))
        >>> traced.cost.macs, traced.cost.params
        (864, 56)
    """
    with undisturbed():
        working, example, notes = prepare_trace(model, inputs)
        return with_notes(trace_working(working, example), notes)


def prepare_trace(model: nn.Module, inputs: Any) -> tuple[nn.Module, Inputs, tuple[str, ...]]:
    """A copy of a model to record, its example call, and a note when that was made up.

    Models without values (on the meta device) and lazy ones are welcome here.

    Raises:
        ModelError, InputError: As for :func:`trace`.
    """
    inner = unwrap_model(model)
    working = copy_for_tracing(build_lazy_layers(inner, inputs))
    return working, *choose_inputs(working, inputs)


def build_lazy_layers(model: nn.Module, inputs: Any) -> nn.Module:
    """The model with every lazy layer built by one run of a copy; the model itself when it has none.

    Args:
        model: Any module; it is neither run nor changed.
        inputs: One example call; None to infer it.

    Raises:
        ModelError, InputError: As for :func:`trace`.

    Example:
        >>> built = build_lazy_layers(nn.Sequential(nn.LazyLinear(2)), torch.zeros(1, 3))
        >>> built[0].in_features
        3
    """
    if not is_lazy(model):
        return model
    if inputs is not None:
        return materialise(model, read_inputs(inputs))
    return materialise(model, infer_inputs(model, lambda candidate: _find_building_fault(model, candidate))[0])


def _find_building_fault(model: nn.Module, inputs: Inputs) -> str:
    try:
        materialise(model, inputs)
    except InputError as error:
        return str(error)
    return ""


def choose_inputs(working: nn.Module, given: Any) -> tuple[Inputs, tuple[str, ...]]:
    """The example call in the working copy's precision and device, with a note when it was made up."""
    device = model_device(working)
    if given is not None:
        return working_inputs(read_inputs(given, values=device.type != "meta"), working, device), ()
    inputs, note = infer_inputs(working, lambda candidate: find_fault(working, candidate))
    return working_inputs(inputs, working, device), (note,)


def runs_on(working: nn.Module, inputs: Inputs) -> bool:
    """Whether a copy that may be run freely runs on this input."""
    return not find_fault(working, inputs)


def find_fault(working: nn.Module, inputs: Inputs, *, what: str = "inputs") -> str:
    """Why a copy that may be run freely does not run on this input, which is called ``what``; empty where it does."""
    try:
        with torch.no_grad():
            run_on_example(working, inputs, what=what)
    except InputError as error:
        return str(error)
    return ""


def with_notes(traced: Traced, notes: tuple[str, ...]) -> Traced:
    """The same recording with more notes, first."""
    fields = {**vars(traced), "notes": (*notes, *traced.notes)}
    return Traced(**fields)


def trace_working(working: nn.Module, inputs: Inputs) -> Traced:
    """Record, price and replay a copy that may be run freely (eval mode, no gradients).

    Raises:
        InputError: The input holds NaN or Inf, or the model fails on it.
    """
    check_finite(inputs, "inputs")
    with torch.no_grad():
        run_on_example(working, inputs)  # models that change themselves in their first call do it now
    recording, mode_note = _record(working, inputs)
    structure = ModelGraph(_make_nodes(recording, working, {}))
    own_layers = find_own_layers(working, inputs, _list_functional(structure))
    if own_layers:
        recording, mode_note = _record(working, inputs, own_layers)
        structure = ModelGraph(_make_nodes(recording, working, own_layers))
    params = sum(parameter.numel() for parameter in working.parameters())
    total = add_costs(recording.operations)
    return Traced(
        graph=recording.graph,
        structure=structure,
        cost=Cost(total.macs, params, total.other),
        replay=_try_replay(working, recording, inputs),
        inputs=inputs,
        constants=recording.constants,
        unexecuted=_list_unexecuted(working, recording),
        weight_reads=recording.weight_reads,
        attribute_reads=recording.attribute_reads,
        functional=_list_functional(structure),
        own_layers=own_layers,
        uncounted=list_uncounted(recording.operations),
        notes=(*mode_note, *_recording_notes(recording)),
    )


def check_finite(inputs: Inputs, where: str) -> None:
    """Raise InputError when a tensor holds NaN or Inf."""
    for tensor in inputs.tensors():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise InputError(
                f"{where}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values are NaN or infinite; "
                "expected finite data. Clean the data and try again."
            )


def _record(working: nn.Module, inputs: Inputs, own_layers: Collection[str] = ()) -> tuple[Recording, tuple[str, ...]]:
    """Record in inference mode, where whole operations are seen; models that fail there are recorded without it."""
    try:
        with torch.inference_mode(), at_home(working):
            return record_run(working, inputs, own_layers), ()
    except Exception as error:  # whatever the model raises: outside inference mode it has run once already
        reason = f"{type(error).__name__}: {error}"
    try:
        with torch.no_grad(), at_home(working):
            recording = record_run(working, inputs, own_layers)
    except Exception as error:
        raise InputError(f"the model fails while it is recorded: {error}. Please report this model.") from error
    return recording, (f"recorded outside inference mode ({reason}): normalisation is counted in parts",)


def build_graph_module(root: nn.Module, graph: torch.fx.Graph, constants: Mapping[str, Tensor]) -> torch.fx.GraphModule:
    """A GraphModule over the root's own modules and parameters (nothing is copied)."""
    used: dict[str, Any] = {}
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            used[target] = root.get_submodule(target)
        elif node.op == "get_attr":
            used[target] = constants[target] if target in constants else _get_tensor(root, target)
    return torch.fx.GraphModule(used, graph, type(root).__name__)


def place_constants(constants: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A graph's constants as a model needs them: on its device, and in half precision where the model is.

    They were recorded in a working copy, which has float32 in place of half precision.
    """
    like = next((each for each in model.parameters() if each.is_floating_point()), torch.zeros((), device="cpu"))
    halved = like.dtype in (torch.float16, torch.bfloat16)
    return {
        name: each.to(like.device, like.dtype if halved and each.dtype == torch.float32 else each.dtype)
        for name, each in constants.items()
    }


def _get_tensor(root: nn.Module, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(root.get_submodule(path), name)


def _try_replay(working: nn.Module, recording: Recording, inputs: Inputs) -> Replay:
    if is_without_values(working):
        return Replay(False, float("inf"), "not run: a model on the meta device holds no values")
    if TRANSFORM in recording.regions:
        return Replay(False, float("inf"), "the model uses torch.func (vmap, grad, jvp), which no graph can hold")
    return replay(working, recording.graph, recording.constants, inputs)


def replay(working: nn.Module, graph: torch.fx.Graph, constants: Mapping[str, Tensor], inputs: Inputs) -> Replay:
    """Run graph and model on an input the graph was not recorded with and compare."""
    other = vary_inputs(inputs, seed=1)
    try:
        graph_module = build_graph_module(working, graph, constants).eval()
    except Exception as error:  # generated code can fail in any way; the graph then serves costs and pictures only
        return Replay(False, float("inf"), f"the graph cannot be turned into code: {type(error).__name__}: {error}")
    with torch.no_grad():
        return compare_runs(working, graph_module.forward, other)  # its call prints what it raises


def compare_runs(model: nn.Module, graph_module: Callable[..., Any], inputs: Inputs) -> Replay:
    """How far a graph module is from the model on one input; both draw the same random numbers."""
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        try:
            torch.manual_seed(0)
            expected = list(find_tensors(inputs.call(model)))
        except Exception as error:  # the model itself cannot run on another input: nothing to compare with
            return Replay(False, float("inf"), f"the model fails on a second input: {type(error).__name__}: {error}")
        try:
            torch.manual_seed(0)
            got = list(find_tensors(inputs.call(graph_module)))
        except NameError as error:  # generated code names objects that only the model's own code can make
            return Replay(False, float("inf"), f"the model hands objects around that a graph cannot hold: {error}")
        except Exception as error:  # the path taken depends on the data
            return Replay(False, float("inf"), f"the graph fails on a second input: {type(error).__name__}: {error}")
    return compare_outputs(expected, got)


def compare_outputs(expected: list[Tensor], got: list[Tensor]) -> Replay:
    """Compare two lists of output tensors."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in got]:
        return Replay(False, float("inf"), "the output shapes depend on the data")
    difference = max((_difference(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)
    if difference <= EXACT:
        return Replay(True, difference)
    why = "the path depends on the data, or hooks, autocast or random numbers change it"
    return Replay(False, difference, f"its output differs by {difference:.1e}: {why}")


def _difference(expected: Tensor, got: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    gap = (expected.to(wide) - got.to(wide)).abs().nan_to_num(nan=float("inf")).max()
    return float(gap / expected.to(wide).abs().max().clamp_min(1e-30)) if gap > 0 else 0.0


def _make_nodes(recording: Recording, working: nn.Module, own_layers: Mapping[str, LayerSpec]) -> tuple[Node, ...]:
    priced: set[int] = set()
    return tuple(_make_node(node, recording, working, priced, own_layers) for node in recording.graph.nodes)


def _make_node(
    node: torch.fx.Node, recording: Recording, working: nn.Module, priced: set[int], own_layers: Mapping[str, LayerSpec]
) -> Node:
    call = recording.calls[node.name]
    path = str(node.target) if node.op == "call_module" else call.path
    counts = Counter(operation.name for operation in call.operations)
    return Node(
        name=node.name,
        kind=_KINDS[node.op],
        operation=_operation_name(node, working),
        path=path,
        stack=call.stack,
        inputs=tuple(source.name for source in node.all_input_nodes),
        input_shapes=call.input_shapes,
        output_shapes=call.output_shapes,
        call=call.call,
        calls=recording.module_calls.get(path, 1) if node.op == "call_module" else 1,
        layer=own_layers.get(path, describe_layer(working.get_submodule(path))) if node.op == "call_module" else None,
        cost=add_costs(call.operations) + Cost(params=_new_params(node, working, priced)),
        operations=tuple(sorted(counts.items())),
        uncounted=tuple(list_uncounted(call.operations)),
        source=call.source,
        weight=call.weight,
    )


def _list_functional(structure: ModelGraph) -> tuple[FunctionalLayer, ...]:
    return tuple(_functional_layer(node) for node in structure.nodes if node.weight)


def _functional_layer(node: Node) -> FunctionalLayer:
    weight = "" if node.weight in (CONSTANT, COMPUTED) else node.weight
    return FunctionalLayer(node.name, node.operation, node.path, weight, node.source, node.cost.macs)


def _operation_name(node: torch.fx.Node, working: nn.Module) -> str:
    if node.op == "call_module":
        return type(working.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        if node.target is getattr:
            return f"get {node.args[1]}"
        return str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return str(node.target).strip("_")
    return node.op if node.op == "output" else str(node.target)


def _new_params(node: torch.fx.Node, working: nn.Module, priced: set[int]) -> int:
    """Parameters that this node is the first to use."""
    if node.op == "call_module":
        used = list(working.get_submodule(str(node.target)).parameters())
    elif node.op == "get_attr" and not str(node.target).startswith("_constant_"):
        used = [value for value in [_get_tensor(working, str(node.target))] if isinstance(value, nn.Parameter)]
    else:
        return 0
    fresh = [parameter for parameter in used if id(parameter) not in priced]
    priced.update(id(parameter) for parameter in fresh)
    return sum(parameter.numel() for parameter in fresh)


def _list_unexecuted(working: nn.Module, recording: Recording) -> dict[str, str]:
    read = {str(node.target) for node in recording.graph.nodes if node.op == "get_attr"}
    reasons = {}
    for path, module in working.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or recording.module_calls.get(path):
            continue
        reasons[path] = _why_unexecuted(module, read_by_function=f"{path}.weight" in read)
    return reasons


def _why_unexecuted(module: nn.Module, *, read_by_function: bool) -> str:
    if "forward" in vars(module):
        return "its forward was replaced on this object: what it computes is not what its class says"
    return "its weight is used by a function, not by calling it" if read_by_function else "not executed by this input"


def _recording_notes(recording: Recording) -> tuple[str, ...]:
    notes = []
    if recording.constants:
        notes.append(f"{len(recording.constants)} tensors of unknown origin are constants in the recorded graph")
    if recording.value_reads:
        reads = ", ".join(f"{name} x{count}" for name, count in recording.value_reads.items())
        notes.append(f"the model looks at tensor values ({reads}): another input may take another path")
    notes.extend(
        f"operations inside {name}, which the recorded graph does not hold: {count}"
        for name, count in recording.regions.items()
    )
    return tuple(notes)
