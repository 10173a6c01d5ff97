"""A plain layered layout: every box below all that it reads, few crossings, boxes near what they belong to.

It stands in where Graphviz is missing or takes too long; it is linear in what it draws, and not as good.

Source: Sugiyama, Tagawa and Toda 1981 for the stages; positions in a layer are an isotonic regression.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Pair = tuple[str, str]
GAP_X, GAP_Y = 18.0, 22.0
_SWEEPS = 6
_MOST_BENDS = 20_000  # of long edges, which else would cost more than all boxes
_BEND_WIDTH = 8.0


@dataclass
class Placed:
    """Where things are.

    Attributes:
        corners: Upper left corner of each box.
        bends: For each edge over several layers, the points it goes through.
        width, height: Of everything.
    """

    corners: dict[str, Point] = field(default_factory=dict)
    bends: dict[Pair, list[Point]] = field(default_factory=dict)
    width: float = 0.0
    height: float = 0.0


def place(sizes: Mapping[str, Point], edges: Iterable[Pair]) -> Placed:
    """Where to put boxes of the given sizes.

    Args:
        sizes: Width and height of each box, in an order in which every box follows all that it reads.
        edges: Pairs of boxes; those that do not follow the order are left out.

    Example:
        >>> placed = place({"a": (10.0, 5.0), "b": (20.0, 5.0)}, [("a", "b")])
        >>> placed.corners, placed.width, placed.height
        ({'a': (5.0, 0.0), 'b': (0.0, 27.0)}, 20.0, 32.0)
    """
    number = {key: index for index, key in enumerate(sizes)}
    forward = [pair for pair in dict.fromkeys(edges) if number[pair[0]] < number[pair[1]]]
    layers, links, chains = _split_into_layers(sizes, forward)
    widths = {key: size[0] for key, size in sizes.items()}
    above, below = _neighbours(links)
    for sweep in range(_SWEEPS):
        _sort_layers(layers if sweep % 2 == 0 else layers[::-1], above if sweep % 2 == 0 else below)
    centers = _center(layers, widths, above, below)
    return _collect(layers, sizes, centers, chains)


def _split_into_layers(
    sizes: Mapping[str, Point], edges: Sequence[Pair]
) -> tuple[list[list[str]], list[Pair], dict[Pair, list[str]]]:  # fmt: skip
    """Boxes by layer with a bend in every layer that an edge passes, the links between them, and the bends by edge."""
    depth = dict.fromkeys(sizes, 0)
    reads: dict[str, list[str]] = {}
    for source, target in edges:
        reads.setdefault(target, []).append(source)
    for key in sizes:
        depth[key] = max((depth[source] + 1 for source in reads.get(key, ())), default=0)
    _lower_sources(depth, edges, reads)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for key, index in depth.items():
        layers[index].append(key)
    links, chains, bends = list[Pair](), dict[Pair, list[str]](), 0
    for source, target in edges:
        passed = range(depth[source] + 1, depth[target])
        if bends + len(passed) > _MOST_BENDS:
            continue
        chain = [f"{source}\n{target}\n{index}" for index in passed]  # no key has a line break
        for index, bend in zip(passed, chain, strict=True):
            layers[index].append(bend)
        bends += len(chain)
        chains[source, target] = chain
        links += zip((source, *chain), (*chain, target), strict=True)
    return layers, links, chains


def _lower_sources(depth: dict[str, int], edges: Sequence[Pair], reads: Mapping[str, object]) -> None:
    """Put what reads nothing right above its first reader."""
    first: dict[str, int] = {}
    for source, target in edges:
        first[source] = min(first.get(source, depth[target]), depth[target])
    for key, reader in first.items():
        if key not in reads:
            depth[key] = max(0, reader - 1)


def _neighbours(links: Sequence[Pair]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for source, target in links:
        above.setdefault(target, []).append(source)
        below.setdefault(source, []).append(target)
    return above, below


def _sort_layers(layers: Sequence[list[str]], neighbours: Mapping[str, list[str]]) -> None:
    """Sort each layer by where its neighbours are in the layer before it."""
    for fixed, layer in itertools.pairwise(layers):
        at = {key: index for index, key in enumerate(fixed)}
        own = {key: index for index, key in enumerate(layer)}
        layer.sort(key=lambda key: (_mean([at[n] for n in neighbours.get(key, ())], own[key]), own[key]))


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _center(
    layers: Sequence[Sequence[str]], widths: Mapping[str, float], above: Mapping[str, list[str]],
    below: Mapping[str, list[str]],
) -> dict[str, float]:  # fmt: skip
    """The middle of every box and bend, as near to its neighbours as the order in its layer allows."""
    centers: dict[str, float] = {}
    for layer in layers:
        centers.update(
            _spread(layer, widths, {key: _mean([centers[n] for n in above.get(key, ())], 0.0) for key in layer})
        )
    for sweep in range(_SWEEPS):
        neighbours = below if sweep % 2 == 0 else above
        for layer in layers[::-1] if sweep % 2 == 0 else layers:
            wished = {key: _mean([centers[n] for n in neighbours.get(key, ())], centers[key]) for key in layer}
            centers.update(_spread(layer, widths, wished))
    return centers


def _spread(layer: Sequence[str], widths: Mapping[str, float], wished: Mapping[str, float]) -> dict[str, float]:
    """The places nearest to the wished ones in the sense of least squares, at which nothing overlaps.

    Less what all before it need, places only have to ascend: neighbours that do not are pooled at their mean.
    """
    offsets, reach = [], 0.0
    for key in layer:
        width = widths.get(key, _BEND_WIDTH)
        offsets.append(reach + width / 2)
        reach += width + GAP_X
    pools: list[tuple[float, int]] = []
    for key, offset in zip(layer, offsets, strict=True):
        mean, count = wished[key] - offset, 1
        while pools and pools[-1][0] > mean:
            other, number = pools.pop()
            mean, count = (mean * count + other * number) / (count + number), count + number
        pools.append((mean, count))
    places = [mean for mean, count in pools for _ in range(count)]
    return {key: place + offset for key, place, offset in zip(layer, places, offsets, strict=True)}


def _collect(
    layers: Sequence[Sequence[str]], sizes: Mapping[str, Point], centers: Mapping[str, float],
    chains: Mapping[Pair, list[str]],
) -> Placed:  # fmt: skip
    left = min((centers[key] - size[0] / 2 for key, size in sizes.items()), default=0.0)
    left = min(left, min((center - _BEND_WIDTH / 2 for center in centers.values()), default=0.0) if chains else left)
    placed, y, bends = Placed(), 0.0, dict[str, list[Point]]()
    for layer in layers:
        height = max((sizes[key][1] for key in layer if key in sizes), default=0.0)
        for key in layer:
            if key in sizes:
                width, own = sizes[key]
                placed.corners[key] = (centers[key] - left - width / 2, y + (height - own) / 2)
                placed.width = max(placed.width, centers[key] - left + width / 2)
            else:
                x = centers[key] - left
                bends[key] = [(x, y), (x, y + height)]
                placed.width = max(placed.width, x + _BEND_WIDTH / 2)
        y += height + GAP_Y
    placed.height = max(0.0, y - GAP_Y)
    placed.bends = {pair: [point for bend in chain for point in bends[bend]] for pair, chain in chains.items() if chain}
    return placed
