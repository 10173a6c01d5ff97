"""Conjugate gradients on the least-squares problem of a linearised model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bottleneck_opt.joint.metric import Metric
from bottleneck_opt.joint.problem import Problem, square
from bottleneck_opt.joint.vectors import Vector, add, dot
from bottleneck_opt.progress import Advance

STEP = 1e-2
FIRST_RATIO = 100.0


@dataclass(frozen=True)
class Iterate:
    """Weights, their loss on the held-out examples, and how many iterations led to them."""

    weights: Vector
    loss: float
    number: int


def descend(
    problem: Problem, judge: Problem, metric: Metric, *, iterations: int, ridge: float, advance: Advance
) -> Iterate:
    """The iterate that does best on the held-out examples, the weights at hand among them, which are left as they were.

    Minimises ``|y - f(x) - J d|^2 + ridge <d, d>`` over the change ``d`` of the weights, ``<,>`` and the conditioning
    being the metric's. ``J p`` is the difference of two outputs a small step apart, so that any model will do; the step
    is chosen to change the output by about a hundredth of its deviation.

    Args:
        problem: The examples to fit.
        judge: The held-out examples, of the same model.
        metric: Of the weights at hand.
        iterations: At most.
        ridge: Of the ridge.
        advance: Called after each iteration.
    """
    start = problem.weights()
    best = Iterate(start, judge.loss(), 0)
    outputs = problem.outputs()
    residual = problem.residual(outputs)
    found: Vector = {path: torch.zeros_like(each) for path, each in start.items()}
    slope: Vector = problem.pull_back(residual)
    direction: Vector = metric.solve(slope)
    energy, ratio = dot(slope, direction), FIRST_RATIO
    for number in range(1, iterations + 1):
        length = dot(direction, metric.apply(direction))
        if not (energy > 0 and length > 0 and math.isfinite(energy + length)):
            break
        step = STEP / math.sqrt(ratio * length)
        problem.load(add(start, step, direction))
        pushed = [(after - before) / step for after, before in zip(problem.outputs(), outputs, strict=True)]
        bent = square(pushed)
        ratio, amount = max(bent / length, 1e-6), energy / (bent + ridge * length)
        found = add(found, amount, direction)
        best = min(best, _judge(problem, judge, add(start, 1.0, found), number), key=lambda each: each.loss)
        problem.load(start)
        advance()
        residual = [each - amount * push for each, push in zip(residual, pushed, strict=True)]
        slope = add(problem.pull_back(residual), -ridge, metric.apply(found)) if number < iterations else slope
        conditioned = metric.solve(slope)
        fresh = dot(slope, conditioned)
        direction, energy = add(conditioned, fresh / energy, direction), fresh
    return best


def _judge(problem: Problem, judge: Problem, weights: Vector, number: int) -> Iterate:
    problem.load(weights)
    loss = judge.loss()
    return Iterate(weights, loss if math.isfinite(loss) else math.inf, number)
