"""Carry out a plan on a copy of a model and on its recorded graph. Nothing else in the tool edits a module."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from bottleneck_opt.errors import RewriteError
from bottleneck_opt.factored import Factored
from bottleneck_opt.kernels import to_module
from bottleneck_opt.layers import LayerSpec, build_layer, class_name, describe_layer
from bottleneck_opt.plan import Plan, Selection, Sharing, Step
from bottleneck_opt.probing import rebuild_kept
from bottleneck_opt.sites import Weights
from bottleneck_opt.working_copy import copy_model

_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)  # they compute the old layer's weight before each call
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_is_full_backward_hook", "_backward_pre_hooks",
)  # fmt: skip


def rewrite_model(model: nn.Module, plan: Plan, weights: Mapping[str, Sequence[Weights]]) -> nn.Module:
    """A copy of the model, of the same class, in which the plan's layers are replaced.

    Every replacement stands at its layer's own path and takes over its device, dtype, memory format, training flag,
    ``requires_grad`` and forward hooks.

    Args:
        model: Any module; it is not changed.
        plan: What to replace. With shared bottlenecks, the model must be a GraphModule.
        weights: For each step's path, values for its layers in order; for each shared bottleneck's, those of its 1x1.

    Raises:
        RewriteError: A layer of the plan is missing or different in this model.
    """
    check_plan_fits(model, plan)
    copied = copy_model(model)
    for step in plan.steps:
        replace_layer(copied, step, weights[step.path])
    for selection in plan.selections:
        for path in selection.between:
            drop_channels(copied.get_submodule(path), selection)
    for sharing in plan.sharings:
        assert isinstance(copied, torch.fx.GraphModule)  # the check saw to it
        _share_bottleneck(copied, sharing, weights[sharing.path][0])
    return copied


def rewrite_structure(model: nn.Module, plan: Plan) -> nn.Module:
    """The same as :func:`rewrite_model` with zeros for all new weights, to be filled from a file."""
    return _rewrite_filled(model, plan, _make_zeros)


def rewrite_for_timing(model: nn.Module, plan: Plan) -> nn.Module:
    """The same as :func:`rewrite_model` with random new weights, under which signals keep about their size.

    Zeros would not do: a processor computes with them faster than with what a trained model has (VGG-16: 4 %).
    """
    generator = torch.Generator().manual_seed(0)
    return _rewrite_filled(model, plan, lambda spec: _draw_weights(spec, generator))


def _rewrite_filled(model: nn.Module, plan: Plan, fill: Callable[[LayerSpec], Weights]) -> nn.Module:
    filled = {step.path: [fill(spec) for spec in step.layers] for step in plan.steps}
    filled |= {sharing.path: [fill(sharing.layer)] for sharing in plan.sharings}
    return rewrite_model(model, plan, filled)


def _make_zeros(spec: LayerSpec) -> Weights:
    return Weights(torch.zeros(spec.weight_shape, device="cpu"), torch.zeros(spec.out_channels, device="cpu"))


def _draw_weights(spec: LayerSpec, generator: torch.Generator) -> Weights:
    read = spec.in_channels // spec.groups * math.prod(spec.kernel)
    drawn = torch.randn(spec.weight_shape, generator=generator, device="cpu") / math.sqrt(read)
    return Weights(drawn, torch.zeros(spec.out_channels, device="cpu"))


def check_plan_fits(model: nn.Module, plan: Plan) -> None:
    """Raise RewriteError when a layer of the plan is missing or different in this model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for step in plan.steps:
        for name in step.names:
            _check_layer(modules.get(name), name, step)
    for sharing in plan.sharings:
        _check_readers(model, sharing)


def _check_layer(module: nn.Module | None, name: str, step: Step) -> None:
    advice = "Pass the model that the plan was made for, built with the same arguments."
    if module is None:
        raise RewriteError(f"the plan rewrites '{name}', which this model does not have. {advice}")
    found, wanted = describe_layer(module, step.original.name), step.original
    if found is None and wanted.subclass == class_name(module):
        return  # a module of the user's own that computes this layer: its class is all that can be compared
    if found is None:
        got, expected = type(module).__name__, f"{wanted.label} {wanted.in_channels} -> {wanted.out_channels}"
        raise RewriteError(f"the plan rewrites '{name}': got {got}; expected {expected}. {advice}")
    if isinstance(module, LazyModuleMixin):
        raise RewriteError(
            f"the plan rewrites '{name}': it is a lazy layer that has no shape yet. Call the model once on real data, "
            "then load into it."
        )
    if found != wanted:
        names = [field.name for field in fields(LayerSpec)]
        differing = [each for each in names if getattr(found, each) != getattr(wanted, each)]
        got, expected = (", ".join(f"{each}={getattr(spec, each)}" for each in differing) for spec in (found, wanted))
        raise RewriteError(f"the plan rewrites '{name}': got {got}; expected {expected}. {advice}")


