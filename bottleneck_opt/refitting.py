"""Correct each rewritten layer for what the layers before it now do differently: one walk, in closed form.

Every layer was fitted to the inputs it has in the original network. In the rewritten one it gets slightly different
ones. Layer after layer, in the order they run, the last factor is fitted again: from what really arrives at it to what
the original layer gave. All examples run as one batch, so that a layer can be corrected before the next one sees its
output. A fifth of the examples is held out, and a correction that does not help there is not made.

Source: He et al. 2017 (reconstruction of the original's outputs from the compressed network's inputs), with a ridge
towards the factor at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.errors import InputError
from bottleneck_opt.factorization import cholesky
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.kernels import by_offset, spread_groups, to_module
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.outcome import Correction
from bottleneck_opt.patches import count_positions, take_patches, take_pixels
from bottleneck_opt.plan import Plan, Step
from bottleneck_opt.progress import Advance
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Weights
from bottleneck_opt.working_copy import run_on_example

ENOUGH = 5
RIDGE, RIDGE_FEW = 1e-2, 1e-1
HELD_OUT = 5
MOST_SAMPLES = 16384
MOST_BYTES = 2**29
MOST_ACTIVATION_BYTES = 2**29


@dataclass(frozen=True)
class Refitted:
    """All weights after refitting, what was done to each layer, and why some were left as they were."""

    weights: Mapping[str, Sequence[Weights]]
    corrections: tuple[Correction, ...]
    skipped: Mapping[str, str]


def refit(
    working: nn.Module, traced: Traced, plan: Plan, weights: Mapping[str, Sequence[Weights]],
    curvatures: Mapping[str, Tensor], data: CalibrationData, advance: Advance = lambda: None,
) -> Refitted:  # fmt: skip
    """Fit the last factor of every rewritten layer again, to the original's outputs.

    Args:
        working: The original's working copy.
        traced: Its recording.
        plan: What is replaced.
        weights: The factors' weights, by path, as they were fitted.
        curvatures: ``G (out, out)`` of each layer, by path.
        data: Calibration examples.
        advance: Called after each layer.
    """
    if not plan.steps:
        return Refitted(weights, (), {})
    skipped = {step.path: reason for step in plan.steps if (reason := _find_obstacle(step, traced))}
    steps = {step.path: step for step in plan.steps if step.path not in skipped}
    call = _join_batches(data, _most_examples(traced))
    if call is None or batch_size(call) < HELD_OUT:
        return Refitted(weights, (), dict.fromkeys(steps, "fewer than 5 examples of one shape"))
    walk = _Walk(plan, steps, weights, curvatures, batch_size(call), advance)
    placed = _place(call, working)
    rewritten = rewrite_model(working, plan, weights)
    try:
        with torch.no_grad():
            _run_hooked(working, dict.fromkeys(steps, walk.take_target), placed)
            inner = {path: step.layer_paths[-1] for path, step in steps.items()}
            _run_hooked(rewritten, dict.fromkeys(steps, walk.correct), placed, inner)
    except InputError:
        return Refitted(
            weights, (), {path: f"the model does not take {batch_size(call)} examples at once" for path in steps}
        )
    return Refitted({**weights, **walk.weights}, tuple(walk.corrections), skipped)


def _find_obstacle(step: Step, traced: Traced) -> str:
    if len(traced.structure.calls_of(*step.names)) != 1:
        return "it is called several times"
    if any(layer.transposed for layer in step.layers) and _is_told_its_size(step, traced):
        return "its output size is given in the call"
    if any(layer.subclass for layer in step.layers):
        return f"its forward is {step.original.subclass}'s own"
    return ""


def _is_told_its_size(step: Step, traced: Traced) -> bool:
    axes = len(step.original.kernel)
    calls = traced.structure.calls_of(*step.names)
    sizes = ((call.input_shapes[0][-axes:], call.output_shapes[0][-axes:]) for call in calls)
    return any(step.original.output_size(before) != tuple(after) for before, after in sizes)


def _most_examples(traced: Traced) -> int:
    """How many examples may run at once, from the size of the largest activation of the recorded run."""
    sizes = [sum(map(_count, node.output_shapes)) for node in traced.structure.nodes]
    each = 4 * max(sizes, default=1) / max(1, batch_size(traced.inputs))
    return int(max(1, MOST_ACTIVATION_BYTES // max(each, 1)))


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _join_batches(data: CalibrationData, limit: int) -> Inputs | None:
    """The examples of the most common shape as one call; None when they cannot be joined."""
    groups: dict[tuple[tuple[int, ...], ...], list[Inputs]] = {}
    for batch in data.batches:
        size = batch_size(batch)
        if any(not tensor.dim() or tensor.shape[0] != size for tensor in batch.tensors()):
            return None
        groups.setdefault(tuple(tuple(tensor.shape[1:]) for tensor in batch.tensors()), []).append(batch)
    batches = max(groups.values(), key=lambda each: sum(map(batch_size, each)))
    columns = [torch.cat(parts)[:limit] for parts in zip(*(batch.tensors() for batch in batches), strict=True)]
    taken = iter(columns)
    return batches[0].map(lambda _: next(taken))


def _place(call: Inputs, working: nn.Module) -> Inputs:
    like = next(working.parameters())
    return call.map(lambda t: t.to(like.device, like.dtype) if t.is_floating_point() else t.to(like.device))


def _run_hooked(
    model: nn.Module, hooks: Mapping[str, Callable[[str, nn.Module, Tensor], None]], example: Inputs,
    inner: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Run with a hook after each layer, or before the inner layer where one is named."""
    broken: list[Exception] = []

    def call(path: str, module: nn.Module, value: Tensor) -> None:
        try:
            hooks[path](path, module, value)
        except Exception as error:  # kept apart from what the model raises by itself
            broken.append(error)
            raise

    def after(path: str) -> Callable[..., None]:
        return lambda module, args, output: call(path, module, output)

    def before(path: str) -> Callable[..., None]:
        return lambda module, args: call(path, module, args[0])

    if inner is None:
        handles = [model.get_submodule(path).register_forward_hook(after(path), prepend=True) for path in hooks]
    else:
        handles = [model.get_submodule(inner[path]).register_forward_pre_hook(before(path)) for path in hooks]
    try:
        run_on_example(model, example)
    except InputError:
        if broken:
            raise broken[0] from None
        raise
    finally:
        for handle in handles:
            handle.remove()


