"""Find the pairs of layers between which channels can be dropped: one makes them, one alone reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.graph import Cost, Node, Traced
from bottleneck_opt.layers import LINEAR, LayerSpec
from bottleneck_opt.sites import Skip

_ELEMENTWISE = frozenset(
    ["relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh",
     "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "dropout", "alpha_dropout",
     "Identity", "ReLU", "ReLU6", "LeakyReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid", "Tanh",
     "Hardtanh", "Hardswish", "Hardsigmoid", "Softplus", "Softsign", "LogSigmoid", "Dropout", "AlphaDropout"]
)  # fmt: skip
_CHANNELWISE = frozenset(
    [f"{stem}{axes}d" for axes in (1, 2, 3) for stem in (
        "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "MaxPool", "AvgPool", "AdaptiveAvgPool",
        "AdaptiveMaxPool", "BatchNorm", "InstanceNorm", "dropout", "Dropout", "ZeroPad", "ConstantPad",
        "ReflectionPad", "ReplicationPad", "CircularPad",
    )] + ["SyncBatchNorm", "interpolate", "Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "PReLU"]
)  # fmt: skip
_POOLING_TO_ONE = frozenset(["mean", "flatten", "Flatten", "squeeze", "view", "reshape"])


@dataclass(frozen=True)
class Link:
    """A layer that makes channels and the one layer that reads them.

    Attributes:
        producer, consumer: Paths of the two layers.
        between: Paths of the modules between them that hold values for each channel, in the order they run.
        channels: How many channels there are.
        cost: What those modules cost for each channel.
    """

    producer: str
    consumer: str
    between: tuple[str, ...]
    channels: int
    cost: Cost


@dataclass(frozen=True)
class Links:
    """All links, in the order their consumers run, and why each other candidate's inputs cannot be dropped."""

    found: tuple[Link, ...]
    refused: Mapping[str, Skip]

    def without(self, refused: Mapping[str, Skip]) -> Links:
        """The same with some more consumers refused."""
        kept = tuple(link for link in self.found if link.consumer not in refused)
        return Links(kept, {**self.refused, **refused})


def find_links(working: nn.Module, traced: Traced, candidates: Candidates) -> Links:
    """Every candidate whose input channels come from one other candidate through channelwise operations only.

    Batch norm, activations, pooling, dropout, padding, resizing and depthwise convolutions treat each channel by
    itself. Everything else (a sum, a concatenation, a view, a second reader, an output) needs all channels to stay.

    Args:
        working: The recorded model.
        traced: Its recording.
        candidates: The layers that may be rewritten.
    """
    if not traced.replay.exact:
        reason = Skip("the recorded graph does not replay exactly: nothing says who else reads its input channels")
        return Links((), dict.fromkeys(candidates.layers, reason))
    search = _Search(working, traced.networkx(), candidates)
    answers = {path: search.find(node) for path, node in _single_calls(traced, candidates).items()}
    several = {path: Skip("it is called several times") for path in candidates.layers if path not in answers}
    found = tuple(answer for answer in answers.values() if isinstance(answer, Link))
    return Links(found, several | {path: answer for path, answer in answers.items() if isinstance(answer, Skip)})


def _single_calls(traced: Traced, candidates: Candidates) -> dict[str, Node]:
    """The nodes of the candidates that are called once, by path."""
    calls = {path: traced.structure.calls_of(*names) for path, names in candidates.names.items()}
    return {path: nodes[0] for path, nodes in calls.items() if len(nodes) == 1}


