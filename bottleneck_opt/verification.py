"""Measure what the rewriting did to the outputs, and that every new layer is really used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import float_leaves
from bottleneck_opt.calibration_data import CalibrationData, place_batch
from bottleneck_opt.errors import InputError, RewriteError
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.plan import Plan
from bottleneck_opt.progress import Advance
from bottleneck_opt.statistics import OutputScale


@dataclass(frozen=True)
class OutputChange:
    """How far the rewritten model's output is from the original's.

    Attributes:
        relative: Mean squared change relative to the output's variance; None where the output has no floating values
            that vary, so that there is nothing to compare.
        kl: Mean Kullback-Leibler divergence of the softmax, or None unless the output is one ``(batch, classes)``
            tensor.
        agreement: Share of examples with the same top class, or None likewise.
    """

    relative: float | None
    kl: float | None
    agreement: float | None


def measure_change(
    before: nn.Module, after: nn.Module, data: CalibrationData, scales: Sequence[OutputScale],
    advance: Advance = lambda: None,
) -> OutputChange:  # fmt: skip
    """Run both models on the data and compare their outputs.

    Args:
        before, after: Working copies in eval mode.
        data: What to run on.
        scales: Spread of each output tensor, from calibration.
        advance: Called after each batch.

    Raises:
        InputError: The original's output has not one finite value.
        RewriteError: Shapes differ, or the rewritten model's output is not finite where the original's is.
    """
    squared, kl, agreed, examples = 0.0, 0.0, 0, 0
    classifies = True
    parameter = next(before.parameters(), torch.zeros((), device="cpu"))
    for batch in data.batches:
        placed = place_batch(batch, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad():
            expected, got = float_leaves(placed.call(before)), float_leaves(placed.call(after))
        _check_outputs(expected, got)
        examples += batch_size(batch)
        squared += sum(
            float((a.double() - b.double())[torch.isfinite(a)].square().sum()) * scale.weight**2
            for a, b, scale in zip(expected, got, scales, strict=False)
        )
        classifies = classifies and _is_classifier(expected)
        if classifies:
            kl += _divergence(expected[0], got[0])
            agreed += int((expected[0].argmax(1) == got[0].argmax(1)).sum())
        advance()
    relative = squared / examples if any(scale.weight for scale in scales) else None
    if not classifies:
        return OutputChange(relative, None, None)
    return OutputChange(relative, kl / examples, agreed / examples)


def _divergence(expected: Tensor, got: Tensor) -> float:
    """Summed Kullback-Leibler divergence of two batches of logits; classes ruled out by -inf add nothing."""
    before, after = expected.log_softmax(1), got.log_softmax(1)
    return float(torch.where(before.isneginf(), 0.0, before.exp() * (before - after)).sum())


def _is_classifier(outputs: Sequence[Tensor]) -> bool:
    return len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1


def _check_outputs(expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
    shapes = [tuple(leaf.shape) for leaf in expected], [tuple(leaf.shape) for leaf in got]
    if shapes[0] != shapes[1]:
        raise RewriteError(
            f"the rewritten model's outputs have shapes {shapes[1]}; expected {shapes[0]}. The model uses its "
            "layers in a way that cannot be followed: leave some out with exclude=."
        )
    for mine, theirs in zip(got, expected, strict=True):
        if not torch.isfinite(theirs).any():
            raise InputError(
                f"calibration: the original model's output {tuple(theirs.shape)} is NaN or infinite throughout; "
                "expected finite values. Check the model and the range of the data."
            )
        if (torch.isfinite(theirs) & ~torch.isfinite(mine)).any():
            raise RewriteError(
                "the rewritten model's output is not finite. Try a larger budget, and report this model."
            )


def check_calls(after: nn.Module, plan: Plan, expected: dict[str, int], run: Callable[[], Any]) -> None:
    """Run once and raise RewriteError unless every new layer was called as often as the layer it replaced.

    Args:
        after: The rewritten working copy.
        plan: What was replaced.
        expected: Calls of each replaced layer, by path.
        run: Runs ``after`` on the example input.
    """
    calls: Counter[str] = Counter()

    def count(path: str) -> Callable[..., None]:
        return lambda *_: calls.update([path])

    new = [(step.path, path) for step in plan.steps for path in step.layer_paths]
    new += [(sharing.members[0], sharing.path) for sharing in plan.sharings]
    handles = [after.get_submodule(path).register_forward_hook(count(path)) for _, path in new]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for old, path in new:
        if calls[path] != expected[old]:
            raise RewriteError(
                f"'{path}' was called {calls[path]} times, its layer {expected[old]} times: the model reaches "
                f"'{old}' by a reference outside the module tree, or acts on its type. Use exclude='{old}'."
            )
