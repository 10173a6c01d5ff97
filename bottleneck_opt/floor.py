"""How far a metric may drop, and whether a model's scores are surely above that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from bottleneck_opt.errors import InputError
from bottleneck_opt.evaluating import Answer

RESAMPLES = 1000
DOUBT = 0.05
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Verdict:
    """What a measurement says.

    Attributes:
        held: Whether the metric is above the floor, in the worst case too.
        metric: The mean score; None where there is none.
        worst: The metric that is surely reached, from scores of samples; None where there is one number only.
        fault: Why nothing was measured; empty otherwise.
    """

    held: bool
    metric: float | None = None
    worst: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Floor:
    """What a model's metric is held against.

    Attributes:
        scores: Those of the original: one number, or one for each sample.
        max_drop: How far the mean may fall.
        seed: Of the resampling.
    """

    scores: tuple[float, ...]
    max_drop: float
    seed: int = 0

    @property
    def metric(self) -> float:
        """The original's mean score."""
        return Answer(self.scores).metric

    @property
    def lowest(self) -> float:
        """The lowest metric that is accepted."""
        return self.metric - self.max_drop

    def judge(self, answer: Answer) -> Verdict:
        """Whether a model's scores are above the floor.

        With one number it is that number. With a score for each sample, both models' scores of the same sample are
        compared, and the mean difference must not drop further than allowed even at the lower end of its confidence
        interval (one-sided, 95 %, percentile bootstrap; Efron 1979).
        """
        if answer.fault:
            return Verdict(False, fault=f"evaluate {answer.fault}")
        if len(answer.scores) != len(self.scores):
            counts = f"{len(answer.scores)} scores; expected {len(self.scores)}, as for the original"
            return Verdict(False, answer.metric, fault=f"evaluate returned {counts}")
        above = answer.metric >= self.lowest
        if len(self.scores) == 1:
            return Verdict(above, answer.metric)
        drop = bound_mean([new - old for new, old in zip(answer.scores, self.scores, strict=True)], self.seed)
        return Verdict(above and drop >= -self.max_drop, answer.metric, self.metric + drop)


def bound_mean(values: Sequence[float], seed: int) -> float:
    """The lower end of a one-sided 95 % interval for the mean, by resampling; never above the mean itself.

    Example:
        >>> bound_mean([0.5, 0.5], 0), bound_mean([0.0, 1.0] * 50, 0)
        (0.5, 0.42)
    """
    found, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    mean = float(np.mean(values))
    if len(found) == 1:
        return mean
    random = np.random.default_rng(seed % 2**63)
    rows = max(1, _CHUNK // len(found))
    means = [
        random.multinomial(len(values), counts / len(values), size=min(rows, RESAMPLES - start)) @ found / len(values)
        for start in range(0, RESAMPLES, rows)
    ]
    return min(mean, float(np.quantile(np.concatenate(means), DOUBT)))


def check_max_drop(max_drop: object, *, measurable: bool) -> None:
    """Raise InputError where ``max_drop`` is no drop, or nothing measures it.

    Args:
        max_drop: What the user gave, not None.
        measurable: Whether there is an ``evaluate``.
    """
    number = isinstance(max_drop, Real) and not isinstance(max_drop, bool)
    if not number or not 0 <= float(max_drop) < math.inf:  # type: ignore[arg-type]  # a number, as was just seen
        raise InputError(
            f"max_drop: got {max_drop!r}; expected a finite number of at least 0, in the units of evaluate. "
            "Pass for instance max_drop=0.01 for one point of an accuracy between 0 and 1."
        )
    if not measurable:
        raise InputError(
            f"max_drop: got {max_drop!r} without evaluate=; expected a function that measures the metric. "
            "Pass evaluate(model) -> float, or one score a sample, higher is better."
        )
