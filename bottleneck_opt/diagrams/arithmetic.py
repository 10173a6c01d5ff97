"""Where a layer's multiply-adds come from, as a product that anybody can check."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bottleneck_opt.diagrams.wording import change_text
from bottleneck_opt.graph import Node

_UNITS = ((1e12, "TMAC"), (1e9, "GMAC"), (1e6, "MMAC"), (1e3, "kMAC"), (1.0, "MAC"))
MEANING = "products: outputs x inputs x kernel x positions"


def list_factors(node: Node) -> tuple[int, ...]:
    """Outputs, inputs of one group, kernel, positions, and batch where it is not one; empty where they do not multiply
    to what the call cost, as for a layer that pads its input itself.

    Example:
        >>> from bottleneck_opt.graph import Cost
        >>> from bottleneck_opt.layers import LayerSpec
        >>> layer = LayerSpec("fc", "Linear", 3, 4)
        >>> list_factors(Node("fc", "module", "Linear", "fc", (), ("x",), ((2, 3),), ((2, 4),), layer=layer,
        ...                   cost=Cost(macs=24)))
        (4, 3, 2)
    """
    layer = node.layer
    shapes = node.input_shapes if layer is not None and layer.transposed else node.output_shapes
    if layer is None or not shapes:
        return ()
    axes = len(layer.kernel)
    shape = shapes[0]
    positions, batch = (shape[-axes:], shape[: -axes - 1]) if axes else ((), shape[:-1])
    factors = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel, *positions,
               *(size for size in batch if size != 1))  # fmt: skip
    return factors if math.prod(factors) == node.cost.macs else ()


def product_text(node: Node) -> str:
    """``192 x 32 x 5 x 5 x 28 x 28 = 120.4 MMAC``; the result alone where there is no such product."""
    factors, macs = list_factors(node), node.cost.macs
    product = f"{' x '.join(map(str, factors))} = " if factors else ""
    return f"{product}{_sum_text([macs], macs)}"


def sentence(before: Sequence[Node], after: Sequence[Node]) -> str:
    """What the layer cost, what its parts cost now, and how much less that is.

    Args:
        before: The calls of the original layer.
        after: The calls of what stands in its place.
    """
    whole, parts = [node.cost.macs for node in before], [node.cost.macs for node in after]
    start = product_text(before[0]) if len(before) == 1 else _sum_text(whole, sum(whole))
    if not parts:
        return start
    return f"{start} -> {_sum_text(parts, sum(parts))} ({change_text(sum(whole), sum(parts))})"


def _sum_text(values: Sequence[int], measure: float) -> str:
    """``2.4 + 10.0 MMAC``: all in the unit that suits the measure."""
    scale, unit = next((entry for entry in _UNITS if measure >= entry[0]), _UNITS[-1])
    return f"{' + '.join(_number(value / scale) for value in values)} {unit}"


def _number(value: float) -> str:
    """One decimal, or two digits of what is small.

    Example:
        >>> _number(120.42), _number(0.0634), _number(0.0)
        ('120.4', '0.063', '0')
    """
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
