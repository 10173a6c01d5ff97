"""Choose one entry of every list so that the losses add up to the least within a limit on the costs, exactly.

The multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger 2004, chapter 11): Pareto lists are merged list by
list; partial sums that cannot beat a known solution, by the linear relaxation of what is left, are dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_ENTRIES = 200_000
MOST_STEPS = 20_000_000
BINS = 20_000
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choices:
    """One list: ``costs (n,)`` and ``losses (n,)``."""

    costs: Integers
    losses: Floats


@dataclass(frozen=True)
class Selection:
    """The chosen index of every list, the summed loss and cost, and how far from the optimum the loss can be."""

    indices: tuple[int, ...]
    loss: float
    cost: int
    gap: float


@dataclass(frozen=True)
class _Bound:
    """Least loss of some lists as a convex, piecewise-linear function of the cost they may have (linear relaxation)."""

    costs: Floats
    losses: Floats

    def at(self, room: NDArray[np.float64] | float) -> Floats:
        return np.asarray(np.interp(room, self.costs, self.losses, left=np.inf), dtype=np.float64)


class _Bounds:
    """The bound over a list and all later ones, made when it is asked for: all of them at once would not fit."""

    def __init__(self, costs: Sequence[Integers], losses: Sequence[Floats]) -> None:
        self._segments = _segments(costs, losses)
        self._runs = np.array([segment[1] for segment in self._segments])
        self._rises = np.array([segment[2] for segment in self._segments])
        self._lists = np.array([segment[3] for segment in self._segments])
        self._costs = [*np.cumsum([float(cost[0]) for cost in reversed(costs)])[::-1], 0.0]
        self._losses = [*np.cumsum([float(loss[0]) for loss in reversed(losses)])[::-1], 0.0]

    def from_list(self, start: int) -> _Bound:
        """Over the lists from this one on; one past the last, over nothing."""
        mine = self._lists >= start
        costs = np.concatenate([[0.0], self._runs[mine]]).cumsum() + self._costs[start]
        return _Bound(costs, np.concatenate([[0.0], self._rises[mine]]).cumsum() + self._losses[start])


@dataclass(frozen=True)
class _Sums:
    """Partial sums after one more list, cheapest first, with the way back."""

    costs: Integers
    losses: Floats
    step: _Step


@dataclass(frozen=True)
class _Step:
    """For each partial sum, which one before it and which entry of the list make it."""

    parents: NDArray[np.int32]
    picked: NDArray[np.int32]


def choose(lists: Sequence[Choices], limit: int) -> Selection | None:
    """The best selection whose costs sum to at most ``limit``, or None when even the cheapest does not fit.

    Example:
        >>> costs = np.array([0, 5])
        >>> choose([Choices(costs, np.array([3.0, 0.0])), Choices(costs, np.array([2.0, 0.0]))], 5).indices
        (1, 0)
    """
    fronts = [list_pareto(each) for each in lists]
    costs = [each.costs[front] for each, front in zip(lists, fronts, strict=True)]
    losses = [each.losses[front] for each, front in zip(lists, fronts, strict=True)]
    if sum(int(cost[0]) for cost in costs) > limit:
        return None
    bounds = _Bounds(costs, losses)
    greedy = _greedy(costs, losses, limit)
    ceiling = _total(losses, greedy)
    width = max(1, sum(int(cost[-1]) for cost in costs) // BINS)
    steps, binned = _merge_all(costs, losses, bounds, limit=limit, ceiling=ceiling, bin_width=width)
    merged = _walk_back(steps)
    picked = greedy if merged is None or _total(losses, merged) > ceiling else merged
    loss, cost = _total(losses, picked), sum(int(cost[i]) for cost, i in zip(costs, picked, strict=True))
    gap = max(0.0, loss - float(bounds.from_list(0).at(float(limit)))) if binned else 0.0
    return Selection(tuple(int(front[i]) for front, i in zip(fronts, picked, strict=True)), loss, cost, gap)


def _total(losses: Sequence[Floats], indices: Sequence[int]) -> float:
    return float(sum(loss[i] for loss, i in zip(losses, indices, strict=True)))


def list_pareto(choices: Choices) -> Integers:
    """Indices of the entries that no other entry beats in both, cheapest first."""
    order = np.lexsort((choices.losses, choices.costs))
    best = np.minimum.accumulate(choices.losses[order])
    fresh = np.concatenate([[True], choices.losses[order][1:] < best[:-1]])[: len(order)]
    return np.asarray(order[fresh], dtype=np.int64)


def _hull(costs: Integers, losses: Floats) -> list[int]:
    """Indices on the lower convex hull of a Pareto list."""
    kept: list[int] = []
    for index in range(len(costs)):
        while len(kept) > 1 and _above(costs, losses, kept[-2], kept[-1], index):
            kept.pop()
        kept.append(index)
    return kept


def _above(costs: Integers, losses: Floats, left: int, middle: int, right: int) -> bool:
    span, part = float(costs[right] - costs[left]), float(costs[middle] - costs[left])
    return bool((losses[middle] - losses[left]) * span >= (losses[right] - losses[left]) * part)


def _segments(costs: Sequence[Integers], losses: Sequence[Floats]) -> list[tuple[float, float, float, int, int]]:
    """Hull segments as ``(slope, cost, loss, list, index of its end)``, steepest fall of loss first."""
    found = []
    for number, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        hull = _hull(cost, loss)
        for left, right in itertools.pairwise(hull):
            run, rise = float(cost[right] - cost[left]), float(loss[right] - loss[left])
            found.append((rise / run, run, rise, number, right))
    return sorted(found)


def _greedy(costs: Sequence[Integers], losses: Sequence[Floats], limit: int) -> list[int]:
    """A selection found by walking the hulls, best slope first, while it fits."""
    at = [0] * len(costs)
    room = limit - sum(int(cost[0]) for cost in costs)
    blocked: set[int] = set()
    for _, _, _, number, end in _segments(costs, losses):
        step = int(costs[number][end] - costs[number][at[number]])
        if number in blocked or step > room:
            blocked.add(number)
            continue
        at[number], room = end, room - step
    return at


def _merge_all(
    costs: Sequence[Integers], losses: Sequence[Floats], bounds: _Bounds, *, limit: int, ceiling: float,
    bin_width: int,
) -> tuple[list[_Step], bool]:  # fmt: skip
    most = min(MOST_ENTRIES, max(BINS, MOST_STEPS // max(len(costs), 1)))
    steps: list[_Step] = []
    sums, lost = np.zeros(1, dtype=np.int64), np.zeros(1)
    binned = False
    for number, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        merged = _merge(sums, lost, cost, loss, bounds.from_list(number + 1), limit=limit, ceiling=ceiling)
        if len(merged.costs) > most:
            merged, binned = _keep_best_in_bins(merged, bin_width), True
        steps.append(merged.step)
        sums, lost = merged.costs, merged.losses
    return steps, binned


def _merge(
    sums: Integers, lost: Floats, cost: Integers, loss: Floats, rest: _Bound, *, limit: int, ceiling: float
) -> _Sums:
    total = (sums[:, None] + cost[None, :]).ravel()
    summed = (lost[:, None] + loss[None, :]).ravel()
    slack = ceiling * 1e-9 + float(rest.losses[0]) * 1e-12  # the bound's rounding grows with its largest value
    alive = np.flatnonzero(summed + rest.at((limit - total).astype(np.float64)) <= ceiling + slack)
    front = alive[list_pareto(Choices(total[alive], summed[alive]))]
    step = _Step((front // len(cost)).astype(np.int32), (front % len(cost)).astype(np.int32))
    return _Sums(total[front], summed[front], step)


def _keep_best_in_bins(sums: _Sums, width: int) -> _Sums:
    """The last, and so least lossy, entry of every cost bin."""
    bins = sums.costs // width
    last = np.flatnonzero(np.concatenate([bins[1:] != bins[:-1], [True]]))
    return _Sums(sums.costs[last], sums.losses[last], _Step(sums.step.parents[last], sums.step.picked[last]))


def _walk_back(steps: Sequence[_Step]) -> list[int] | None:
    """The picks behind the last, least lossy, sum; None when bins left nothing that fits."""
    if steps and not len(steps[-1].picked):
        return None
    at = len(steps[-1].picked) - 1 if steps else 0
    picked = []
    for step in reversed(steps):
        picked.append(int(step.picked[at]))
        at = int(step.parents[at])
    return picked[::-1]
