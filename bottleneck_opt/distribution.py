"""Several processes that share one run: ``torchrun --nproc-per-node 4 -m bottleneck_opt optimize ...``.

Every rank reads the model and the data and comes to the same decisions; only the expensive parts are dealt out:
calibration batches, the sums of each layer, the fits of each layer, the weights of each chosen option. What is added up
is added in the same order as in one process, so the plan does not depend on the number of ranks, byte for byte, where
each of them has as many threads as the one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from bottleneck_opt.errors import RanksError

T = TypeVar("T")
_FAILED = "bottleneck_opt/failed"


@dataclass(frozen=True)
class Ranks:
    """A process among those that share the work; by default the only one.

    Attributes:
        rank: Its number.
        count: How many there are.
        local: How many of them are on this machine.

    Example:
        >>> alone = Ranks()
        >>> alone.gather("x", to=0), alone.deal([5.0, 1.0])
        (['x'], [0, 0])
    """

    rank: int = 0
    count: int = 1
    local: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def deal(self, loads: Sequence[float]) -> list[int]:
        """Who takes each item, the heaviest first and always to the one with the least to do."""
        owners, sums = [0] * len(loads), [0.0] * self.count
        for item in sorted(range(len(loads)), key=lambda each: -loads[each]):
            owner = min(range(self.count), key=lambda each: sums[each])
            owners[item] = owner
            sums[owner] += max(loads[item], 1e-9)
        return owners

    def gather(self, value: T, *, to: int) -> list[T]:
        """Everybody's value, by rank, at one of them; nothing at the others."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.rank == to else None
        _talk(lambda: dist.gather_object(value, found, dst=to))
        return found or []

    def collect(self, value: T) -> list[T]:
        """Everybody's value, by rank, at all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        _talk(lambda: dist.all_gather_object(found, value))
        return found

    def broadcast(self, value: T, *, source: int) -> T:
        """One rank's value at all of them; what the others pass is not looked at."""
        if self.count == 1:
            return value
        box = [value if self.rank == source else None]
        _talk(lambda: dist.broadcast_object_list(box, src=source))
        return box[0]  # type: ignore[return-value]  # every rank has it now

    def broadcast_into(self, tensor: Tensor, *, source: int) -> None:
        """Fill a CPU tensor with one rank's values."""
        if self.count > 1:
            _talk(lambda: dist.broadcast(tensor, src=source))

    def run_alone(self, work: Callable[[], T]) -> T:
        """What the first rank gets from its work, done while all others wait and leave it the machine."""
        if self.count == 1:
            return work()
        self.collect(None)
        return self.broadcast(work() if self.is_first else None, source=0)  # type: ignore[return-value]

    def check_agreement(self, what: str, value: object) -> None:
        """Raise RanksError unless all ranks have the same value."""
        found = self.collect(value)
        if any(each != found[0] for each in found):
            different = [str(rank) for rank, each in enumerate(found) if each != found[0]]
            raise RanksError(
                f"ranks: {what} of rank {', '.join(different)} differs from that of rank 0; expected the same on all. "
                "Give all the same arguments and files, and a model with weights from a file or a fixed seed."
            )

    def share_weights(self, model: nn.Module) -> None:
        """Give a model, which is the caller's to change, the first rank's values: random ones differ in each process.

        Raises:
            RanksError: The ranks have different models.
        """
        if self.count == 1:
            return
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in state.items()]
        self.check_agreement("the model", shapes)
        with torch.no_grad():
            for value in state.values():
                values = value.detach().cpu().contiguous()
                self.broadcast_into(values, source=0)
                value.copy_(values)


ALONE = Ranks()


def _talk(action: Callable[[], object]) -> None:
    try:
        action()
    except RuntimeError as error:
        raise RanksError("ranks: the connection to another rank was lost; its own message says why.") from error


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The process's place among those that torchrun started, for as long as the block runs; alone without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    store, rank, count = next(rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    try:
        yield Ranks(rank, count, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except Exception as error:
        if store.add(_FAILED, 1) > 1:
            raise RanksError("ranks: another rank stopped first; its own message says why.", told=True) from error
        raise
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Elsewhere:
    """Stands for work that only another rank can do.

    Attributes:
        rank: Which one.
    """

    rank: int

    def __call__(self) -> Any:
        """Raise ValueError: :func:`run_on_ranks` must be asked instead."""
        raise ValueError(f"this is rank {self.rank}'s work")


def run_on_ranks(works: Sequence[Callable[[], T]], ranks: Ranks, advance: Callable[[], None] = lambda: None) -> list[T]:
    """Every work's result at all ranks, each done once, by the first rank at which it is not :class:`Elsewhere`.

    Args:
        works: What to do, the same list at all ranks but for what is elsewhere.
        ranks: Who shares it.
        advance: Called after each work done here, and for those done by others at the end.
    """
    here = [not isinstance(work, Elsewhere) for work in works]
    owners = [column.index(True) for column in zip(*ranks.collect(here), strict=True)]
    done = {}
    for number, work in enumerate(works):
        if owners[number] == ranks.rank:
            done[number] = work()
            advance()
    results = []
    for number, owner in enumerate(owners):
        results.append(ranks.broadcast(done.get(number), source=owner))
        if owner != ranks.rank:
            advance()
    return results  # type: ignore[return-value]  # the owner of each has it
