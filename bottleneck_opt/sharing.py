"""Find the layers that read the same tensor: one bottleneck can stand before all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.fx
from torch import nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.graph import Traced
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.links import find_hook
from bottleneck_opt.rewriting import read_source
from bottleneck_opt.sites import Skip


@dataclass(frozen=True)
class Group:
    """Layers that read one tensor.

    Attributes:
        path: Where a module before all of them would stand in the model: a name that is free.
        members: Their paths, in the order they run.
    """

    path: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """All groups, in the order they run, and why each other candidate is in none."""

    found: tuple[Group, ...]
    refused: Mapping[str, Skip]

    @property
    def members(self) -> frozenset[str]:
        """The paths of all layers that are in a group."""
        return frozenset(path for group in self.found for path in group.members)

    def without(self, group: Group, skip: Skip) -> Groups:
        """The same with one group refused."""
        kept = tuple(each for each in self.found if each != group)
        return Groups(kept, {**self.refused, **dict.fromkeys(group.members, skip)})


def find_groups(working: nn.Module, traced: Traced, candidates: Candidates) -> Groups:
    """The candidates that read the same tensor on the same axis, where at least two do.

    Args:
        working: The recorded model, a GraphModule.
        traced: Its recording, which replays exactly.
        candidates: The layers that may be rewritten.
    """
    paths = {name: path for path, names in candidates.names.items() for name in names}
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and node.target in paths]
    readers: dict[tuple[object, LayerSpec], list[str]] = {}
    refused: dict[str, Skip] = {}
    for node in calls:
        path = paths[str(node.target)]
        obstacle = _find_obstacle(working, candidates, path, calls)
        if obstacle:
            refused[path] = Skip(f"shares no bottleneck: {obstacle}")
            continue
        layer = candidates.layers[path]
        pointwise = layer.pointwise("shared", layer.in_channels, layer.in_channels, bias=False)
        readers.setdefault((read_source(node), pointwise), []).append(path)
    alone = [members[0] for members in readers.values() if len(members) == 1]
    refused |= dict.fromkeys(alone, Skip("shares no bottleneck: no other layer reads its input"))
    together = [(source, members) for (source, _), members in readers.items() if len(members) > 1]
    found: list[Group] = []
    for source, members in together:
        found.append(Group(_choose_name(source, working, {group.path for group in found}), tuple(members)))
    return Groups(tuple(found), refused)


def _find_obstacle(working: nn.Module, candidates: Candidates, path: str, calls: list[torch.fx.Node]) -> str:
    """Why a layer must go on reading what it reads, in words; empty when it need not."""
    layer, names = candidates.layers[path], candidates.names[path]
    if layer.groups > 1:
        return f"it has groups={layer.groups}"
    if layer.in_channels == 1:
        return "it has one input channel"
    if layer.subclass or path in candidates.probes:
        return f"it is no plain {layer.kind}"
    if len(names) > 1:
        return "it has several names"
    if sum(node.target == path for node in calls) > 1:
        return "it is called several times"
    return find_hook(working.get_submodule(path))


def _choose_name(source: object, working: nn.Module, taken: set[str]) -> str:
    """``x_shared`` for what is called x in the graph, with a number where that name is in use."""
    name = f"{source}_shared"
    numbered = (name if number == 0 else f"{name}_{number}" for number in range(len(taken) + 1000))
    return next(each for each in numbered if each not in taken and not hasattr(working, each))
