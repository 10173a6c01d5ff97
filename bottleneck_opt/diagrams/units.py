"""Group the nodes of a recorded run into the units a picture shows: a layer with its normalisation and activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bottleneck_opt.graph import Cost, ModelGraph, Node

_PLUMBING = frozenset(
    ["getitem", "getattr", "get", "size", "shape", "dim", "numel", "contiguous", "detach", "to", "float", "clone",
     "type", "type_as", "identity", "sequential", "dropout", "dropout1d", "dropout2d", "dropout3d"]
)  # fmt: skip
_ACTIVATIONS = frozenset(
    ["celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "leakyrelu",
     "logsigmoid", "log_softmax", "logsoftmax", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu",
     "softmax", "softplus", "softsign", "swish", "tanh"]
)  # fmt: skip
_NORMALISATIONS = {
    "batchnorm": "BN", "batch_norm": "BN", "syncbatchnorm": "BN", "layernorm": "LN", "layer_norm": "LN",
    "groupnorm": "GN", "group_norm": "GN", "instancenorm": "IN", "instance_norm": "IN",
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """Operations drawn as one box: a head, such as a convolution, and what directly follows it.

    Attributes:
        nodes: The operations, head first.
        inputs: Head names of the units it reads.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]

    @property
    def head(self) -> Node:
        """The operation that the unit is named after."""
        return self.nodes[0]

    @property
    def cost(self) -> Cost:
        """The costs of its operations added up."""
        return sum((node.cost for node in self.nodes), Cost())

    @property
    def title(self) -> str:
        """What it does: ``conv 3x3 | BN | ReLU``."""
        return " | ".join(map(operation_label, self.nodes))


def group_units(structure: ModelGraph, *, split: bool = False) -> tuple[Unit, ...]:
    """The units of a run, in the order their heads ran.

    Parameters, constants, indexing and reshaping helpers are left out; their readers read what they read.

    Args:
        structure: The run.
        split: Every operation is a unit of its own.

    Example:
        >>> x = Node("x", "input", "x", "", (), (), (), ((1, 3),))
        >>> linear = Node("fc", "module", "Linear", "fc", (), ("x",), ((1, 3),), ((1, 2),))
        >>> relu = Node("relu", "function", "relu", "", (), ("fc",), ((1, 2),), ((1, 2),))
        >>> [unit.title for unit in group_units(ModelGraph((x, linear, relu)))]
        ['input', 'Linear | relu']
    """
    drawn = [node for node in structure.nodes if is_drawn(node)]
    reads = _visible_inputs(structure)
    heads = {node.name: node.name for node in drawn} if split else _heads(drawn, reads)
    members: dict[str, list[Node]] = {}
    for node in drawn:
        members.setdefault(heads[node.name], []).append(node)
    return tuple(
        Unit(tuple(nodes), tuple(dict.fromkeys(heads[name] for name in reads[head]))) for head, nodes in members.items()
    )


def is_drawn(node: Node) -> bool:
    """Whether an operation is worth drawing: not a parameter, a constant, an index or a no-op."""
    if node.kind in ("input", "output"):
        return True
    operation = _plain(node.operation)
    return node.kind != "attribute" and operation not in _PLUMBING and not operation.startswith("get ")


def operation_label(node: Node) -> str:
    """Short name of one operation: ``conv 3x3/2``, ``BN``, ``add``."""
    if node.kind in ("input", "output"):
        return node.kind
    if node.layer is not None:
        return node.layer.label + _groups_label(node)
    return _normalisation(node) or node.operation.strip("_") or node.operation


def _groups_label(node: Node) -> str:
    if node.layer is None or node.layer.groups == 1:
        return ""
    return " depthwise" if node.layer.groups == node.layer.in_channels else f" groups {node.layer.groups}"


def _normalisation(node: Node) -> str:
    return _NORMALISATIONS.get(_plain(node.operation).rstrip("123d").rstrip("_"), "")


def _plain(operation: str) -> str:
    return operation.lower().strip("_")


def _follows(node: Node, head: Node) -> bool:
    """Whether an operation may share the box of the one before it: an activation, or a layer's normalisation."""
    if node.kind not in ("module", "function"):
        return False
    return _plain(node.operation) in _ACTIVATIONS or (head.kind == "module" and bool(_normalisation(node)))


def _visible_inputs(structure: ModelGraph) -> dict[str, tuple[str, ...]]:
    """For each node the drawn nodes it reads, directly or through nodes that are not drawn."""
    through: dict[str, tuple[str, ...]] = {}
    reads: dict[str, tuple[str, ...]] = {}
    for node in structure.nodes:
        reads[node.name] = tuple(dict.fromkeys(name for source in node.inputs for name in through.get(source, ())))
        through[node.name] = (node.name,) if is_drawn(node) else reads[node.name]
    return reads


def _heads(drawn: Iterable[Node], reads: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """For each drawn node the head of the unit it belongs to."""
    drawn = tuple(drawn)
    readers: dict[str, list[str]] = {}
    for node in drawn:
        for source in reads[node.name]:
            readers.setdefault(source, []).append(node.name)
    heads: dict[str, str] = {}
    by_name = {node.name: node for node in drawn}
    inputs = {node.name for node in drawn if node.kind == "input"}
    for node in drawn:
        sources = reads[node.name]
        alone = len(sources) == 1 and readers[sources[0]] == [node.name] and sources[0] not in inputs
        head = heads[sources[0]] if alone else node.name
        heads[node.name] = head if alone and _follows(node, by_name[head]) else node.name
    return heads
