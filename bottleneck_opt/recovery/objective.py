"""What recovery minimises: how far the rewritten model's outputs, and its blocks', are from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import float_leaves
from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.factored import Factored
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.recovery.options import Loss
from bottleneck_opt.statistics import OutputScale

MOST_FEATURES = 8
BLOCKS = 2.0


@dataclass(frozen=True)
class Objective:
    """Both models and how they are compared.

    Attributes:
        teacher, student: Working copies.
        scales: Spread of each output tensor.
        blocks: Paths of the modules that are compared inside.
        loss: The user's own, or None.
        seed: Of random numbers inside the models; both draw the same.
    """

    teacher: nn.Module
    student: nn.Module
    scales: tuple[OutputScale, ...]
    blocks: tuple[str, ...]
    loss: Loss | None
    seed: int

    def training_loss(self, batch: Inputs, step: int) -> Tensor:
        """The loss to learn from: of the outputs, and of the blocks."""
        with watched(self.teacher, self.blocks) as wanted, watched(self.student, self.blocks) as found:
            expected, got = self._run_both(batch, self.seed + step)
        loss = self._compare(expected, got, batch)
        inside = [_relative_change(wanted[path], found[path]) for path in self.blocks]
        return loss + BLOCKS * torch.stack(inside).mean() if inside else loss

    def mean_loss(self, batches: Iterable[Inputs]) -> float:
        """The loss to judge by: of the outputs alone, the mean over all examples; infinite where it is no number."""
        total, examples = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                size = batch_size(batch)
                total += float(self._compare(*self._run_both(batch, self.seed), batch)) * size
                examples += size
        return math.inf if math.isnan(total) else total / examples

    def _run_both(self, batch: Inputs, seed: int) -> tuple[Any, Any]:
        torch.manual_seed(seed)
        with torch.no_grad():
            expected = batch.call(self.teacher)
        torch.manual_seed(seed)
        return expected, batch.call(self.student)

    def _compare(self, expected: Any, got: Any, batch: Inputs) -> Tensor:
        if self.loss is not None:
            return _ask_loss(self.loss, got, expected, batch)
        theirs, mine = float_leaves(expected), float_leaves(got)
        if _shapes(theirs) != _shapes(mine):
            raise ModelError(
                f"recovery: the outputs' shapes depend on the weights: got {_shapes(mine)}; expected {_shapes(theirs)} "
                "as the original gives. Pass Recovery(loss=...) that can compare them."
            )
        changes = [
            _mean_squared_change(a, b) / (scale.deviation**2 * scale.leaves)
            for a, b, scale in zip(theirs, mine, self.scales, strict=False)
            if scale.deviation > 0
        ]
        return torch.stack(changes).sum() if changes else torch.zeros((), device="cpu")


def find_blocks(teacher: nn.Module, student: nn.Module, batch: Inputs) -> tuple[str, ...]:
    """Paths of modules whose outputs can be compared: the parents of rewritten layers, or the layers themselves.

    Of many, at most eight from first to last are taken.
    """
    theirs = dict(teacher.named_modules())
    layers = [path for path, each in student.named_modules() if isinstance(each, Factored) and path in theirs]
    parents = {path: path.rpartition(".")[0] for path in layers}
    candidates = sorted({*layers, *parents.values()} - {""})
    with torch.no_grad(), watched(teacher, candidates) as expected, watched(student, candidates) as got:
        batch.call(teacher)
        batch.call(student)
    alike = {path for path in candidates if expected[path] and _shapes(expected[path]) == _shapes(got[path])}
    chosen = dict.fromkeys(parents[path] if parents[path] in alike else path for path in layers)
    paths = [path for path in chosen if path in alike]
    count = min(len(paths), MOST_FEATURES)
    return tuple(paths[round(index * (len(paths) - 1) / max(count - 1, 1))] for index in range(count))


@contextmanager
def watched(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The floating outputs of some modules, over all their calls, filled in while the model runs."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def collect(path: str) -> Callable[..., None]:
        return lambda module, args, output: seen[path].extend(float_leaves(output))

    handles = [model.get_submodule(path).register_forward_hook(collect(path)) for path in seen]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _shapes(leaves: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in leaves]


def _mean_squared_change(expected: Tensor, got: Tensor) -> Tensor:
    """Over the entries to which the original gives a finite value."""
    finite = torch.isfinite(expected)
    if not finite.all():
        expected, got = expected[finite], got[finite]
    return (got - expected).square().sum() / max(expected.numel(), 1)


def _relative_change(expected: Sequence[Tensor], got: Sequence[Tensor]) -> Tensor:
    changes = [
        _mean_squared_change(a, b) / torch.where(torch.isfinite(a), a, 0).var(correction=0).clamp_min(1e-12)
        for a, b in zip(expected, got, strict=True)
    ]
    return torch.stack(changes).mean()


def _ask_loss(loss: Loss, got: Any, expected: Any, batch: Inputs) -> Tensor:
    try:
        answer = loss(got, expected, batch)
    except Exception as error:  # the user's own code
        raise InputError(
            f"Recovery: loss failed: {type(error).__name__}: {error}. "
            "Pass a function loss(student_output, teacher_output, inputs) that gives a scalar Tensor."
        ) from error
    if not isinstance(answer, Tensor) or answer.numel() != 1:
        shown = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise InputError(
            f"Recovery: loss returned {shown}; expected a Tensor of one value. "
            "Return for instance (student_output - teacher_output).square().mean()."
        )
    return answer.reshape(())
