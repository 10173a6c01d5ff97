"""Record one run of a model as a true ``torch.fx.Graph``.

Nothing is guessed and nothing is executed symbolically: the model runs once on real tensors, every call of a leaf
module becomes a ``call_module`` node and every torch function called outside a leaf becomes a ``call_function`` or
``call_method`` node. So every model that runs can be recorded, whatever control flow it has.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from bottleneck_opt.costs import Operation, OperationRecorder
from bottleneck_opt.inputs import Inputs, find_tensors

_READS_VALUES = frozenset(
    ["item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "unique", "argwhere"]
)
# Functions of a tensor that tell about it without looking at its values or giving a tensor of them.
_READS_ATTRIBUTES = frozenset(
    ["size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device", "type",
     "is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_pinned", "is_shared", "is_inference",
     "result_type", "__len__"]
)  # fmt: skip
_LAYER_FUNCTIONS = frozenset(
    ["linear", "convolution", "_convolution", "conv_tbc", "conv1d", "conv2d", "conv3d",
     "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)  # fmt: skip
_QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
AUTOCAST, TRANSFORM = "autocast", "torch.func"
CONSTANT, COMPUTED = "(constant)", "(computed)"
_METHODS: Mapping[int, str] = {
    id(getattr(torch.Tensor, name)): name for name in sorted(dir(torch.Tensor)) if callable(getattr(torch.Tensor, name))
}


@dataclass(frozen=True)
class Call:
    """What happened at one graph node, beside what the node itself says.

    Attributes:
        source: For a convolution or linear function, the line of the model's code that called it.
        weight: For the same, the path of its weight, or that it is computed or a constant.
    """

    path: str
    stack: tuple[tuple[str, str], ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    operations: tuple[Operation, ...] = ()
    call: int = 0
    source: str = ""
    weight: str = ""


@dataclass(frozen=True)
class Recording:
    """A recorded run.

    Attributes:
        graph: The run.
        calls: For each node name, what happened there.
        module_calls: How often each leaf module was called, by path.
        constants: Tensors of unknown origin that are baked in, by attribute name.
        value_reads: How often the run looked at tensor values to decide something, by function.
        weight_reads: For each leaf whose parameters' values were used other than by calling it, the class of the user.
        attribute_reads: For each other leaf of which only the weight's shape, dtype or the like were read, the reader.
        regions: How many nodes ran inside ``autocast`` or a ``torch.func`` transform, which the graph does not hold.
        operations: Every tensor operation of the run.
        output: What the model returned.
    """

    graph: torch.fx.Graph
    calls: Mapping[str, Call]
    module_calls: Mapping[str, int]
    constants: Mapping[str, Tensor]
    value_reads: Mapping[str, int]
    weight_reads: Mapping[str, str]
    attribute_reads: Mapping[str, str]
    regions: Mapping[str, int]
    operations: tuple[Operation, ...]
    output: Any


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one node: any convolution or Linear, childless torch.nn modules, quantised and ScriptModules.

    A module whose forward was replaced on the object itself is entered: what it computes is not what its class says.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if "forward" in vars(module):
        return False
    if isinstance(module, _ConvNd | nn.Linear) or type(module).__module__.startswith(_QUANTISED):
        return True
    if isinstance(module, nn.Sequential):  # an empty one, as many networks use for "no shortcut", does nothing
        return False
    return type(module).__module__.startswith("torch.nn.modules") and next(module.children(), None) is None


@contextmanager
def observe_calls(observer: Callable[[Callable[..., Any], nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Route every ``module(...)`` of this thread through ``observer(original_call, module, args, kwargs)``."""
    original = nn.Module.__call__
    owner = threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return original(module, *args, **kwargs)
        return observer(original, module, args, kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


@contextmanager
def observe_weights(note: Callable[[nn.Module, str], None]) -> Iterator[None]:
    """Call ``note(module, reader)`` whenever code of this thread reads a module's ``weight`` that is a parameter.

    ``reader`` is the name of the Python module whose code reads.
    """
    original = nn.Module.__getattr__
    owner = threading.get_ident()

    def read(module: nn.Module, name: str) -> Any:
        if name == "weight" and threading.get_ident() == owner:
            note(module, _module_name(sys._getframe(1)))
        return original(module, name)

    nn.Module.__getattr__ = read  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = original  # type: ignore[method-assign]


def record_run(model: nn.Module, inputs: Inputs, own_layers: Collection[str] = ()) -> Recording:
    """Run the model once and write down what it did.

    The model is run as it is, in the mode it is in; the caller passes a copy. Whatever the model raises is raised.
    """
    recorder = _Recorder(model, own_layers)
    own = inputs.copy()
    recorder.add_placeholders(model, own)
    observed = observe_calls(recorder.observe), observe_weights(recorder.note_weight)
    with observed[0], observed[1], recorder.counter, recorder:
        output = own.hand_over(model)
    return recorder.finish(output)


@dataclass
class _Origin:
    """The node that made a tensor, and how to reach the tensor in what the node made. The tensor is not kept alive."""

    tensor: Callable[[], Tensor | None]
    node: torch.fx.Node
    keys: tuple[Any, ...]


@dataclass
class _State:
    """What is known so far about the tensors of a run."""

    origins: dict[int, _Origin] = field(default_factory=dict)

    def find(self, tensor: Tensor) -> _Origin | None:
        """Where a tensor comes from; its identity alone may be that of another that is gone."""
        origin = self.origins.get(id(tensor))
        return origin if origin is not None and origin.tensor() is tensor else None

    def learn(self, tensor: Tensor, node: torch.fx.Node, keys: tuple[Any, ...] = ()) -> None:
        self.origins[id(tensor)] = _Origin(weakref.ref(tensor), node, keys)


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, own_layers: Collection[str]) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.counter = OperationRecorder()
        self.calls: dict[str, Call] = {}
        self.constants: dict[str, Tensor] = {}
        self.value_reads: Counter[str] = Counter()
        self.module_calls: Counter[str] = Counter()
        self.weight_reads: dict[str, str] = {}
        self.attribute_reads: dict[str, str] = {}
        self.regions: Counter[str] = Counter()
        self._state = _State()
        self._stack: list[tuple[str, str]] = []
        self._leaf: tuple[str, str] | None = None
        self._paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self._model = model
        self._own_layers = frozenset(own_layers)
        self._attributes = _attribute_paths(model)
        scripts = torch.jit.ScriptModule  # their parameters are out of sight
        named = model.named_modules()
        leaves = {path: m for path, m in named if self._is_leaf(path, m) and not isinstance(m, scripts)}
        self._owners = _owner_paths(leaves)
        self._weights = {path: leaf._parameters.get("weight") for path, leaf in leaves.items()}
        self._devices = {"cpu", next(model.parameters(), torch.empty(0)).device.type} - {"meta"}

    # -- what is called -------------------------------------------------------------------------------------------

    def observe(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self._paths.get(id(module))
        if self._leaf or path is None:
            return original(module, *args, **kwargs)
        if self._is_leaf(path, module):
            return self._call_leaf(original, module, path, args, kwargs)
        self._stack.append((path, type(module).__name__))
        try:
            return original(module, *args, **kwargs)
        finally:
            self._stack.pop()

    def _is_leaf(self, path: str, module: nn.Module) -> bool:
        return bool(path) and (path in self._own_layers or is_leaf(module))

    def note_weight(self, module: nn.Module, reader: str) -> None:
        """Note that code outside a leaf reads a weight; torch's own layers hand it to unseen kernels."""
        path = self._paths.get(id(module))
        if path is None or path not in self._weights or (self._leaf and path == self._leaf[0]):
            return
        reads = self.weight_reads if reader.startswith("torch.nn.") else self.attribute_reads
        reads[path] = self._caller()

    def _note_use(self, name: str, tensors: Sequence[Tensor], output: Any) -> None:
        """Note that a function took the parameters of leaves other than the one it runs in."""
        owners = [self._owners[id(tensor)] for tensor in tensors if id(tensor) in self._owners]
        paths = [path for each in owners if not self._leaf or self._leaf[0] not in each for path in each]
        if not paths:
            return
        harmless = name in _READS_ATTRIBUTES or name == "__get__"
        if harmless and next(find_tensors(output), None) is None:
            self.attribute_reads.update((path, self._caller()) for path in paths)
        else:
            self.weight_reads.update((path, self._caller()) for path in paths)

    def _caller(self) -> str:
        innermost = self._leaf or (self._stack[-1] if self._stack else ("", type(self._model).__name__))
        return innermost[1]

    def _call_leaf(self, original: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        started = len(self.counter.operations)
        self._leaf = (path, type(module).__name__)
        try:
            shapes = _shapes((args, kwargs))
            swapped = path in self._weights and module._parameters.get("weight") is not self._weights[path]
            output = original(module, *args, **kwargs)
            node_args, node_kwargs = self._arguments(args), self._arguments(kwargs)
            node = self.graph.call_module(path, node_args, node_kwargs)
            self._note(node, output, shapes, path=path, started=started, call=self.module_calls[path])
        finally:
            self._leaf = None
        if swapped:  # as torch.func.functional_call does
            self.weight_reads[path] = self._caller()
        self.module_calls[path] += 1
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        started = len(self.counter.operations)
        tensors = list(find_tensors((args, kwargs)))
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        self._note_use(name, tensors, output)
        if self._leaf:
            return output
        if name in _READS_VALUES:
            self.value_reads[name] += 1
        if next(find_tensors(output), None) is not None or _writes_in_place(name, kwargs):
            node = self._function_node(func, args, kwargs)
            self._note(node, output, shapes, path=self._stack[-1][0] if self._stack else "", started=started)
            if name.partition(".")[0] in _LAYER_FUNCTIONS:
                self._note_layer_function(node)
        return output

    def _note_layer_function(self, node: torch.fx.Node) -> None:
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        origin = COMPUTED
        if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
            origin = CONSTANT if weight.target in self.constants else str(weight.target)
        self.calls[node.name] = dataclasses.replace(
            self.calls[node.name], source=_find_source(sys._getframe(1)), weight=origin
        )

    def _function_node(self, func: Any, args: Any, kwargs: Any) -> torch.fx.Node:
        node_args, node_kwargs = self._arguments(args), self._arguments(kwargs)
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name in ("__get__", "__set__") and inspect.isgetsetdescriptor(owner):
            if name == "__get__":
                return self.graph.call_function(getattr, (node_args[0], owner.__name__))
            return self.graph.call_function(setattr, (node_args[0], owner.__name__, node_args[1]))
        method = _METHODS.get(id(func))
        if method is not None and isinstance(args[0], Tensor):
            return self.graph.call_method(method, node_args, node_kwargs)
        return self.graph.call_function(func, node_args, node_kwargs)

    def _note(
        self,
        node: torch.fx.Node,
        output: Any,
        shapes: tuple[tuple[int, ...], ...],
        *,
        path: str,
        started: int,
        call: int = 0,
    ) -> None:
        self._produce(node, output)
        region = _current_region(self._devices)
        if region:
            self.regions[region] += 1
            node.meta["region"] = region
        operations = tuple(self.counter.operations[started:])
        record = Call(path, tuple(self._stack), shapes, _shapes(output), operations, call)
        self.calls[node.name] = record
        node.meta.update(
            path=path, stack=record.stack, input_shapes=shapes, output_shapes=record.output_shapes, call=call
        )

    # -- where tensors come from ----------------------------------------------------------------------------------

    def add_placeholders(self, model: nn.Module, inputs: Inputs) -> None:
        names = _argument_names(model, len(inputs.args))
        for name, value in [*zip(names, inputs.args, strict=True), *inputs.kwargs.items()]:
            node = self.graph.placeholder(name)
            self.calls[node.name] = Call("", (), (), _shapes(value))
            self._produce(node, value)

    def _produce(self, node: torch.fx.Node, value: Any, keys: tuple[Any, ...] = ()) -> None:
        """Remember that a value, or each tensor inside it, comes from a node."""
        if isinstance(value, Tensor):
            self._state.learn(value, node, keys)
            inner = _unwrap_transform(value)
            if inner is not value:  # what a torch.func transform hands back is the tensor inside
                self._produce(node, inner, keys)
            return
        for key, item in _items(value):
            self._produce(node, item, (*keys, key))

    def _producer(self, tensor: Tensor) -> torch.fx.Node:
        origin = self._state.find(tensor)
        if origin is None:
            return self._find_producer(tensor)
        if origin.keys:
            origin.node, origin.keys = self._take_part(origin.node, origin.keys), ()
        return origin.node

    def _find_producer(self, tensor: Tensor) -> torch.fx.Node:
        inner = _unwrap_transform(tensor)
        if inner is not tensor:
            return self._producer(inner)
        path = self._attributes.get(id(tensor))
        if path is None:
            path = f"_constant_{len(self.constants)}"
            self.constants[path] = self._keep(tensor)
        node = self._quiet(self.graph.create_node("get_attr", path), path.rpartition(".")[0], tensor)
        self._state.learn(tensor, node)
        return node

    def _keep(self, tensor: Tensor) -> Tensor:
        """A copy that later code may use in any way, and that is no operation of the run."""
        ran = len(self.counter.operations)
        with torch.inference_mode(False), torch.no_grad():
            kept = tensor.detach().clone()
        del self.counter.operations[ran:]
        return kept

    def _take_part(self, node: torch.fx.Node, keys: tuple[Any, ...]) -> torch.fx.Node:
        for kind, key in keys:
            take = operator.getitem if kind == "item" else getattr
            node = self._quiet(self.graph.call_function(take, (node, key)), self.calls[node.name].path, None)
        return node

    def _quiet(self, node: torch.fx.Node, path: str, value: Any) -> torch.fx.Node:
        """Note a node that runs nothing."""
        self.calls[node.name] = Call(path, tuple(self._stack), (), _shapes(value))
        return node

    def _arguments(self, value: Any) -> Any:
        """Arguments with every tensor replaced by the node it comes from."""
        if isinstance(value, Tensor):
            return self._producer(value)
        if isinstance(value, slice):
            return slice(self._arguments(value.start), self._arguments(value.stop), self._arguments(value.step))
        if isinstance(value, tuple | list):
            return self._sequence(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {part.name: getattr(value, part.name) for part in dataclasses.fields(value) if part.init}
            return self._quiet(self.graph.call_function(type(value), (), self._arguments(fields)), "", None)
        if isinstance(value, dict):
            return {key: self._arguments(item) for key, item in value.items()}
        return value.item() if isinstance(value, np.generic) else value

    def _sequence(self, value: tuple[Any, ...] | list[Any]) -> Any:
        items = [self._arguments(item) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)

    def finish(self, output: Any) -> Recording:
        node = self.graph.output(self._arguments(output))
        self.calls[node.name] = Call("", (), _shapes(output), _shapes(output))
        harmless = {path: by for path, by in self.attribute_reads.items() if path not in self.weight_reads}
        return Recording(
            self.graph, self.calls, dict(self.module_calls), self.constants, dict(sorted(self.value_reads.items())),
            self.weight_reads, harmless, dict(self.regions), tuple(self.counter.operations), output,
        )  # fmt: skip


def _owner_paths(leaves: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """The leaves that own each parameter, by the parameter's identity."""
    owners: dict[int, list[str]] = {}
    for path, leaf in leaves.items():
        for parameter in leaf._parameters.values():
            owners.setdefault(id(parameter), []).append(path)
    return owners


def _current_region(devices: Iterable[str]) -> str:
    """The name of a region that changes what the code inside it means; empty outside one."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return TRANSFORM
    return AUTOCAST if any(map(torch.is_autocast_enabled, devices)) else ""


def _unwrap_transform(tensor: Tensor) -> Tensor:
    """The tensor inside those that vmap and other torch.func transforms hand to a function."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _find_source(frame: FrameType | None) -> str:
    """File and line of the innermost code that is neither torch's nor this recorder's."""
    while frame is not None:
        name = _module_name(frame)
        if name != __name__ and name.partition(".")[0] != "torch":
            parts = Path(frame.f_code.co_filename).parts[-len(name.split(".")) :]
            return f"{'/'.join(parts)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _module_name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _attribute_paths(model: nn.Module) -> dict[int, str]:
    tensors = [*model.named_buffers(), *model.named_parameters()]
    return {id(tensor): path for path, tensor in tensors}


def _argument_names(model: nn.Module, count: int) -> list[str]:
    """Names for positional arguments: the forward method's own where it has them."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a forward written in C or script has no signature
        parameters = ()  # type: ignore[assignment]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    return [names[index] if index < len(names) else f"arg_{index}" for index in range(count)]


def _items(value: Any) -> Iterator[tuple[tuple[str, Any], Any]]:
    """The direct parts of a nested value with how to reach each: by item or by attribute."""
    if isinstance(value, Mapping):
        yield from ((("item", key), item) for key, item in value.items())
    elif isinstance(value, tuple | list):
        yield from ((("item", index), item) for index, item in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((("attribute", part.name), getattr(value, part.name)) for part in dataclasses.fields(value))


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in find_tensors(value))


def _writes_in_place(name: str, kwargs: Mapping[str, Any]) -> bool:
    return name in ("__setitem__", "__set__") or "out" in kwargs or (name.endswith("_") and not name.endswith("__"))
