"""What every budget would have cost: the least predicted loss at costs from the whole model down to the smallest.

Each point is the best choice at its own cost. It minimises ``loss + price * cost`` at some price, so each list is
minimised by itself (Lagrange relaxation; Shoham and Gersho 1988). The price between two known points is the slope of
the line through them, which finds a point below that line or shows that there is none.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck_opt.knapsack import Floats

MOST_POINTS = 24


@dataclass(frozen=True, order=True)
class Corner:
    """The index chosen from every list, with the summed cost and loss."""

    indices: tuple[int, ...]
    cost: float
    loss: float


def list_corners(costs: Sequence[Floats], losses: Sequence[Floats], most: int = MOST_POINTS) -> list[Corner]:
    """Points of the lower convex hull of all selections, cheapest first, the widest gaps between them filled first.

    Args:
        costs: Cost of every entry of each list ``(n,)``.
        losses: Loss of every entry of each list ``(n,)``.
        most: Points at most.

    Example:
        >>> ranks = [np.array([4.0, 2.0, 1.0])] * 2, [np.array([0.0, 1.0, 4.0])] * 2
        >>> [(corner.cost, corner.loss) for corner in list_corners(*ranks)]
        [(2.0, 8.0), (4.0, 2.0), (8.0, 0.0)]
    """
    pairs = list(zip(costs, losses, strict=True))
    cheapest = _pick(costs, losses, [np.lexsort((loss, cost))[0] for cost, loss in pairs])
    whole = _pick(costs, losses, [np.lexsort((cost, loss))[0] for cost, loss in pairs])
    corners = {corner.cost: corner for corner in (whole, cheapest)}
    gaps = [(cheapest.cost - whole.cost, cheapest, whole)] if cheapest.cost < whole.cost else []
    while gaps and len(corners) < most:
        _, low, high = heapq.heappop(gaps)
        found = _below(costs, losses, low, high)
        if found is None:
            continue
        corners[found.cost] = found
        for left, right in ((low, found), (found, high)):
            heapq.heappush(gaps, (left.cost - right.cost, left, right))
    return [corners[cost] for cost in sorted(corners)]


def _below(costs: Sequence[Floats], losses: Sequence[Floats], low: Corner, high: Corner) -> Corner | None:
    """The point farthest below the line through two others; None where there is none between them."""
    price = (low.loss - high.loss) / (high.cost - low.cost)
    found = _pick(costs, losses, [(loss + price * cost).argmin() for cost, loss in zip(costs, losses, strict=True)])
    line = low.loss + price * low.cost
    gain = line - (found.loss + price * found.cost)
    return found if low.cost < found.cost < high.cost and gain > 1e-12 * max(line, 1e-30) else None


def _pick(costs: Sequence[Floats], losses: Sequence[Floats], indices: Sequence[np.intp]) -> Corner:
    picked = tuple(map(int, indices))
    return Corner(
        picked,
        float(sum(cost[i] for cost, i in zip(costs, picked, strict=True))),
        float(sum(loss[i] for loss, i in zip(losses, picked, strict=True))),
    )
