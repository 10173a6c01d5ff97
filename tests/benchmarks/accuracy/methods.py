"""All methods by name: ``(problem, budget)`` gives the compressed network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.calibration_data import read_calibration
from bottleneck_opt.inputs import read_inputs
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recovery.distilling import measure_scales
from bottleneck_opt.recovery.recovering import teach
from bottleneck_opt.registry import find_passes
from bottleneck_opt.result import Result
from bottleneck_opt.working_copy import undisturbed, working_copy
from tests.benchmarks.accuracy.composing import Mixture, compose
from tests.benchmarks.accuracy.problem import Problem
from tests.benchmarks.accuracy.pruning import prune
from tests.benchmarks.accuracy.rivals import WeightSvd, WeightTucker

Method = Callable[[Problem, float], nn.Module]
RECOVERED = "+recovery"
CACHE = Path("out/accuracy/cache")
BUILT_IN = tuple(each.name for each in find_passes(None))


def _optimize(
    problem: Problem, budget: float, passes: tuple[str, ...] | None = None, recipe: Recipe | None = None
) -> Result:  # fmt: skip
    return bo.optimize(
        problem.original,
        problem.example,
        calibration=problem.calibration,
        budget=budget,
        passes=passes,
        recipe=recipe,
        seed=problem.draw,
        allow_slower=True,  # the table is about multiply-adds, like the methods it compares with
        cache=CACHE,  # what budgets and methods have in common is made once
        progress=False,
    )


def _ours(
    problem: Problem, budget: float, passes: tuple[str, ...] | None = None, recipe: Recipe | None = None
) -> nn.Module:  # fmt: skip
    return _optimize(problem, budget, passes, recipe).model


def _ours_in_time(problem: Problem, share: float, *, batch: int) -> nn.Module:
    return bo.optimize(
        problem.original, problem.example, calibration=problem.calibration, budget=f"latency={share:g}",
        timing=bo.Timing(batch, 1), seed=problem.draw, progress=False,
    ).model  # fmt: skip


def _ours_recovered(problem: Problem, budget: float) -> nn.Module:
    lesson = problem.task.teach(problem.training, problem.draw)
    return bo.recover(
        _optimize(problem, budget), lesson.inputs, teacher=problem.original, recovery=lesson.recovery,
        calibration_limit=len(lesson.inputs), progress=False,
    ).model  # fmt: skip


def _recovered(method: Method, problem: Problem, budget: float) -> nn.Module:
    """Somebody else's network with our recovery."""
    model, lesson = method(problem, budget), problem.task.teach(problem.training, problem.draw)
    with undisturbed():
        teacher = working_copy(problem.original)
        data = read_calibration(
            lesson.inputs, read_inputs(problem.example), given=problem.example, limit=len(lesson.inputs),
            seed=problem.draw, runs=lambda call: True, noise_examples=1,
        )  # fmt: skip
        teach(teacher, model, data, lesson.recovery, scales=measure_scales(teacher, data))
    return model


def _composed(mixture: Mixture) -> Method:
    return lambda problem, budget: compose(problem, mixture, budget)


def _pruned(importance: str, *, everywhere: bool) -> Method:
    return lambda problem, budget: prune(problem, importance, budget, everywhere=everywhere)


def _without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in BUILT_IN if name not in names)


FACTORS = ("reduce", "expand", "tucker", "spatial")
ONE_SIDED = Mixture(passes=("reduce", "expand"), curvature=False, allocation=False, refit=False)

OURS: Mapping[str, Method] = {"ours": _ours, f"ours{RECOVERED}": _ours_recovered}

BASELINES: Mapping[str, Method] = {
    "svd": _composed(Mixture(passes=(WeightSvd(),), allocation=False, refit=False)),
    "tucker2": _composed(Mixture(passes=(WeightTucker(),), allocation=False, refit=False)),
    "one-sided": _composed(ONE_SIDED),
    "prune-magnitude": _pruned("magnitude", everywhere=False),
    "prune-hessian": _pruned("hessian", everywhere=False),
    "prune-magnitude-global": _pruned("magnitude", everywhere=True),
    "prune-hessian-global": _pruned("hessian", everywhere=True),
}

ABLATIONS: Mapping[str, Method] = {
    "no curvature": partial(_ours, recipe=Recipe(curvature=False)),
    "no refit": partial(_ours, recipe=Recipe(refit=False)),
    "no joint fit": partial(_ours, recipe=Recipe(joint=0)),
    "no refit nor joint fit": partial(_ours, recipe=Recipe(refit=False, joint=0)),
    "no mixes": partial(_ours, recipe=Recipe(mixes=0)),
    "no rounds": partial(_ours, recipe=Recipe(rounds=0)),
    "in two steps": partial(_ours, recipe=Recipe(steps=2)),
    "no select": partial(_ours, passes=_without("select")),
    "no tucker": partial(_ours, passes=_without("tucker")),
    "no spatial": partial(_ours, passes=_without("spatial")),
    "reduce and expand only": partial(_ours, passes=("reduce", "expand")),
    "factors only": _composed(Mixture(passes=FACTORS)),
    "factors with even ranks": _composed(Mixture(passes=FACTORS, allocation=False)),
    "factors without data": _composed(Mixture(passes=FACTORS, data=False)),
    "svd refitted": _composed(Mixture(passes=(WeightSvd(),), allocation=False)),
    "tucker2 refitted": _composed(Mixture(passes=(WeightTucker(),), allocation=False)),
    "one-sided refitted": _composed(Mixture(passes=("reduce", "expand"), curvature=False, allocation=False)),
}

# A share of the original's time in the place of one of its multiply-adds.
BY_THE_CLOCK: Mapping[str, Method] = {
    f"ours, latency at batch {batch}": partial(_ours_in_time, batch=batch) for batch in (1, 32)
}

METHODS: Mapping[str, Method] = {**OURS, **BASELINES, **ABLATIONS, **BY_THE_CLOCK}


def find_method(name: str) -> Method:
    """The method of this name; ``NAME+recovery`` is any other method with our recovery."""
    if name in METHODS:
        return METHODS[name]
    plain = name.removesuffix(RECOVERED)
    if name == plain or plain not in METHODS:
        raise KeyError(f"method {name!r}; expected one of {', '.join(METHODS)}, or one of them with {RECOVERED}")
    return partial(_recovered, METHODS[plain])
