"""How far a step of recovery may go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from bottleneck_opt.recovery.options import Recovery

LARGEST_RATE, RATE_OF_ROOT = 0.01, 0.3
RATE_OF_OWN_LOSS = 0.004
PROBED = 8  # batches
LEAST_AGREEMENT, MOST_AGREEMENT, USUAL_AGREEMENT = 0.02, 0.9, 0.2
AGREEMENT_OF_FEW = 0.06  # mixes of few examples agree more than what they stand for
WARM_UP = 0.05


def measure_agreement(gradients: Iterable[Sequence[Tensor]]) -> float | None:
    """How much of a batch's gradient is that of all data, the rest being the batch's own.

    With S the squared length of the gradient of all data and N that of what a batch adds to it, S / (S + N), estimated
    without bias from the mean and the mean square over batches (McCandlish et al. 2018, appendix A.1).

    Args:
        gradients: Of each batch, a tensor for each parameter; at least two batches.

    Returns:
        A share between 0 and 1; None where there are too few batches, or no finite gradient.

    Example:
        >>> import torch
        >>> batches = [[torch.tensor([1.0, 1.0])], [torch.tensor([1.0, -1.0])]]
        >>> round(measure_agreement(batches), 3), measure_agreement(batches[:1])
        (0.0, None)
    """
    total: list[Tensor] = []
    squared, count = 0.0, 0
    for each in gradients:
        total = [a + b for a, b in zip(total, each, strict=True)] if total else list(each)
        squared, count = squared + _square(each), count + 1
    if count < 2 or not math.isfinite(squared) or squared <= 0:
        return None
    mean = squared / count
    shared = (_square(total) / count - mean) / (count - 1)
    return min(1.0, max(0.0, shared / mean))


def _square(tensors: Iterable[Tensor]) -> float:
    return math.fsum(float(each.double().square().sum()) for each in tensors)


def choose_rate(recovery: Recovery, start_loss: float, agreement: float | None) -> float:
    """The largest step size, relative to the size of each parameter's values.

    Steps of one size end in a loss that grows with its square, so the nearer the start is to the original, the smaller
    they must be; and smaller again, the less one batch's gradient tells about the other batches.

    Args:
        recovery: The options.
        start_loss: On the held-out examples, before training.
        agreement: Of the batches' gradients, from :func:`measure_agreement`; None where it is not known.

    Example:
        >>> round(choose_rate(Recovery(), 4e-4, 0.2), 6), choose_rate(Recovery(), 0.1, 0.8)
        (0.003, 0.01)
    """
    if recovery.learning_rate is not None:
        return recovery.learning_rate
    if recovery.loss is not None:
        return RATE_OF_OWN_LOSS
    if not math.isfinite(start_loss):
        return LARGEST_RATE
    share = min(MOST_AGREEMENT, max(LEAST_AGREEMENT, USUAL_AGREEMENT if agreement is None else agreement))
    root = math.sqrt(max(start_loss, 0.0) * share / (1 - share))
    return min(LARGEST_RATE, RATE_OF_ROOT * root)


def fixes_rate(recovery: Recovery) -> bool:
    """Whether the options fix the largest step size: by its value, or by a loss whose size says nothing about it."""
    return recovery.learning_rate is not None or recovery.loss is not None


def pace(recovery: Recovery, step: int) -> float:
    """Share of the largest step size at a step: a linear warm-up, then half a cosine down to zero."""
    warm_up = max(1, round(WARM_UP * recovery.steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, recovery.steps - warm_up)))
