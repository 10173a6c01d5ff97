"""Differentiate models that were only ever meant to be run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.autograd.graph import saved_tensors_hooks

T = TypeVar("T")


def differentiate(run: Callable[[], T]) -> T:
    """What ``run`` returns, which runs a model and differentiates it.

    Operations in place may change what an earlier operation needs for its derivative. Then it is given copies, which
    take memory, so only where there is no other way. (Torch's own ``allow_mutation_on_saved_tensors`` gives wrong
    derivatives, without a word, where a view was saved and what it views is changed.)

    Args:
        run: Is called again, from the beginning, where it fails for that reason.

    Raises:
        Exception: What ``run`` raises even so.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, requires_grad=True)
        >>> def run():
        ...     y = x.exp()
        ...     y.add_(1)
        ...     return torch.autograd.grad(y, x)
        >>> differentiate(run)
        (tensor([1.]),)
    """
    try:
        return run()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
    with saved_tensors_hooks(lambda saved: saved.detach().clone(), lambda copy: copy):
        return run()
