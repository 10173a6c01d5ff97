"""The frozen picture of a model: nodes, edges, shapes and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import networkx as nx
import torch.fx
from torch import Tensor

from bottleneck_opt.inputs import Inputs
from bottleneck_opt.layers import LayerSpec


@dataclass(frozen=True)
class Cost:
    """What a node or a model costs for one example input.

    Attributes:
        macs: Multiply-adds in convolutions and matrix products; one multiply and one add are ONE.
        params: Parameters, each counted once however often it is used.
        other: Operations that fvcore estimates for everything else (normalisation, pooling, resizing).
        latency: Nanoseconds; 0 throughout where time is not limited.
    """

    macs: int = 0
    params: int = 0
    other: int = 0
    latency: int = 0

    def __add__(self, more: Cost) -> Cost:
        return Cost(
            self.macs + more.macs, self.params + more.params, self.other + more.other, self.latency + more.latency
        )  # fmt: skip

    def __sub__(self, less: Cost) -> Cost:
        return Cost(
            self.macs - less.macs, self.params - less.params, self.other - less.other, self.latency - less.latency
        )  # fmt: skip

    @property
    def flops(self) -> int:
        """Floating-point operations of the convolutions and matrix products: two for each multiply-add."""
        return 2 * self.macs


@dataclass(frozen=True)
class Node:
    """One operation of a recorded run.

    Attributes:
        name: Unique; the name of the ``torch.fx`` node.
        kind: ``input``, ``module``, ``function``, ``attribute`` (a parameter, buffer or constant) or ``output``.
        operation: What it does: ``Conv2d``, ``BatchNorm2d``, ``relu``, ``add``.
        path: Path of the module that is called, or, for a function, of the module whose code called it.
        stack: The modules around it, outermost first, as ``(path, class name)``.
        inputs: Names of the nodes it reads.
        input_shapes, output_shapes: Shapes of the tensors read and made, batch axis included.
        call, calls: This is call number ``call`` (from 0) of ``calls`` to the same module.
        layer: The description of a Conv2d or Linear.
        operations: The tensor operations that ran inside, as ``aten`` names with their count.
        uncounted: Those of them that no formula counts.
        source: For a convolution or linear function, the line of the model's code that called it, as ``file:line``.
        weight: For the same, the path of the parameter or buffer that is its weight, ``(computed)`` or ``(constant)``.
    """

    name: str
    kind: str
    operation: str
    path: str
    stack: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    call: int = 0
    calls: int = 1
    layer: LayerSpec | None = None
    cost: Cost = Cost()
    operations: tuple[tuple[str, int], ...] = ()
    uncounted: tuple[str, ...] = ()
    source: str = ""
    weight: str = ""


@dataclass(frozen=True)
class ModelGraph:
    """Nodes in the order they ran; edges are each node's ``inputs``."""

    nodes: tuple[Node, ...]

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError when there is none."""
        return {node.name: node for node in self.nodes}[name]

    def calls_of(self, *paths: str) -> tuple[Node, ...]:
        """The calls of the modules at these paths, in order."""
        return tuple(node for node in self.nodes if node.kind == "module" and node.path in paths)

    def networkx(self) -> nx.DiGraph[str]:
        """A new directed graph over node names; each carries its :class:`Node` as ``node``.

        Example:
            >>> one = Node("x", "input", "x", "", (), (), (), ((1, 3),))
            >>> two = Node("y", "output", "output", "", (), ("x",), (), ())
            >>> list(ModelGraph((one, two)).networkx().edges)
            [('x', 'y')]
        """
        graph: nx.DiGraph[str] = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.name, node=node)
        graph.add_edges_from((source, node.name) for node in self.nodes for source in node.inputs)
        return graph


@dataclass(frozen=True)
class Replay:
    """What came of running the recorded graph on an input it was not recorded with.

    Attributes:
        exact: The graph gave the model's own output.
        difference: Largest absolute difference, relative to the largest output value.
        reason: Why it is not exact, in words; empty when it is.
    """

    exact: bool
    difference: float
    reason: str = ""


@dataclass(frozen=True)
class FunctionalLayer:
    """A convolution or linear function that the model's code called itself, without a layer module.

    Attributes:
        node: Name of its node.
        operation: The function: ``conv2d``, ``linear``.
        path: Path of the module whose code called it.
        weight: Path of the parameter or buffer that is its weight; empty when the weight is computed or a constant.
        source: The line of the model's code that called it, as ``file:line``.
        macs: Its multiply-adds in this call.
    """

    node: str
    operation: str
    path: str
    weight: str
    source: str
    macs: int


@dataclass(frozen=True)
class Traced:
    """A model's recorded run.

    Attributes:
        graph: The run as a true ``torch.fx.Graph``.
        structure: The same nodes, frozen, with shapes and costs.
        cost: The whole model's cost at the example input.
        replay: Whether the graph reproduces the model on a second input.
        inputs: The example input it was recorded with.
        constants: Tensors that came from outside the model and are baked into the graph, by attribute name.
        unexecuted: Convolutions and Linears that this input did not reach, with their reason.
        weight_reads: For each layer whose parameters' values were used other than by calling it, the class of the user.
        attribute_reads: For each other layer of which only the weight's shape, dtype or the like were read, the reader.
        functional: The convolution and linear functions called without a layer, in the order they ran.
        own_layers: Modules of the user's own that compute one convolution or matrix product, with that, by path.
        uncounted: Operations that no formula counts, with how often each ran.
        notes: What a careful reader should know about this recording.
    """

    graph: torch.fx.Graph
    structure: ModelGraph
    cost: Cost
    replay: Replay
    inputs: Inputs
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    unexecuted: Mapping[str, str] = field(default_factory=dict)
    weight_reads: Mapping[str, str] = field(default_factory=dict)
    attribute_reads: Mapping[str, str] = field(default_factory=dict)
    functional: tuple[FunctionalLayer, ...] = ()
    own_layers: Mapping[str, LayerSpec] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def networkx(self) -> nx.DiGraph[str]:
        """The structure as a networkx graph (see :meth:`ModelGraph.networkx`)."""
        return self.structure.networkx()
