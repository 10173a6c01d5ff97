"""Which layers may be rewritten at all, and why the others may not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import nn

from bottleneck_opt.errors import PatternError
from bottleneck_opt.graph import Traced
from bottleneck_opt.layers import LayerSpec, describe_layer, is_layer
from bottleneck_opt.probing import Probe, needs_probe, probe_layer, recorded_arguments
from bottleneck_opt.sites import Skip
from bottleneck_opt.working_copy import run_on_example


@dataclass(frozen=True)
class Candidates:
    """The layers of a model.

    Attributes:
        layers: What each layer that may be rewritten computes, by path, in the order they first run.
        names: Every path each of them is reachable by; modules that share all their weights are one layer.
        refused: Why each other convolution or Linear may not be.
        probes: What was found out about those layers that compute something else than their class says.
    """

    layers: Mapping[str, LayerSpec]
    names: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, Skip]
    probes: Mapping[str, Probe] = field(default_factory=dict)

    def without(self, refused: Mapping[str, Skip]) -> Candidates:
        """The same with some more layers refused."""
        kept = {path: layer for path, layer in self.layers.items() if path not in refused}
        names = {path: self.names[path] for path in kept}
        return Candidates(kept, names, {**self.refused, **refused}, self.probes)


def find_candidates(
    working: nn.Module,
    traced: Traced,
    *,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
) -> Candidates:
    """Sort all convolutions and Linears of a traced model into those that may be rewritten and those that may not.

    Layers that are not plain torch layers are called, to find out what they compute.

    Raises:
        PatternError: A pattern of ``include`` or ``exclude`` is no text or matches none of them.
    """
    include, exclude = _read_patterns(include, "include"), _read_patterns(exclude, "exclude")
    modules = {p: m for p, m in working.named_modules() if p and (is_layer(m) or p in traced.own_layers)}
    _check_patterns(modules, include, "include")
    _check_patterns(modules, exclude, "exclude")
    owners = _weight_owners(working)
    refused: dict[str, Skip] = {}
    for path, module in modules.items():
        skip = (
            _not_chosen(path, include, exclude)
            or _not_executed(path, traced)
            or _not_floating(module)
            or _depthwise(module)
            or _weight_used_elsewhere(path, traced)
            or _weight_shared_unequally(path, modules, owners)
        )
        if skip:
            refused[path] = skip
    ran = [node.path for node in traced.structure.nodes if node.path in modules and node.path not in refused]
    probes = _probe_all(working, traced, [path for path in dict.fromkeys(ran) if needs_probe(modules[path])])
    refused |= {path: Skip(found) for path, found in probes.items() if isinstance(found, str)}
    known = {path: found for path, found in probes.items() if isinstance(found, Probe)}
    firsts = {id(modules[path]._parameters.get("weight", path)): path for path in reversed(ran)}
    layers = {
        path: known[path].layer if path in known else describe_layer(modules[path])
        for path in dict.fromkeys(ran)
        if path not in refused and firsts[id(modules[path]._parameters.get("weight", path))] == path
    }
    found = {path: layer for path, layer in layers.items() if layer is not None}
    return Candidates(found, _all_names(working, found), refused, known)


def _probe_all(working: nn.Module, traced: Traced, paths: Sequence[str]) -> dict[str, Probe | str]:
    """What each of these unusual layers computes, or why that cannot be told."""
    if not paths:
        return {}
    with torch.no_grad(), recorded_arguments(working, paths) as calls:
        run_on_example(working, traced.inputs)
    return {path: probe_layer(working.get_submodule(path), calls[path]) for path in paths}


def _read_patterns(given: object, option: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    patterns = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    wrong = next((pattern for pattern in patterns if not isinstance(pattern, str)), None)
    if wrong is not None:
        raise PatternError(
            f"{option}: got {wrong!r} ({type(wrong).__name__}); expected globs over module paths as text. "
            "Pass for instance 'layer1.*' or a list of such patterns."
        )
    return patterns


def _check_patterns(modules: Iterable[str], patterns: Sequence[str] | None, option: str) -> None:
    paths = list(modules)
    for pattern in patterns or ():
        if not any(fnmatchcase(path, pattern) for path in paths):
            close = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
            raise PatternError(
                f"{option}={pattern!r} matches none of the model's {len(paths)} convolutions and Linears. "
                f"Use a glob over module paths, such as {', '.join(close) or 'layer1.*'}."
            )


def _not_chosen(path: str, include: Sequence[str] | None, exclude: Sequence[str] | None) -> Skip | None:
    if include is not None and not any(fnmatchcase(path, pattern) for pattern in include):
        return Skip("not in include=", "add its path to include=")
    hit = next((pattern for pattern in exclude or () if fnmatchcase(path, pattern)), None)
    return Skip(f"excluded by exclude={hit!r}") if hit else None


def _not_executed(path: str, traced: Traced) -> Skip | None:
    reason = traced.unexecuted.get(path)
    return Skip(reason, "pass inputs= that reach it" if "not executed" in reason else "") if reason else None


def _not_floating(module: nn.Module) -> Skip | None:
    weight = module._parameters.get("weight")
    return None if weight is None or weight.is_floating_point() else Skip(f"its weight is {weight.dtype}")


def _depthwise(module: nn.Module) -> Skip | None:
    layer = describe_layer(module)
    if layer is None or not layer.is_depthwise or layer.in_channels != layer.out_channels:
        return None
    return Skip(f"depthwise (groups={layer.groups}): each channel has its own small kernel, nothing to reduce")


def _weight_used_elsewhere(path: str, traced: Traced) -> Skip | None:
    reader = traced.weight_reads.get(path)
    return None if reader is None else Skip(f"{reader} reads its weight and may use it without calling the layer")


def _weight_shared_unequally(
    path: str, modules: Mapping[str, nn.Module], owners: Mapping[int, Sequence[str]]
) -> Skip | None:
    """Layers that share their weight are rewritten as one, but only if they share everything else too."""
    mine = modules[path]
    weight = mine._parameters.get("weight")
    others = [owner for owner in owners[id(weight)] if owner != path] if weight is not None else []
    for other in others:
        twin = modules.get(other)
        if twin is None or not _are_twins(mine, twin):
            return Skip(f"shares its weight with {other}", "untie the weights if they need not be equal")
    return None


def _are_twins(one: nn.Module, other: nn.Module) -> bool:
    same_bias = one._parameters.get("bias") is other._parameters.get("bias")
    return same_bias and type(one) is type(other) and describe_layer(one) == describe_layer(other)


def _weight_owners(model: nn.Module) -> dict[int, list[str]]:
    """The paths of the modules that hold each parameter, each module once."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in {id(each): each for each in module._parameters.values() if each is not None}.values():
            owners.setdefault(id(parameter), []).append(path)
    return owners


def _all_names(model: nn.Module, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Every path of the module at each of these paths, and of those that share its weight."""
    by_module: dict[int, list[str]] = {}
    by_weight: dict[int, dict[int, None]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        by_module.setdefault(id(module), []).append(name)
        if is_layer(module) and module._parameters.get("weight") is not None:
            by_weight.setdefault(id(module._parameters["weight"]), {})[id(module)] = None
    found = {}
    for path in paths:
        module = model.get_submodule(path)
        twins = by_weight.get(id(module._parameters.get("weight")), {id(module): None})
        names = [name for twin in twins for name in by_module[twin]]
        found[path] = (path, *(name for name in names if name != path))
    return found
