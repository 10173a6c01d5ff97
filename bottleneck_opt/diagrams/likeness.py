"""When two blocks are drawn as one: the same operations, wired alike, changed alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import networkx as nx
from networkx.algorithms.isomorphism import DiGraphMatcher, categorical_edge_match, categorical_node_match

from bottleneck_opt.diagrams.picture import Edge, Part

_LARGEST = 200  # parts in a block whose wiring is compared in any order


class Likeness:
    """Finds which part of one block is which part of another.

    Example:
        >>> from bottleneck_opt.diagrams.units import Unit
        >>> from bottleneck_opt.graph import Node
        >>> def part(path):
        ...     return Part(path, Unit((Node(path, "module", path[-4:], path, (), (), (), ()),), ()))
        >>> likeness = Likeness([Edge("a.relu", "a.conv"), Edge("b.relu", "b.conv")])
        >>> likeness.match([part("a.relu"), part("a.conv")], [part("b.conv"), part("b.relu")])
        (1, 0)
    """

    def __init__(self, edges: Iterable[Edge]) -> None:
        self._graphs: dict[tuple[bool, tuple[str, ...]], nx.DiGraph[int]] = {}
        self._incoming: dict[str, list[Edge]] = {}
        for edge in edges:
            self._incoming.setdefault(edge.target, []).append(edge)

    def match(self, one: Sequence[Part], other: Sequence[Part], *, loose: bool = False) -> tuple[int, ...] | None:
        """For each part of one block the index of its twin in the other; None where the blocks differ.

        Names do not count: blocks may call their layers what they like, and run parallel branches in any order.

        Args:
            one, other: Everything in the blocks.
            loose: Leave numbers out: widths, ranks, costs, how many tensors enter.
        """
        if len(one) != len(other):
            return None
        graphs = [self._graph(parts, loose=loose) for parts in (one, other)]
        if _description(graphs[0]) == _description(graphs[1]):
            return tuple(range(len(one)))
        if len(one) > _LARGEST or sorted(_labels(graphs[0])) != sorted(_labels(graphs[1])):
            return None
        nodes, edges = categorical_node_match("label", ""), categorical_edge_match("change", "")
        matcher = DiGraphMatcher(graphs[0], graphs[1], node_match=nodes, edge_match=edges)
        if not matcher.is_isomorphic():
            return None
        return tuple(matcher.mapping[index] for index in range(len(one)))

    def _graph(self, parts: Sequence[Part], *, loose: bool) -> nx.DiGraph[int]:
        """The block's wiring; it is asked for at every level of folding."""
        key = (loose, tuple(part.key for part in parts))
        if key not in self._graphs:
            self._graphs[key] = self._make_graph(parts, loose=loose)
        return self._graphs[key]

    def _make_graph(self, parts: Sequence[Part], *, loose: bool) -> nx.DiGraph[int]:
        """The block's wiring; what comes from outside is in a part's label."""
        numbers = {part.key: index for index, part in enumerate(parts)}
        graph: nx.DiGraph[int] = nx.DiGraph()
        for part in parts:
            outside = sum(edge.source not in numbers for edge in self._incoming.get(part.key, []))
            graph.add_node(
                numbers[part.key], label=repr((*_looks(part, loose=loose), bool(outside) if loose else outside))
            )
        for part in parts:
            for edge in self._incoming.get(part.key, []):
                if edge.source in numbers:
                    graph.add_edge(numbers[edge.source], numbers[part.key], change=edge.change.value)
        return graph


def _labels(graph: nx.DiGraph[int]) -> list[str]:
    return [str(label) for _, label in graph.nodes(data="label")]


def _description(graph: nx.DiGraph[int]) -> tuple[object, ...]:
    """Equal for graphs that are the same in the same order."""
    return (_labels(graph), sorted(graph.edges(data="change")))


def _looks(part: Part, *, loose: bool) -> tuple[object, ...]:
    unit, step = part.unit, part.step
    what = (unit.title, part.change.value, step.form if step else "", len(step.layers) if step else 0)
    if loose:
        return what
    shapes = (unit.head.input_shapes, unit.nodes[-1].output_shapes)
    return (*what, shapes, unit.cost, step.ranks if step else ())