@dataclass(frozen=True)
class _Search:
    """Walks from a consumer back to its producer."""

    working: nn.Module
    graph: nx.DiGraph[str]
    candidates: Candidates

    def find(self, consumer: Node) -> Link | Skip:
        """The link that ends in a layer, or why there is none."""
        path = consumer.path
        obstacle = self._find_layer_obstacle(path) or _find_axis_obstacle(consumer, self.candidates.layers[path])
        if obstacle:
            return Skip(f"keeps its input channels: {obstacle}")
        between: list[str] = []
        cost, node, axes = Cost(), consumer, 2
        while True:
            sources = tuple(self.graph.predecessors(node.name))
            if len(sources) != 1:
                return Skip(f"keeps its input channels: {node.operation} reads {len(sources)} tensors")
            read, node = node, self._node(sources[0])
            readers = tuple(self.graph.successors(node.name))
            if len(readers) != 1:
                return Skip(f"keeps its input channels: {_name(node)} has {len(readers)} readers")
            if node.kind == "module" and node.path in self.candidates.layers:
                return self._end(node, consumer, axes, between, cost)
            obstacle = self._find_obstacle(node, read)
            if obstacle:
                return Skip(f"keeps its input channels: {obstacle}")
            axes = axes if _is_elementwise(node) else max(axes, len(node.input_shapes[0]))
            if node.kind == "module" and next(self.working.get_submodule(node.path).parameters(), None) is not None:
                between.insert(0, node.path)
            cost += self._cost_of_channel(node, self.candidates.layers[path].in_channels)

    def _end(
        self, producer: Node, consumer: Node, axes: int, between: Sequence[str], cost: Cost
    ) -> Link | Skip:  # fmt: skip
        """The link, or why there is none; ``axes``: of the largest tensor that was treated channel by channel."""
        layer, reader = self.candidates.layers[producer.path], self.candidates.layers[consumer.path]
        obstacle = self._find_layer_obstacle(producer.path)
        if not obstacle and producer.calls != 1:
            obstacle = "it is called several times"
        if not obstacle and (layer.out_channels != reader.in_channels or not _is_one_axis(layer, consumer, axes)):
            obstacle = "its channels are laid out anew on the way"
        if obstacle:
            return Skip(f"keeps its input channels: {producer.path} makes them, and {obstacle}")
        return Link(producer.path, consumer.path, tuple(between), layer.out_channels, cost)

    def _find_layer_obstacle(self, path: str) -> str:
        """Why a layer's channels must stay, in words; empty when they need not."""
        layer = self.candidates.layers[path]
        if layer.groups > 1:
            return f"it has groups={layer.groups}"
        if layer.subclass or path in self.candidates.probes:
            return f"it is no plain {layer.kind}"
        if len(self.candidates.names[path]) > 1:
            return "it has several names"
        return find_hook(self.working.get_submodule(path))

    def _find_obstacle(self, node: Node, reader: Node) -> str:
        """Why channels cannot be dropped across an operation, in words; empty when they can."""
        if len(node.output_shapes) != 1 or len(node.input_shapes) != 1:
            return f"{_name(node)} reads or makes several tensors"
        if not _is_channelwise(node):
            return f"{_name(node)} may mix or move channels"
        return self._find_module_obstacle(node) if node.kind == "module" else ""

    def _find_module_obstacle(self, node: Node) -> str:
        module = self.working.get_submodule(node.path)
        if type(module).__module__.partition(".")[0] != "torch":
            return f"{_name(node)} is a class of its own"
        if node.calls != 1 and next(module.parameters(), None) is not None:
            return f"{_name(node)} is called several times"
        values = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        owners = [each for each in self.working.modules() if any(id(p) in values for p in each._parameters.values())]
        if len(owners) > 1:
            return f"{_name(node)} shares its parameters"
        return find_hook(module)

    def _cost_of_channel(self, node: Node, channels: int) -> Cost:
        """What an operation costs for each channel; of its parameters, those with values a channel count."""
        parameters = self.working.get_submodule(node.path).parameters() if node.kind == "module" else ()
        params = sum(each.numel() for each in parameters if each.shape[:1] == (channels,))
        return Cost(node.cost.macs // channels, params // channels, node.cost.other // channels)

    def _node(self, name: str) -> Node:
        found: Node = self.graph.nodes[name]["node"]
        return found


def _name(node: Node) -> str:
    return f"{node.operation} '{node.path}'" if node.kind == "module" else node.operation


def find_hook(module: nn.Module) -> str:
    """Which hooks of a module may look at its channels, in words; empty when none do."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return f"{type(module).__name__} has a hook that may look at them" if any(hooks) else ""


def _find_axis_obstacle(consumer: Node, layer: LayerSpec) -> str:
    """Convolutions read their channels from axis 1 of a batch, Linears from the last axis."""
    shape = consumer.input_shapes[0]
    if layer.kind == LINEAR:
        return "" if len(shape) > 1 else "its input has no batch axis"
    return "" if len(shape) == len(layer.kernel) + 2 else "its input has no batch axis"


def _is_one_axis(producer: LayerSpec, consumer: Node, axes: int) -> bool:
    """Whether the axis that a producer writes its channels to is the one that the consumer reads them from."""
    if producer.kind == LINEAR:
        return consumer.operation == LINEAR and axes == 2
    return consumer.operation != LINEAR or len(consumer.input_shapes[0]) == 2


def _operation(node: Node) -> str:
    return node.operation.rstrip("_") if node.kind == "function" else node.operation


def _is_elementwise(node: Node) -> bool:
    return _operation(node) in _ELEMENTWISE


def _is_channelwise(node: Node) -> bool:
    """Whether an operation makes each channel from that channel alone, and leaves channels on their axis."""
    before, after = node.input_shapes[0], node.output_shapes[0]
    operation = _operation(node)
    if _is_elementwise(node):
        return before == after
    if len(before) < 2 or len(after) < 2 or before[1] != after[1]:
        return False
    if node.layer is not None:
        return node.layer.is_depthwise and node.layer.in_channels == node.layer.out_channels
    if operation in _POOLING_TO_ONE:
        return _leaves_one_position(operation, before, after)
    return operation in _CHANNELWISE and len(before) == len(after)


def _leaves_one_position(operation: str, before: Sequence[int], after: Sequence[int]) -> bool:
    """A mean over all positions, or the removal of axes of length 1."""
    positions = before[2:] if operation != "mean" else ()
    return len(before) > 2 and set(after[2:]) <= {1} and set(positions) <= {1} and before[0] == after[0]
