"""Ask the user's ``evaluate`` about a model, without letting it touch anything of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError
from bottleneck_opt.working_copy import copy_model

Evaluate = Callable[[nn.Module], Any]
_SHOWN = 80


@dataclass(frozen=True)
class Answer:
    """What ``evaluate`` said of a model.

    Attributes:
        scores: One number, or one for each sample; empty where it said nothing that can be used.
        fault: Why it cannot be used, such as ``returned nan``; empty where it can.
        error: What it raised, if that is why.
    """

    scores: tuple[float, ...] = ()
    fault: str = ""
    error: Exception | None = None

    @property
    def metric(self) -> float:
        """The mean score."""
        return _mean(self.scores)


def ask_evaluate(evaluate: Evaluate, model: nn.Module) -> Answer:
    """What ``evaluate(model)`` says; whatever goes wrong in it becomes a fault."""
    try:
        answer = evaluate(model)
    except Exception as error:  # the user's own code
        return Answer(fault=f"failed: {type(error).__name__}: {error}", error=error)
    scores = _read_scores(answer)
    if not scores or not all(map(math.isfinite, (*scores, _mean(scores)))):
        return Answer(fault=f"returned {_show(answer)}")
    return Answer(scores)


def ask_about_copy(evaluate: Evaluate, model: nn.Module, *, seed: int) -> Answer:
    """As :func:`ask_evaluate`, of a copy in eval mode: what is done to it, and to torch's random numbers and grad mode,
    changes nothing here.

    Args:
        evaluate: The user's.
        model: It is not run and not changed.
        seed: Of torch's random numbers while it runs, so that a search whose ``evaluate`` draws some can be repeated.
    """
    copied = copy_model(model).eval()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices), torch.set_grad_enabled(torch.is_grad_enabled()):
        torch.manual_seed(seed)
        return ask_evaluate(evaluate, copied)


def run_evaluate(evaluate: Evaluate, model: nn.Module, which: str) -> float:
    """What the user's ``evaluate(model)`` says, the mean of it when it returns one score a sample.

    Raises:
        InputError: It failed or returned no finite number.
    """
    answer = ask_evaluate(evaluate, model)
    check_answer(answer, which)
    return answer.metric


def check_answer(answer: Answer, which: str) -> None:
    """Raise InputError where ``evaluate`` failed on a model, or returned no finite number for it."""
    if answer.error is not None:
        raise InputError(
            f"evaluate: failed on the model {which}: {type(answer.error).__name__}: {answer.error}. "
            "Pass a function that takes the model and returns a float, higher is better."
        ) from answer.error
    if answer.fault:
        raise InputError(
            f"evaluate: {answer.fault} for the model {which}; expected a finite number, or one for each sample. "
            "Return a float, higher is better."
        )


def _show(answer: Any) -> str:
    try:
        shown = repr(answer)
    except Exception:  # as above, of the user's own class
        shown = ""
    return shown if 0 < len(shown) < _SHOWN else type(answer).__name__


def _mean(scores: tuple[float, ...]) -> float:
    return sum(scores) / len(scores)


def _read_scores(answer: Any) -> tuple[float, ...]:
    """The numbers in an answer; empty where it is something else."""
    try:
        if isinstance(answer, Tensor):
            return tuple(answer.detach().flatten().double().tolist())
        values = list(answer) if isinstance(answer, Iterable) else [answer]
        return () if any(isinstance(value, str) for value in values) else tuple(map(float, values))
    except Exception:  # an answer may be anything, and fail in any way when it is looked at
        return ()
