"""Which layers may be rewritten at all, and why the others may not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from bottleneck_opt.errors import PatternError
from bottleneck_opt.graph import Traced
from bottleneck_opt.layers import LayerSpec, describe_layer
from bottleneck_opt.sites import Skip


@dataclass(frozen=True)
class Candidates:
    """The layers of a model.

    Attributes:
        layers: Descriptions of the layers that may be rewritten, by path, in the order they first run.
        names: Every path each of them is reachable by.
        refused: Why each other convolution or Linear may not be.
    """

    layers: Mapping[str, LayerSpec]
    names: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, Skip]


def find_candidates(
    working: nn.Module,
    traced: Traced,
    *,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
) -> Candidates:
    """Sort all convolutions and Linears of a traced model into those that may be rewritten and those that may not.

    Raises:
        PatternError: A pattern of ``include`` or ``exclude`` is no text or matches none of them.
    """
    include, exclude = _read_patterns(include, "include"), _read_patterns(exclude, "exclude")
    modules = {path: m for path, m in working.named_modules() if path and isinstance(m, _ConvNd | nn.Linear)}
    _check_patterns(modules, include, "include")
    _check_patterns(modules, exclude, "exclude")
    shared = _shared_weights(modules)
    refused: dict[str, Skip] = {}
    for path, module in modules.items():
        skip = (
            _not_chosen(path, include, exclude)
            or _not_executed(path, traced)
            or _weight_is_computed(module)
            or _wrong_kind(module)
            or _weight_not_its_own(path, module, shared=shared, reader=traced.weight_reads.get(path))
        )
        if skip:
            refused[path] = skip
    ran = dict.fromkeys(
        node.path for node in traced.structure.nodes if node.path in modules and node.path not in refused
    )
    layers = {path: spec for path in ran if (spec := describe_layer(modules[path])) is not None}
    return Candidates(layers, _all_names(working, layers), refused)


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


def _wrong_kind(module: nn.Module) -> Skip | None:
    kind = type(module)
    if isinstance(module, nn.Conv2d | nn.Linear) and kind not in (nn.Conv2d, nn.Linear):
        return Skip(f"{kind.__name__} is not a plain torch layer: its forward may do more than its weight says")
    if kind not in (nn.Conv2d, nn.Linear):
        return Skip(f"{kind.__name__}: this version rewrites Conv2d and Linear")
    if not isinstance(module, nn.Conv2d) or module.groups == 1:
        return None
    if module.groups == module.in_channels:
        return Skip(f"depthwise (groups={module.groups}): each channel has its own small kernel, nothing to reduce")
    return Skip(f"groups={module.groups}: this version rewrites convolutions with groups=1")


def _weight_is_computed(module: nn.Module) -> Skip | None:
    if module._parameters.get("weight") is not None:
        return None
    return Skip("its weight is computed in forward (weight norm, spectral norm or a parametrization)",
                "remove the parametrization before optimising, if it is only needed for training")  # fmt: skip


def _weight_not_its_own(
    path: str, module: nn.Module, *, shared: Mapping[int, list[str]], reader: str | None
) -> Skip | None:
    weight = module.get_parameter("weight")
    if not weight.is_floating_point():
        return Skip(f"its weight is {weight.dtype}")
    others = [other for other in shared[id(weight)] if other != path]
    if others:
        return Skip(f"shares its weight with {', '.join(others)}", "untie the weights if they need not be equal")
    if reader is not None:
        return Skip(f"{reader} reads its weight and may use it without calling the layer")
    return None


def _shared_weights(modules: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    shared: dict[int, list[str]] = {}
    for path, module in modules.items():
        shared.setdefault(id(module._parameters.get("weight")), []).append(path)
    return shared


def _all_names(model: nn.Module, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {path: (path, *(name for name in names[id(model.get_submodule(path))] if name != path)) for path in paths}
