"""Replace every layer by an exact stand-in and see whether the model still does what it did.

A model may keep a layer in a list of its own, ask for its type, or use its weight behind its back; then a replacement
is ignored, or fails, or gives something else. Whatever the way, it shows here, before anything is fitted: each layer
gets a 1x1 that turns its channels round and a kernel that turns them back, which changes nothing where the model uses
the layer as a layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Cost
from bottleneck_opt.inputs import Inputs, find_tensors
from bottleneck_opt.layers import LayerSpec, class_name, describe_layer
from bottleneck_opt.making_sites import read_weights
from bottleneck_opt.plan import Step
from bottleneck_opt.rewriting import build_replacement, put_module
from bottleneck_opt.sites import Skip, Weights
from bottleneck_opt.working_copy import copy_model, run_on_example

MOST_RUNS = 64
_SAMPLES = 64
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class _Seen:
    """A tensor's shape, some of its values, and their root mean square."""

    shape: tuple[int, ...]
    values: Tensor


@dataclass(frozen=True)
class _Trace:
    """What a run gave: the outputs of every watched layer, call by call in order, and of the model.

    Attributes:
        layers: Path and output of each call, in the order of the calls.
        outputs: The model's output tensors.
        failure: The exception that ended the run, in words; empty when it came through.
    """

    layers: tuple[tuple[str, _Seen], ...]
    outputs: tuple[Tensor, ...]
    failure: str = ""


def rehearse(working: nn.Module, inputs: Inputs, candidates: Candidates) -> dict[str, Skip]:
    """The layers that cannot be replaced without the model noticing, each with what happened.

    Args:
        working: A copy that may be run, in eval mode; it is not changed.
        inputs: The example call.
        candidates: The layers to try.
    """
    if not candidates.layers:
        return {}
    refused = _find_all(_set_up(working, inputs, candidates), candidates)
    if not refused or not _runs_in_float64(working, inputs):
        return refused
    exact = _set_up(copy_model(working).double(), _in_float64(inputs), candidates)  # where rounding flips no decision
    return _find_all(exact, candidates)


def _find_all(stage: _Stage, candidates: Candidates) -> dict[str, Skip]:
    refused: dict[str, Skip] = {}
    for _ in range(MOST_RUNS):
        tried = [path for path in candidates.layers if path not in refused]
        faults = stage.find_faults(tried) if tried else {}
        if not faults:
            return refused
        refused |= faults
    reason = f"could not be told from the layers that cannot be replaced in {MOST_RUNS} trial runs"
    return refused | {path: Skip(reason) for path in candidates.layers if path not in refused}


def _runs_in_float64(working: nn.Module, inputs: Inputs) -> bool:
    parameter = next(working.parameters())
    if parameter.dtype == torch.float64 or parameter.device.type not in ("cpu", "cuda"):
        return False
    return not _run(copy_model(working).double(), _in_float64(inputs), {}).failure


def _in_float64(inputs: Inputs) -> Inputs:
    return inputs.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _set_up(working: nn.Module, inputs: Inputs, candidates: Candidates) -> _Stage:
    model = copy_model(working)
    stand_ins = {path: _make_stand_in(model, candidates, path) for path in candidates.layers}
    expected = _run(model, inputs, candidates.names)
    dtype = torch.promote_types(torch.float32, next(p.dtype for p in model.parameters() if p.is_floating_point()))
    return _Stage(model, inputs, candidates.names, stand_ins, expected, _TOLERANCE[dtype])


