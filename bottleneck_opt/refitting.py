"""Correct each rewritten layer for what the layers before it now do differently: one walk, in closed form.

Every layer was fitted to the inputs it has in the original network. In the rewritten one it gets slightly different
ones. Layer after layer, in the order they run, the last factor is fitted again: from what really arrives at it to what
the original layer gave. All examples run as one batch, so that a layer can be corrected before the next one sees its
output. A fifth of the examples is held out, and a correction that does not help there is not made; mixes of the
examples are fitted to last, once that is decided.

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
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.kernels import to_module
from bottleneck_opt.last_factor import HELD_OUT, Samples, refit_last
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.outcome import Correction
from bottleneck_opt.patches import count_examples, count_positions, take_patches, take_pixels
from bottleneck_opt.plan import Plan, Step
from bottleneck_opt.progress import Advance
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Weights
from bottleneck_opt.working_copy import run_on_example

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
    joined = _join_batches(data, _most_examples(traced))
    if joined is None or joined.real < HELD_OUT:
        return Refitted(weights, (), dict.fromkeys(steps, "fewer than 5 examples of one shape"))
    walk = _Walk(plan, steps, weights, curvatures, joined, advance)
    placed = _place(joined.batches[0], working)
    rewritten = rewrite_model(working, plan, weights)
    try:
        with torch.no_grad():
            _run_hooked(working, dict.fromkeys(steps, walk.take_target), placed)
            inner = {path: step.layer_paths[-1] for path, step in steps.items()}
            _run_hooked(rewritten, dict.fromkeys(steps, walk.correct), placed, inner)
    except InputError:
        return Refitted(
            weights, (), dict.fromkeys(steps, f"the model does not take {joined.examples} examples at once")
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


def _join_batches(data: CalibrationData, limit: int) -> CalibrationData | None:
    """The examples of the most common shape, and their mixes, as one batch; None when they cannot be joined."""
    groups: dict[tuple[tuple[int, ...], ...], list[Inputs]] = {}
    for batch in data.batches:
        size = batch_size(batch)
        if any(not tensor.dim() or tensor.shape[0] != size for tensor in batch.tensors()):
            return None
        groups.setdefault(_shapes(batch), []).append(batch)
    common = max(groups, key=lambda shapes: sum(map(batch_size, groups[shapes])))
    columns = [torch.cat(parts)[:limit] for parts in zip(*(batch.tensors() for batch in groups[common]), strict=True)]
    taken, count = iter(columns), len(columns[0])
    real = sum(batch_size(batch) for batch in data.real_batches if _shapes(batch) == common)
    call = groups[common][0].map(lambda _: next(taken))
    return CalibrationData((call,), count, data.description, data.noise, mixes=max(0, count - real))


def _shapes(batch: Inputs) -> tuple[tuple[int, ...], ...]:
    """Of one example."""
    return tuple(tuple(tensor.shape[1:]) for tensor in batch.tensors())


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
        curvatures: Mapping[str, Tensor], joined: CalibrationData, advance: Advance,
    ) -> None:  # fmt: skip
        self.weights: dict[str, Sequence[Weights]] = {}
        self.corrections: list[Correction] = []
        self._plan, self._steps, self._fitted, self._curvatures = plan, steps, weights, curvatures
        self._joined, self._advance = joined, advance
        self._targets: dict[str, Tensor] = {}
        self._positions: dict[str, Tensor] = {}
        wide = sum(step.original.out_channels for step in steps.values())
        self._most = max(1, min(MOST_SAMPLES, MOST_BYTES // max(4 * wide, 1)) // max(joined.examples, 1))

    def take_target(self, path: str, module: nn.Module, output: Tensor) -> None:
        """Remember what the original layer gives."""
        layer = self._steps[path].original
        available = count_positions(layer, output)
        chosen = choose_positions(available, self._most, count_examples(layer, output), seed=len(self._targets))
        self._positions[path] = chosen
        made = take_pixels(layer, output, chosen).cpu()
        kept = self._plan.kept_outputs(path)
        self._targets[path] = made[:, list(kept)] if kept else made

    def correct(self, path: str, module: nn.Module, flowing: Tensor) -> None:
        """Fit the last factor, which is about to run, to the original's outputs."""
        step, weights = self._steps[path], list(self._fitted[path])
        last = step.layers[-1]
        patches = take_patches(last, flowing, self._positions[path]).cpu()
        samples = Samples(patches, self._targets.pop(path), self._joined.examples, self._joined.mixes)
        found = refit_last(last, samples, weights[-1], self._curvatures[path])
        accepted = found.weights is not None
        self.corrections.append(Correction(path, found.before, found.after, accepted, found.halved))
        if found.weights is not None:
            weights[-1] = found.weights
            self.weights[path] = weights
            _load(module, last, found.weights)
        self._advance()


def choose_positions(available: int, most: int, examples: int, *, seed: int) -> Tensor:
    """Flat output positions: all of them, ``(available,)``, or others in each example, ``(examples, most)``.

    The same few in every example would tell little of all the others, and the held-out examples, seen there too, could
    not show it: a denoiser's layer refitted to 64 of 1,600 positions of 256 crops doubled the change of its output.
    """
    if available <= most:
        return torch.arange(available, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(available, generator=generator, device="cpu")[:most] for _ in range(examples)]
    return torch.stack(rows).sort(1).values


def _load(module: nn.Module, layer: LayerSpec, weights: Weights) -> None:
    """Put new values into a layer of the walk's own copy."""
    weight = module.get_parameter("weight")
    weight.copy_(to_module(layer, weights.weight).to(weight))
    if weights.bias is not None:
        module.get_parameter("bias").copy_(weights.bias.to(weight))
