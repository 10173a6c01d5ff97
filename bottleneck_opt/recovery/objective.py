"""What recovery minimises: how far the rewritten model's outputs, and its blocks', are from the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
LARGEST_BLOCK = 4  # layers
INSIDE = 20.0  # at the start, what the blocks add to the loss, in multiples of what the outputs do
PLAIN_WEIGHT = 2.0  # where the loss of the outputs tells nothing about it: it is the user's own, or infinite


@dataclass(frozen=True)
class Objective:
    """Both models and how they are compared.

    Attributes:
        teacher, student: Working copies.
        scales: Spread of each output tensor.
        blocks: Paths of the modules that are compared inside.
        loss: The user's own, or None.
        weight: Of the blocks in the loss to learn from.
        seed: Of random numbers inside the models; both draw the same.
    """

    teacher: nn.Module
    student: nn.Module
    scales: tuple[OutputScale, ...]
    blocks: tuple[str, ...]
    loss: Loss | None
    seed: int
    weight: float = PLAIN_WEIGHT

    def training_loss(self, batch: Inputs, step: int) -> Tensor:
        """The loss to learn from: of the outputs, and of the blocks."""
        outputs, inside = self.compare_both(batch, step)
        return outputs + self.weight * inside

    def compare_both(self, batch: Inputs, step: int) -> tuple[Tensor, Tensor]:
        """How far apart the outputs are, and those of the blocks on average; 0 where no block is compared."""
        with watched(self.teacher, self.blocks) as wanted, watched(self.student, self.blocks) as found:
            expected, got = self._run_both(batch, self.seed + step)
        outputs = self._compare(expected, got, batch)
        inside = [_relative_change(wanted[path], found[path]) for path in self.blocks]
        return outputs, torch.stack(inside).mean() if inside else outputs.new_zeros(())

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


def weigh_blocks(objective: Objective, batches: Iterable[Inputs]) -> Objective:
    """The same objective, with a weight of the blocks that suits how far apart the models are before training.

    The nearer the outputs, the smaller their change against that inside: after the default fits it was 9 to 16 times
    smaller in a digits ResNet, 6 to 43 times in a digits VGG, most where least had been rewritten. So no one weight of
    the change inside suits all. Measured with 3, 10 and 30 times the outputs' loss, KL on test data: the ResNet at 0.75
    of the multiply-adds 2.6e-5, 2.5e-5, 2.5e-5, at 0.33 2.2e-4, 2.0e-4, 1.8e-4; the VGG at 0.75 1.5e-5 each, at 0.5
    1.5e-4, 1.4e-4, 1.4e-4, at 0.33 3.3e-4, 3.1e-4, 3.0e-4; at 0.15 with 12, 20 and 31 times 1.20e-3, 1.23e-3, 1.31e-3.

    Args:
        objective: The models before training, and what is compared of them.
        batches: Of the examples to train on.
    """
    if objective.loss is not None or not objective.blocks:
        return objective
    with torch.no_grad():
        changes = [objective.compare_both(batch, step) for step, batch in enumerate(batches)]
    outputs, inside = (sum(map(float, each)) for each in zip(*changes, strict=True))
    weight = INSIDE * outputs / inside if inside > 0 else math.inf
    return replace(objective, weight=weight if math.isfinite(weight) else PLAIN_WEIGHT)


def find_blocks(teacher: nn.Module, student: nn.Module, batch: Inputs, *, examples: int) -> tuple[str, ...]:
    """Paths of modules whose outputs can be compared: the parents of rewritten layers, or the layers themselves.

    A parent of more than four layers is no block but a chain, most of the network, and its layers are compared instead;
    and those only where the outputs of all examples hold fewer values than the student has weights. A classifier's ten
    values an image leave much open that the inside then settles. A denoiser's picture says it all, and its inside,
    which cannot become the original's, only holds it back.

    Measured on test data, digits VGG, KL by its whole chain as one block, by no blocks, and by its layers: at 0.75 of
    the multiply-adds 2.0e-5, 1.5e-5, 1.5e-5; at 0.5 1.7e-4, 1.6e-4, 1.4e-4; another at 0.33 3.0e-4, 3.0e-4, 2.8e-4. A
    denoiser at 0.33, change of the output: by its chain 0.96e-3, by no blocks 0.98e-3, by its layers 1.03e-3 at a
    twentieth of the usual weight and 1.47e-3 at twice it. A digits ResNet at 0.33, KL: by its blocks of two layers
    1.9e-4, by its layers 2.2e-4.

    Of many, at most eight from first to last are taken.

    Args:
        teacher, student: Both models.
        batch: A few examples.
        examples: How many are trained on.
    """
    theirs = dict(teacher.named_modules())
    layers = [path for path, each in student.named_modules() if isinstance(each, Factored) and path in theirs]
    parents = {path: path.rpartition(".")[0] for path in layers}
    blocks = {parent for parent in parents.values() if parent and _is_block(theirs[parent])}
    candidates = sorted({*layers, *blocks})
    with torch.no_grad(), watched(teacher, candidates) as expected, watched(student, candidates) as got:
        outputs = float_leaves(batch.call(teacher))
        batch.call(student)
    alike = {path for path in candidates if expected[path] and _shapes(expected[path]) == _shapes(got[path])}
    values = examples / batch_size(batch) * sum(each.numel() for each in outputs)
    weights = sum(each.numel() for each in student.parameters())
    compared = alike if values < weights else alike & blocks
    chosen = dict.fromkeys(parents[path] if parents[path] in alike else path for path in layers)
    paths = [path for path in chosen if path in compared]
    count = min(len(paths), MOST_FEATURES)
    return tuple(paths[round(index * (len(paths) - 1) / max(count - 1, 1))] for index in range(count))


def _is_block(module: nn.Module) -> bool:
    """Whether few layers with a matrix of weights are directly inside."""
    weights = (getattr(child, "weight", None) for child in module.children())
    return sum(isinstance(weight, Tensor) and weight.dim() > 1 for weight in weights) <= LARGEST_BLOCK


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