def _check_readers(model: nn.Module, sharing: Sharing) -> None:
    where = f"the plan puts '{sharing.path}' before {', '.join(sharing.members)}"
    advice = "Pass the model that the plan was made for, recorded by bo.to_graph_module(model, inputs)."
    if not isinstance(model, torch.fx.GraphModule):
        raise RewriteError(f"{where}: got {type(model).__name__}; expected a GraphModule. {advice}")
    if hasattr(model, sharing.path):
        raise RewriteError(f"{where}: the model has a '{sharing.path}' already. {advice}")
    calls = find_calls(model.graph, sharing.members)
    if len(calls) != len(sharing.members) or len({read_source(call) for call in calls}) != 1:
        raise RewriteError(f"{where}: these do not read one tensor once each in this model. {advice}")


def replace_layer(model: nn.Module, step: Step, weights: Sequence[Weights]) -> None:
    """Put the step's layers at every name of its layer. ``model`` is changed: it must be a copy."""
    put_module(model, step.names, build_replacement(model.get_submodule(step.path), step, weights))


def drop_channels(module: nn.Module, selection: Selection) -> None:
    """Leave a module between two layers the values of the kept channels. It is changed: it must be a copy."""
    kept = torch.tensor(selection.kept, device=next(module.parameters()).device)
    for values in (module._parameters, module._buffers):
        for name, value in values.items():
            if value is None or value.shape[:1] != (selection.channels,):
                continue
            taken = value.detach()[kept].contiguous(memory_format=_layout_of(value))
            values[name] = nn.Parameter(taken, value.requires_grad) if isinstance(value, nn.Parameter) else taken  # type: ignore[assignment]  # both dicts are walked alike
    for name in ("num_features", "num_parameters", "in_channels", "out_channels", "groups"):
        if getattr(module, name, None) == selection.channels:
            setattr(module, name, len(selection.kept))


def _layout_of(tensor: Tensor) -> torch.memory_format:
    return choose_layout(tensor, channels_last=is_channels_last(tensor))


def correct_layers(model: nn.Module, corrected: Mapping[str, Weights]) -> None:
    """Put new values into stock layers, by path. ``model``, a rewritten one, is changed: it must be a copy."""
    with torch.no_grad():
        for path, values in corrected.items():
            layer = model.get_submodule(path)
            spec = describe_layer(layer)
            assert spec is not None
            weight = layer.get_parameter("weight")
            weight.copy_(to_module(spec, values.weight).to(weight))
            if values.bias is not None:
                layer.get_parameter("bias").copy_(values.bias)


