"""When two blocks are drawn as one: the same operations, wired alike, changed alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bottleneck_opt.diagrams.picture import Edge, Part


class Likeness:
    """Answers what two blocks must share to be drawn once.

    Example:
        >>> from bottleneck_opt.diagrams.units import Unit
        >>> from bottleneck_opt.graph import Node
        >>> def part(path):
        ...     return Part(path, Unit((Node(path, "module", "ReLU", path, (), (), (), ()),), ()))
        >>> likeness = Likeness([])
        >>> likeness.of("a", [part("a.relu")]) == likeness.of("b", [part("b.relu")])
        True
    """

    def __init__(self, edges: Iterable[Edge]) -> None:
        self._incoming: dict[str, list[Edge]] = {}
        for edge in edges:
            self._incoming.setdefault(edge.target, []).append(edge)

    def of(self, path: str, parts: Sequence[Part], *, loose: bool = False) -> tuple[object, ...]:
        """What stands for a block in comparisons.

        Args:
            path: Module path of the block; paths inside are compared relative to it.
            parts: Everything in the block.
            loose: Leave numbers out: widths, ranks, costs, how many tensors enter.
        """
        numbers = {part.key: index for index, part in enumerate(parts)}
        return tuple((_looks(path, part, loose=loose), self._wires(part, numbers, loose=loose)) for part in parts)

    def _wires(self, part: Part, numbers: dict[str, int], *, loose: bool) -> tuple[object, ...]:
        """Where its inputs come from: positions inside the block, and how many come from outside."""
        incoming = self._incoming.get(part.key, [])
        inside = sorted((numbers[edge.source], edge.change.value) for edge in incoming if edge.source in numbers)
        outside = sum(edge.source not in numbers for edge in incoming)
        return (tuple(inside), bool(outside) if loose else outside)


def _looks(path: str, part: Part, *, loose: bool) -> tuple[object, ...]:
    unit, step = part.unit, part.step
    place = part.path.removeprefix(path)
    what = (place, unit.title, part.change, step.form if step else "", len(step.layers) if step else 0)
    if loose:
        return what
    shapes = (unit.head.input_shapes, unit.nodes[-1].output_shapes)
    return (*what, shapes, unit.cost, step.ranks if step else ())