class _Walk:
    """The state of one walk: the original's outputs at some positions, and the weights corrected so far."""

    def __init__(
        self, plan: Plan, steps: Mapping[str, Step], weights: Mapping[str, Sequence[Weights]],
        curvatures: Mapping[str, Tensor], examples: int, advance: Advance,
    ) -> None:  # fmt: skip
        self.weights: dict[str, Sequence[Weights]] = {}
        self.corrections: list[Correction] = []
        self._plan, self._steps, self._fitted, self._curvatures = plan, steps, weights, curvatures
        self._examples, self._advance = examples, advance
        self._targets: dict[str, Tensor] = {}
        self._positions: dict[str, Tensor] = {}
        wide = sum(step.original.out_channels for step in steps.values())
        self._most = max(1, min(MOST_SAMPLES, MOST_BYTES // max(4 * wide, 1)) // max(examples, 1))

    def take_target(self, path: str, module: nn.Module, output: Tensor) -> None:
        """Remember what the original layer gives."""
        layer = self._steps[path].original
        available = count_positions(layer, output)
        generator = torch.Generator().manual_seed(len(self._targets))
        chosen = torch.randperm(available, generator=generator, device="cpu")[: self._most].sort().values
        self._positions[path] = chosen
        made = take_pixels(layer, output, chosen).cpu()
        kept = self._plan.kept_outputs(path)
        self._targets[path] = made[:, list(kept)] if kept else made

    def correct(self, path: str, module: nn.Module, flowing: Tensor) -> None:
        """Fit the last factor, which is about to run, to the original's outputs."""
        step, weights = self._steps[path], list(self._fitted[path])
        last = step.layers[-1]
        target = self._targets.pop(path).double()
        patches = take_patches(last, flowing, self._positions[path]).double().cpu()
        samples = _Samples(patches, target, self._examples)
        old = weights[-1]
        found = _fit_last(last, samples.fitting(), old)
        fewer = _fit_last(last, samples.fitting(half=True), old)
        metric = self._curvatures[path]
        before, after, halved = (_error(last, samples.held_out(), each, metric) for each in (old, found, fewer))
        accepted = after < before
        self.corrections.append(Correction(path, before, after, accepted, halved))
        if accepted:
            weights[-1] = _fit_last(last, samples, old)
            self.weights[path] = weights
            _load(module, last, weights[-1])
        self._advance()


@dataclass(frozen=True)
class _Samples:
    """Patches ``(n, offsets * in)`` and targets ``(n, out)``, example after example."""

    patches: Tensor
    targets: Tensor
    examples: int

    def fitting(self, *, half: bool = False) -> _Samples:
        """Those to fit, or every other one of them: four and two of five."""
        return self._take(lambda example: example % HELD_OUT in ((1, 3) if half else (1, 2, 3, 4)))

    def held_out(self) -> _Samples:
        return self._take(lambda example: example % HELD_OUT == 0)

    def _take(self, keep: Callable[[int], bool]) -> _Samples:
        numbers = [example for example in range(self.examples) if keep(example)]
        each = len(self.patches) // self.examples
        rows = (torch.tensor(numbers, device="cpu")[:, None] * each + torch.arange(each, device="cpu")).flatten()
        return _Samples(self.patches[rows], self.targets[rows], len(numbers))


def _fit_last(layer: LayerSpec, samples: _Samples, old: Weights) -> Weights:
    """``(Cov(y, z) + l W0)(Cov(z) + l I)^-1``, group by group, and the bias that keeps the mean.

    A layer without a bias can only be fitted to the values themselves: second moments take the covariances' place.
    """
    rows, columns = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    kernels, biases = [], []
    for group in range(layer.groups):
        entries = _entries(layer, group)
        z, y = samples.patches[:, entries], samples.targets[:, group * rows : (group + 1) * rows]
        kernel = old.weight[group * rows : (group + 1) * rows]
        flat = by_offset(kernel).flatten(1)
        middle, mean = (z.mean(0), y.mean(0)) if layer.bias else (z.new_zeros(z.shape[1]), y.new_zeros(rows))
        centered = z - middle
        covariance = centered.T @ centered / len(z)
        crossed = (y - mean).T @ centered / len(z)
        ridge = (RIDGE if len(z) >= ENOUGH * z.shape[1] else RIDGE_FEW) * float(covariance.diagonal().mean())
        covariance.diagonal().add_(max(ridge, 1e-12))
        new = torch.cholesky_solve((crossed + ridge * flat).T, cholesky(covariance)).T
        kernels.append(new.view(rows, layer.offsets, columns).transpose(1, 2).reshape(kernel.shape))
        biases.append(mean - new @ middle)
    return Weights(torch.cat(kernels), torch.cat(biases) if layer.bias else None)


def _entries(layer: LayerSpec, group: int) -> Tensor:
    """The numbers of the patch entries that a group reads."""
    width = layer.in_channels // layer.groups
    channels = torch.arange(group * width, (group + 1) * width, device="cpu")
    return (torch.arange(layer.offsets, device="cpu")[:, None] * layer.in_channels + channels).flatten()


def _error(layer: LayerSpec, samples: _Samples, weights: Weights, metric: Tensor) -> float:
    """Mean of ``e^T G e`` over samples, relative to that of the targets around their mean."""
    full = spread_groups(weights.weight, layer.groups)
    flat = by_offset(full).flatten(1)
    bias = 0.0 if weights.bias is None else weights.bias
    error = samples.targets - (samples.patches @ flat.T + bias)
    whole = samples.targets - samples.targets.mean(0)
    felt = [float(torch.einsum("no,no->", each @ metric, each)) for each in (error, whole)]
    return felt[0] / max(felt[1], 1e-300)


def _load(module: nn.Module, layer: LayerSpec, weights: Weights) -> None:
    """Put new values into a layer of the walk's own copy."""
    weight = module.get_parameter("weight")
    weight.copy_(to_module(layer, weights.weight).to(weight))
    if weights.bias is not None:
        module.get_parameter("bias").copy_(weights.bias.to(weight))
