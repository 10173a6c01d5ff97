"""Record one run of a model as a true ``torch.fx.Graph``.

Nothing is guessed and nothing is executed symbolically: the model runs once on real tensors, every call of a leaf
module becomes a ``call_module`` node and every torch function called outside a leaf becomes a ``call_function`` or
``call_method`` node. So every model that runs can be recorded, whatever control flow it has.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
_METHODS: Mapping[int, str] = {
    id(getattr(torch.Tensor, name)): name for name in sorted(dir(torch.Tensor)) if callable(getattr(torch.Tensor, name))
}


@dataclass(frozen=True)
class Call:
    """What happened at one graph node, beside what the node itself says."""

    path: str
    stack: tuple[tuple[str, str], ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    operations: tuple[Operation, ...] = ()
    call: int = 0


@dataclass(frozen=True)
class Recording:
    """A recorded run.

    Attributes:
        graph: The run.
        calls: For each node name, what happened there.
        module_calls: How often each leaf module was called, by path.
        constants: Tensors of unknown origin that are baked in, by attribute name.
        value_reads: How often the run looked at tensor values to decide something, by function.
        weight_reads: For each module whose weight was read other than by calling it, the class of the reader.
        operations: Every tensor operation of the run.
        output: What the model returned.
    """

    graph: torch.fx.Graph
    calls: Mapping[str, Call]
    module_calls: Mapping[str, int]
    constants: Mapping[str, Tensor]
    value_reads: Mapping[str, int]
    weight_reads: Mapping[str, str]
    operations: tuple[Operation, ...]
    output: Any


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one node: any convolution or Linear, childless torch.nn modules, ScriptModules."""
    if isinstance(module, _ConvNd | nn.Linear | torch.jit.ScriptModule):
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
def observe_weights(note: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call ``note(module)`` whenever code of this thread reads a module's ``weight`` that is a parameter."""
    original = nn.Module.__getattr__
    owner = threading.get_ident()

    def read(module: nn.Module, name: str) -> Any:
        if name == "weight" and threading.get_ident() == owner:
            note(module)
        return original(module, name)

    nn.Module.__getattr__ = read  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__getattr__ = original  # type: ignore[method-assign]


def record_run(model: nn.Module, inputs: Inputs) -> Recording:
    """Run the model once and write down what it did.

    The model is run as it is, in the mode it is in; the caller passes a copy. Whatever the model raises is raised.
    """
    recorder = _Recorder(model)
    own = inputs.copy()
    recorder.add_placeholders(model, own)
    observed = observe_calls(recorder.observe), observe_weights(recorder.note_weight)
    with observed[0], observed[1], recorder.counter, recorder:
        output = own.hand_over(model)
    return recorder.finish(output)


@dataclass
class _State:
    """What is known so far about the tensors of a run."""

    producers: dict[int, torch.fx.Node] = field(default_factory=dict)
    parts: dict[int, tuple[torch.fx.Node, tuple[Any, ...]]] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.counter = OperationRecorder()
        self.calls: dict[str, Call] = {}
        self.constants: dict[str, Tensor] = {}
        self.value_reads: Counter[str] = Counter()
        self.module_calls: Counter[str] = Counter()
        self.weight_reads: dict[str, str] = {}
        self._state = _State()
        self._stack: list[tuple[str, str]] = []
        self._inside_leaf = 0
        self._paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self._model = model
        self._attributes = _attribute_paths(model)

    # -- what is called -------------------------------------------------------------------------------------------

    def observe(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        path = self._paths.get(id(module))
        if self._inside_leaf or path is None:
            return original(module, *args, **kwargs)
        if path and is_leaf(module):
            return self._call_leaf(original, module, path, args, kwargs)
        self._stack.append((path, type(module).__name__))
        try:
            return original(module, *args, **kwargs)
        finally:
            self._stack.pop()

    def note_weight(self, module: nn.Module) -> None:
        path = self._paths.get(id(module))
        if path and not self._inside_leaf:
            self.weight_reads[path] = self._stack[-1][1] if self._stack else type(self._model).__name__

    def _call_leaf(self, original: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        started = len(self.counter.operations)
        shapes = _shapes((args, kwargs))
        self._inside_leaf += 1
        try:
            output = original(module, *args, **kwargs)
        finally:
            self._inside_leaf -= 1
        node_args, node_kwargs = self._arguments(args), self._arguments(kwargs)
        node = self.graph.call_module(path, node_args, node_kwargs)
        self._note(node, output, shapes, path=path, started=started, call=self.module_calls[path])
        self.module_calls[path] += 1
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside_leaf:
            return func(*args, **kwargs)
        started = len(self.counter.operations)
        shapes = _shapes((args, kwargs))
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _READS_VALUES:
            self.value_reads[name] += 1
        if next(find_tensors(output), None) is not None or _writes_in_place(name, kwargs):
            node = self._function_node(func, args, kwargs)
            path = self._stack[-1][0] if self._stack else ""
            self._note(node, output, shapes, path=path, started=started)
        return output

    def _function_node(self, func: Any, args: Any, kwargs: Any) -> torch.fx.Node:
        node_args, node_kwargs = self._arguments(args), self._arguments(kwargs)
        if getattr(func, "__name__", "") == "__get__" and inspect.isgetsetdescriptor(func.__self__):
            return self.graph.call_function(getattr, (node_args[0], func.__self__.__name__))
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
            self._state.alive.append(value)
            self._state.producers.pop(id(value), None)
            self._state.parts[id(value)] = (node, keys)
            return
        for key, item in _items(value):
            self._produce(node, item, (*keys, key))

    def _producer(self, tensor: Tensor) -> torch.fx.Node:
        known = self._state.producers.get(id(tensor))
        if known is None:
            known = self._state.producers[id(tensor)] = self._find_producer(tensor)
        return known

    def _find_producer(self, tensor: Tensor) -> torch.fx.Node:
        part = self._state.parts.get(id(tensor))
        if part is not None:
            return self._take_part(*part)
        self._state.alive.append(tensor)
        path = self._attributes.get(id(tensor))
        if path is None:
            path = f"_constant_{len(self.constants)}"
            self.constants[path] = tensor.detach().clone()
        return self._quiet(self.graph.create_node("get_attr", path), path.rpartition(".")[0], tensor)

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
        return Recording(
            self.graph, self.calls, dict(self.module_calls), self.constants, dict(sorted(self.value_reads.items())),
            self.weight_reads, tuple(self.counter.operations), output,
        )  # fmt: skip


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