@dataclass(frozen=True)
class _Stage:
    """A model in which layers can be exchanged for their stand-ins and back."""

    model: nn.Module
    inputs: Inputs
    names: Mapping[str, tuple[str, ...]]
    stand_ins: Mapping[str, nn.Module]
    expected: _Trace
    tolerance: float

    def find_faults(self, paths: Sequence[str]) -> dict[str, Skip]:
        """At least one of these layers that cannot be replaced, with the reason; empty when all can."""
        got = self._try(paths)
        if got.failure:
            path, failure = self._narrow_down(paths, lambda trace: trace.failure)
            return {path: Skip(f"the model fails when it is replaced: {failure}")}
        ignored = self._find_ignored(paths, got)
        if ignored:
            return ignored
        if self._find_change(got):
            path, change = self._narrow_down(paths, self._find_change)
            return {path: Skip(change)}
        return {}

    def _try(self, paths: Sequence[str]) -> _Trace:
        with self._replaced(paths):
            return _run(self.model, self.inputs, self.names)

    @contextmanager
    def _replaced(self, paths: Sequence[str]) -> Iterator[None]:
        kept = {name: self.model.get_submodule(name) for path in paths for name in self.names[path]}
        for path in paths:
            put_module(self.model, self.names[path], self.stand_ins[path])
        try:
            yield
        finally:
            for name, module in kept.items():
                put_module(self.model, (name,), module)

    def _find_ignored(self, paths: Sequence[str], got: _Trace) -> dict[str, Skip]:
        before, after = (Counter(path for path, _ in run.layers) for run in (self.expected, got))
        return {
            path: Skip(
                f"its replacement is called {after[path]} times instead of {before[path]}: the model holds on to the "
                "layer in another place, or acts on its type",
                "let the model find its layers by their names alone",
            )
            for path in paths
            if before[path] > after[path]
        }

    def _find_change(self, got: _Trace) -> str:
        """How a run differs from the one before, in words; empty when it does not."""
        if [path for path, _ in got.layers] != [path for path, _ in self.expected.layers]:
            return "the model calls its layers otherwise when it is replaced"
        pairs = ((before, after) for (_, before), (_, after) in zip(self.expected.layers, got.layers, strict=True))
        if any(one.shape != other.shape or not self._close(one.values, other.values) for one, other in pairs):
            return "the model gives it or a layer after it another input, or uses it otherwise, when it is replaced"
        if self._outputs_differ(got):
            return "the model's output changes when it is replaced by layers that compute the same"
        return ""

    def _outputs_differ(self, got: _Trace) -> bool:
        if got.failure or len(got.outputs) != len(self.expected.outputs):
            return True
        return not all(self._close(a, b) for a, b in zip(self.expected.outputs, got.outputs, strict=True))

    def _close(self, before: Tensor, after: Tensor) -> bool:
        if before.shape != after.shape:
            return False
        a, b = (_as_real(each).double().nan_to_num() for each in (before, after))
        scale = a.abs().max().clamp_min(1e-30) if a.numel() else torch.ones((), device="cpu")
        return bool(((a - b).abs() <= self.tolerance * scale).all())

    def _narrow_down(self, paths: Sequence[str], fault: Callable[[_Trace], str]) -> tuple[str, str]:
        """The last of the shortest run of first paths that is at fault, by halving, with the fault."""
        good, bad = 0, len(paths)
        found = fault(self._try(paths))
        while bad - good > 1:
            middle = (good + bad) // 2
            answer = fault(self._try(paths[:middle]))
            good, bad, found = (good, middle, answer) if answer else (middle, bad, found)
        return paths[bad - 1], found


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _run(model: nn.Module, inputs: Inputs, names: Mapping[str, Sequence[str]]) -> _Trace:
    calls: list[tuple[str, _Seen]] = []

    def note(path: str) -> Callable[..., None]:
        return lambda module, args, output: calls.append((path, _look_at(output)))

    modules = {id(model.get_submodule(n)): (path, model.get_submodule(n)) for path in names for n in names[path]}
    handles = [module.register_forward_hook(note(path)) for path, module in modules.values()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = tuple(find_tensors(run_on_example(model, inputs)))
    except InputError as error:
        return _Trace(tuple(calls), (), repr(error.__cause__))
    finally:
        for handle in handles:
            handle.remove()
    return _Trace(tuple(calls), outputs)


def _look_at(output: Any) -> _Seen:
    """What to remember of a layer's output: enough to see whether another is the same."""
    if not isinstance(output, Tensor):
        return _Seen((), torch.zeros(0, device="cpu"))
    flat = output.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].double().cpu()
    return _Seen(tuple(output.shape), torch.cat([some, flat.double().square().mean().sqrt().reshape(1).cpu()]))


def _make_stand_in(model: nn.Module, candidates: Candidates, path: str) -> nn.Module:
    """Layers that compute what the layer computes, with its channels turned round in between."""
    module, layer = model.get_submodule(path), candidates.layers[path]
    probe = candidates.probes.get(path)
    kernel, bias = read_weights(module, layer, probe)
    mixable_input, mixable_output = (True, True) if probe is None else (probe.mixable_input, probe.mixable_output)
    before = mixable_input and (layer.offsets > 1 or not mixable_output)
    turn = _turn_before if before else _turn_after
    layers, weights = turn(layer, kernel, bias)
    original = describe_layer(module) or layer.named(layer.name, subclass=class_name(module))
    step = Step(path, candidates.names[path], "rehearsal", "turn", (), (), original, layers, Cost(), Cost(), 0.0)
    return build_replacement(module, step, weights)


def _turn_before(layer: LayerSpec, kernel: Tensor, bias: Tensor | None) -> tuple[tuple[LayerSpec, ...], list[Weights]]:
    signs = _signs(kernel.shape[1], kernel)
    turn = torch.cat([signs.diag().flip(1)] * layer.groups)
    turned = kernel.flip(1) * signs.view(1, -1, *(1 for _ in layer.kernel))
    layers = (layer.pointwise("turn", layer.in_channels, layer.in_channels, bias=False), layer.named("conv"))
    return layers, [Weights(turn.view(*turn.shape, *(1 for _ in layer.kernel))), Weights(turned, bias)]


def _turn_after(layer: LayerSpec, kernel: Tensor, bias: Tensor | None) -> tuple[tuple[LayerSpec, ...], list[Weights]]:
    width = layer.out_channels // layer.groups
    signs = _signs(width, kernel)
    turn = torch.cat([signs.diag().flip(1)] * layer.groups)
    grouped = kernel.view(layer.groups, width, *kernel.shape[1:])
    turned = (grouped.flip(1) * signs.flip(0).view(1, -1, *(1 for _ in kernel.shape[1:]))).view_as(kernel)
    after = layer.pointwise("turn", layer.out_channels, layer.out_channels, bias=layer.bias)
    weights = [Weights(turned), Weights(turn.view(*turn.shape, *(1 for _ in layer.kernel)), bias)]
    return (layer.named("conv", bias=False), after), weights


def _signs(count: int, like: Tensor) -> Tensor:
    """Ones of alternating sign ``(count,)``."""
    return torch.where(torch.arange(count, device="cpu") % 2 == 0, 1.0, -1.0).to(like)
