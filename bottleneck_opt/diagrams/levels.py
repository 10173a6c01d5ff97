"""How much of a picture is folded: the levels that a user can name, and the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bottleneck_opt.errors import InputError

AIM = 28
MOST_BOXES = 44
DETAILS = ("auto", "stage", "block", "layer", "operation")
_MOST_DOUBLINGS = 16
_LINES_A_CHUNK = 3  # a box with a list of changes takes the room of so many


@dataclass(frozen=True)
class Level:
    """How much is folded.

    Attributes:
        height: Unchanged regions of at most this height become one box; 0 for none. A block of layers has height 1;
            modules around a single thing add none.
        repeats: Equal blocks in a row are drawn once.
        loose: Blocks that differ in numbers only (widths, ranks, costs) count as equal.
        joined: A removed layer and what replaces it share one box.
        blocks: Regions in which something changed become one box too, with a line for each change.
        runs: Neighbours in which nothing changed become one box, whatever they are.
        frames: Modules that are there only once have a frame too.
        chunk: So many neighbours become one box where there are many in a row, whatever became of them.
    """

    height: int = 0
    repeats: bool = True
    loose: bool = False
    joined: bool = False
    blocks: bool = False
    runs: bool = False
    frames: bool = False
    chunk: int = 1


def find_detail(name: str) -> str:
    """The name itself, if there is such a level of detail.

    Raises:
        InputError: There is none of that name.
    """
    if name not in DETAILS:
        raise InputError(f"detail: got {name!r}; expected one of {', '.join(map(repr, DETAILS))}.")
    return name


def named_level(detail: str, *, block: int, stage: int, framed: bool) -> Level:
    """The level that a user names.

    Args:
        detail: Any but ``auto``.
        block, stage: Heights of a block and of a stage of the model.
        framed: Modules that are there only once have a frame.
    """
    levels = {
        "operation": Level(repeats=False, frames=framed),
        "layer": Level(frames=framed),
        "block": Level(block, joined=True, blocks=True),
        "stage": Level(stage, joined=True, blocks=True),
    }
    return levels[find_detail(detail)]


def list_levels(highest: int, aim: int, most: int, *, framed: bool) -> Iterator[tuple[Level, int]]:
    """From no folding to all of it, each with the number of boxes at which it is enough."""
    low = min(2, highest)
    yield Level(repeats=False, frames=framed), aim
    yield from ((Level(height, frames=framed), aim) for height in range(low))
    yield Level(low), aim
    yield Level(low, loose=True), aim
    yield Level(low, joined=True), aim
    yield Level(low, joined=True, loose=True), aim
    yield from ((Level(height, joined=True, blocks=True), most) for height in range(1, highest))
    last = Level(max(0, highest - 1), joined=True, blocks=True, runs=True)
    yield last, most
    yield from ((replace(last, chunk=2**power), most // _LINES_A_CHUNK) for power in range(1, _MOST_DOUBLINGS))
