"""Try a change on a model: whether its output stays, and which part of the change is at fault if it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs, find_tensors
from bottleneck_opt.working_copy import run_on_example

T = TypeVar("T")
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def find_difference(before: Callable[[], nn.Module], after: Callable[[], nn.Module], inputs: Inputs) -> str:
    """How a changed model's outputs differ, in words; empty when they do not.

    Args:
        before: Makes the model that says what is expected.
        after: Makes the changed one.
        inputs: What both are run on, with the same random numbers.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            expected, got = _run(before(), inputs), _run(after(), inputs)
    except InputError as error:
        return f"the model fails: {error.__cause__!r}"
    if [each.shape for each in expected] != [each.shape for each in got]:
        return "the model's output has another shape"
    same = all(_are_close(one, other) for one, other in zip(expected, got, strict=True))
    return "" if same else "the model's output changes"


def _run(model: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(find_tensors(run_on_example(model, inputs)))


def _are_close(before: Tensor, after: Tensor) -> bool:
    """Whether two outputs are the same up to the rounding of their precision."""
    a, b = (torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in (before, after))
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    tolerance = _TOLERANCE.get(before.dtype, 1e-3)
    return a.numel() == 0 or bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-30))


def find_culprit(tried: Sequence[T], find_fault: Callable[[Sequence[T]], str], fault: str) -> tuple[T, str]:
    """The last of the shortest run of first changes that is at fault, by halving, with the fault.

    Args:
        tried: Changes that are at fault together.
        find_fault: What happens when some of them are made, in words; empty when nothing does.
        fault: What happens when all are.

    Example:
        >>> find_culprit("abcd", lambda some: "c breaks it" if "c" in some else "", "it breaks")
        ('c', 'c breaks it')
    """
    good, bad = 0, len(tried)
    while bad - good > 1:
        middle = (good + bad) // 2
        answer = find_fault(tried[:middle])
        good, bad, fault = (good, middle, answer) if answer else (middle, bad, fault)
    return tried[bad - 1], fault
