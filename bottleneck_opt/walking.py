"""Walk from a whole model towards a small one, look at few on the way, and close in on where quality ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """What was found at one place of the way.

    Attributes:
        held: Whether the model there is good enough.
        reached: How far that model really is along the way, which may be more than was asked for.
        fresh: Whether it had to be measured; False where it is known already.
    """

    held: bool
    reached: float
    fresh: bool


@dataclass(frozen=True)
class Stride:
    """How to walk.

    Attributes:
        first: Where to look first, of the way from 0 (the whole model) to 1 (the goal).
        step: How much further each look goes while all is well.
        finest: Two places nearer to each other than this are the same.
        most: Measurements at most.
    """

    first: float
    step: float
    finest: float
    most: int


def walk(look: Callable[[float], Look], stride: Stride) -> None:
    """Go on while models hold; from the first one that does not, halve the distance to the last one that did.

    Nothing is concluded for places that were not looked at: whoever looks keeps the record and decides by it. That
    quality falls steadily along the way is a guess that saves measurements, never a reason to accept a model.

    Example:
        >>> places = []
        >>> def hold(place):
        ...     places.append(round(place, 2))
        ...     return Look(place < 0.6, place, True)
        >>> walk(hold, Stride(first=0.25, step=0.25, finest=0.02, most=6))
        >>> places
        [0.25, 0.5, 0.75, 0.62, 0.56, 0.59]
    """
    held, failed, measured = 0.0, None, 0
    while measured < stride.most:
        place = _find_next(held, failed, stride)
        if place is None:
            return
        found = look(place)
        measured += found.fresh
        if found.held:
            held = max(place, found.reached)
        else:
            failed = place


def _find_next(held: float, failed: float | None, stride: Stride) -> float | None:
    if failed is not None:
        return None if failed - held < stride.finest else (held + failed) / 2
    if not held:
        return min(stride.first, 1.0)
    if held > 1 - stride.finest:
        return None
    further = held + stride.step
    return 1.0 if further > 1 - stride.finest else further