def put_module(model: nn.Module, names: Sequence[str], module: nn.Module) -> None:
    """Put a module at some paths. ``model`` is changed: it must be a copy."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def build_replacement(old: nn.Module, step: Step, weights: Sequence[Weights]) -> nn.Module:
    """The module that takes the place of ``old``, which is not changed."""
    like = next(old.parameters())
    if step.in_place:
        _check_shapes(step.layers[0], weights[0])
        return _build_filled(old, step.layers[0], weights[0], like).train(old.training)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for spec, values in zip(step.layers, weights, strict=True):
        _check_shapes(spec, values)
        layers[spec.name] = _build_filled(old, spec, values, like)
    new = Factored(step.narrowed, layers, core=find_core(step.layers)).train(old.training)
    for name in _HOOKS:
        setattr(new, name, copy.copy(getattr(old, name)))  # the old module may live on and get hooks of its own
    new._forward_pre_hooks = OrderedDict(
        (key, hook) for key, hook in old._forward_pre_hooks.items() if not isinstance(hook, _WEIGHT_HOOKS)
    )
    return new


def find_core(layers: Sequence[LayerSpec]) -> int:
    """Index of the layer that carries the kernel: the first that does more than mix channels."""
    return next((index for index, layer in enumerate(layers) if not layer.is_pointwise), 0)


def _check_shapes(spec: LayerSpec, values: Weights) -> None:
    wanted = {"weight": spec.weight_shape, "bias": (spec.out_channels,)}
    for name, value in (("weight", values.weight), ("bias", values.bias)):
        if name == "bias" and not spec.bias:
            continue
        if value is None or value.shape != wanted[name]:
            got = None if value is None else tuple(value.shape)
            raise RewriteError(
                f"{name} of '{spec.name}' ({spec.label}): got values of shape {got}; expected {wanted[name]}. "
                "Mend the pass."
            )


def _build_filled(old: nn.Module, spec: LayerSpec, values: Weights, like: Tensor) -> nn.Module:
    """One of the new layers with its weights, laid out in memory as the old layer's."""
    bias = values.bias if spec.bias else None
    if spec.subclass:
        layer = rebuild_kept(old, spec, values.weight.to(like), None if bias is None else bias.to(like))
    else:
        layer = build_layer(spec, device=like.device, dtype=like.dtype)
    for name, value in (("weight", to_module(spec, values.weight)), ("bias", bias)):
        if value is not None:
            layout = choose_layout(value, channels_last=is_channels_last(like))
            filled = value.to(like.device, like.dtype).clone(memory_format=layout)
            setattr(layer, name, nn.Parameter(filled, requires_grad=like.requires_grad))
    return layer


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory with its channels last, and not in the usual order too (as 1x1 kernels do)."""
    layout = choose_layout(tensor, channels_last=True)
    return tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous()


def choose_layout(tensor: Tensor, *, channels_last: bool) -> torch.memory_format:
    """The memory format with channels last for the tensor's number of axes, or the usual one."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    return formats.get(tensor.dim(), torch.contiguous_format)


def rewrite_graph(graph: torch.fx.Graph, plan: Plan) -> torch.fx.Graph:
    """A copy of the graph in which every call of a replaced layer is a chain of calls of the new layers.

    Args:
        graph: The graph of the model before; it is not changed.
        plan: What to replace.
    """
    steps = {name: step for step in plan.steps for name in step.names}
    made = torch.fx.Graph()
    values: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in graph.nodes:
        step = steps.get(str(node.target)) if node.op == "call_module" else None
        step = None if step is None or step.in_place else step
        copied = made.node_copy(node, values.__getitem__)
        values[node] = copied if step is None else _chain(made, copied, step)
    for sharing in plan.sharings:
        _insert_bottleneck(made, sharing)
    made.lint()
    return made


def find_calls(graph: torch.fx.Graph, paths: Sequence[str]) -> list[torch.fx.Node]:
    """The calls of some modules, in the order they run."""
    return [node for node in graph.nodes if node.op == "call_module" and node.target in paths]


def read_source(call: torch.fx.Node) -> object:
    """What a call of a layer reads."""
    return call.args[0] if call.args else call.kwargs["input"]


def _share_bottleneck(model: torch.fx.GraphModule, sharing: Sharing, weights: Weights) -> None:
    """Put the 1x1 into the model and between its members and what they read. ``model`` must be a copy."""
    _check_shapes(sharing.layer, weights)
    member = model.get_submodule(sharing.members[0])
    layer = _build_filled(member, sharing.layer, weights, next(member.parameters()))
    model.add_module(sharing.path, layer.train(member.training))
    _insert_bottleneck(model.graph, sharing)
    model.graph.lint()
    model.recompile()


def _insert_bottleneck(graph: torch.fx.Graph, sharing: Sharing) -> None:
    """Call the 1x1 before the first of its members, and let all of them read what it makes. ``graph`` is changed."""
    calls = find_calls(graph, sharing.members)
    source = read_source(calls[0])
    assert isinstance(source, torch.fx.Node)
    with graph.inserting_before(calls[0]):
        made = graph.call_module(sharing.path, (source,))
    made.meta = {**calls[0].meta, "path": sharing.path}
    for call in calls:
        call.replace_input_with(source, made)


def _chain(graph: torch.fx.Graph, call: torch.fx.Node, step: Step) -> torch.fx.Node:
    """Replace the copied call, the newest node, by calls of the step's layers."""
    source = call.args[0] if call.args else call.kwargs["input"]
    last = source
    core = find_core(step.layers)
    for index, spec in enumerate(step.layers):
        more, options = (call.args[1:], call.kwargs) if index == core else ((), {})
        options = {name: value for name, value in options.items() if name != "input"}
        last = graph.call_module(f"{step.path}.{spec.name}", (last, *more), options)
        last.meta = {**call.meta, "path": f"{step.path}.{spec.name}"}
    graph.erase_node(call)
    assert isinstance(last, torch.fx.Node)
    return last
