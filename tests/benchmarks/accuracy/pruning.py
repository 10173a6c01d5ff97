"""Channel pruning by torch-pruning, with its own importances, at the same MACs."""

from __future__ import annotations

import copy
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.errors import BudgetError
from tests.benchmarks.accuracy.composing import find_largest
from tests.benchmarks.accuracy.problem import Problem

BISECTIONS = 9
MOST_PRUNED = 0.9  # above, the library leaves small layers whole rather than empty them


def prune(problem: Problem, importance: str, budget: float, *, everywhere: bool) -> nn.Module:
    """The network with its least important channels taken away.

    Args:
        problem: What to prune.
        importance: ``magnitude`` (L2 norm of all of a channel's weights) or ``hessian`` (squared weight times squared
            gradient of the output in a random direction, which needs data but no labels).
        budget: Share of the MACs.
        everywhere: Whether channels of all layers compete (``global_pruning``); else all layers lose the same share.

    Raises:
        BudgetError: No share of pruned channels reaches the budget.
    """
    limit = problem.limit(budget)

    def keep(share: float) -> nn.Module:
        return _remove(problem, importance, MOST_PRUNED * (1 - share), everywhere=everywhere)

    def fits(kept: float) -> bool:
        return bo.trace(keep(kept), problem.example).cost.macs <= limit

    kept = find_largest(fits, bisections=BISECTIONS)
    if kept is None:
        raise BudgetError("budget: no share of pruned channels reaches it. Ask for more.")
    return keep(kept)


def _remove(problem: Problem, importance: str, share: float, *, everywhere: bool) -> nn.Module:
    import torch_pruning  # noqa: PLC0415  (an extra)

    model = copy.deepcopy(problem.original).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        if importance == "hessian":
            parameter.grad = _squared_gradients(problem)[name].clone()
    scorer = _make_scorer(torch_pruning.importance, importance)
    last = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MetaPruner(
            model, problem.example, importance=scorer, pruning_ratio=share, max_pruning_ratio=MOST_PRUNED,
            global_pruning=everywhere, ignored_layers=[last],
        )  # fmt: skip
        pruner.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def _make_scorer(importances: Any, importance: str) -> Any:
    """The library's scorer; the second reads mean squared gradients from ``.grad``.

    Its own accumulation keeps the last example only (it looks gradients up by name and keeps them by parameter).
    """
    return importances.GroupHessianImportance() if importance == "hessian" else importances.GroupMagnitudeImportance()


@lru_cache(maxsize=1)
def _squared_gradients(problem: Problem) -> dict[str, Tensor]:
    """Mean over the inputs of the squared gradient of ``v . f(x)``, ``v`` standard normal, by parameter."""
    model = copy.deepcopy(problem.original).eval().requires_grad_(True)
    generator = torch.Generator().manual_seed(problem.draw)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for example in problem.calibration.split(1):
        output = model(example)
        direction = torch.randn(output.shape, generator=generator)
        gradients = torch.autograd.grad((output * direction).sum(), parameters)
        squares = [gradient.square() / len(problem.calibration) for gradient in gradients]
        sums = [total + square for total, square in zip(sums, squares, strict=True)]
    return dict(zip(names, sums, strict=True))
