"""Batch norms of a rewritten model: their statistics measured again, and kept where that helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bottleneck_opt.recovery.examples import Split, count_batches, make_batch
from bottleneck_opt.recovery.objective import Objective
from bottleneck_opt.recovery.options import Recovery
from bottleneck_opt.recovery.weights import copy_tensors, norm_statistics, norms_of, snapshot


def reestimate_norms(objective: Objective, split: Split, recovery: Recovery, loss: float) -> tuple[str, float]:
    """Measure the batch norms' statistics over the training examples; keep them where the held-out loss falls.

    Args:
        objective: The models; the student is changed where that helps.
        split: The examples.
        recovery: The options.
        loss: The held-out loss until now.

    Returns:
        What came of it, in words (``kept`` when the student was changed), and the held-out loss after it.
    """
    student = objective.student
    norms, statistics = norms_of(student), norm_statistics(student)
    if not recovery.reestimate_norms:
        return "not asked for", loss
    if not norms:
        return "no batch norms", loss
    before = snapshot(statistics)
    try:
        _measure(student, norms.values(), split, recovery)
        found = objective.mean_loss(split.held_out)
    except (ValueError, RuntimeError) as error:  # one value a channel is too few for statistics
        copy_tensors(before, statistics)
        return f"not possible: {error}", loss
    if found < loss:
        return "kept", found
    copy_tensors(before, statistics)
    return "no help", loss


def _measure(student: nn.Module, norms: Iterable[_BatchNorm], split: Split, recovery: Recovery) -> None:
    """One pass over the training examples with the norms in train mode; their mode and counters stay as they were."""
    before = [(norm, norm.momentum, _copy(norm.num_batches_tracked)) for norm in norms]
    plain, alone = replace(recovery, crop=None, flip=False), replace(split, mixed=False)
    try:
        for norm, _, _ in before:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for step in range(count_batches(split, plain)):
                torch.manual_seed(plain.seed)
                make_batch(alone, plain, step).call(student)
    finally:
        for norm, momentum, count in before:
            norm.eval()
            norm.momentum = momentum
            norm.num_batches_tracked = count


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
