"""Choose one option, or none, for every site, so that the summed predicted loss is least within the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bottleneck_opt.budget import UNITS
from bottleneck_opt.errors import BudgetError
from bottleneck_opt.frontier import list_corners
from bottleneck_opt.graph import Cost
from bottleneck_opt.joining import Chain, Joint, group_chains
from bottleneck_opt.knapsack import Choices, Floats, Integers, Selection, choose
from bottleneck_opt.menus import Menu, Pick, list_menu, whole_cost
from bottleneck_opt.outcome import Tradeoff
from bottleneck_opt.proposing import Priced, Proposal
from bottleneck_opt.shared_menus import list_shared_menu
from bottleneck_opt.shared_options import Share, SharedOption

_BISECTIONS = 24
_RESOLUTION = 10**9


@dataclass(frozen=True)
class Allocation:
    """What was chosen.

    Attributes:
        chosen: The option of each proposal, or None to leave the layer as it is.
        cost: Cost of the whole model with these options.
        loss: Summed predicted loss.
        gap: The best possible choice loses at most this much less.
        met: Whether the cost is within the budget.
        kept: How many channels stay on each joined link where some are dropped, by the consumer's path.
        thinned: How many lists of joint options were thinned out.
        shared: The bottlenecks that several layers read.
        frontier: The least loss at other costs, cheapest first.
    """

    chosen: tuple[Priced | None, ...]
    cost: Cost
    loss: float
    gap: float
    met: bool
    kept: Mapping[str, int] = field(default_factory=dict)
    thinned: int = 0
    shared: tuple[SharedOption, ...] = ()
    frontier: tuple[Tradeoff, ...] = ()


def allocate(
    proposals: Sequence[Proposal], total: Cost, limits: Mapping[str, int], *, contract: bool, reason: str = "",
    joints: Sequence[Joint] = (), shares: Sequence[Share] = (),
) -> Allocation:  # fmt: skip
    """The best choice within the limits.

    One limit is solved exactly; two by a weighted sum of both whose weight is bisected (surrogate relaxation, Glover
    1975), then repaired, with the gap to the relaxation's bound reported. Layers that are joined by links are listed
    together (:mod:`bottleneck_opt.menus`); lists that grow too
    long are thinned out, and how many were is said: ``gap`` knows nothing of what was left out there.

    Args:
        proposals: The options of every site.
        total: Cost of the whole model as it is.
        limits: The most it may cost afterwards, by unit (``macs``, ``params``).
        contract: Whether an unreachable limit is an error; otherwise the smallest plan is returned.
        reason: What keeps the rest of the model from being rewritten, for the error's message.
        joints: The links between proposals whose channels may be dropped.
        shares: The bottlenecks that several proposals' layers can read; these layers must have no link.

    Raises:
        BudgetError: No choice is within the limits; the message names the smallest reachable ones.
    """
    table = _Table(proposals, group_chains(proposals, joints, shares), total, tuple(limits))
    if not _reachable(table, limits):
        if contract:
            raise _unreachable(table, total, limits, reason)
        return _smallest(table, limits)
    units = list(limits)
    if len(units) == 1:
        selection = choose(table.choices(units[0]), limits[units[0]] - getattr(table.rest, units[0]))
        assert selection is not None
        return _result(selection.indices, table, limits, gap=selection.gap)
    found = _choose_for_two(table, limits)
    if found is None:
        if contract:
            raise _unreachable(table, total, limits, reason)
        return _smallest(table, limits)
    return _result(found[0], table, limits, gap=found[1])


class _Table:
    """The menus of all chains; the entry that leaves everything as it is, is in each of them."""

    def __init__(
        self, proposals: Sequence[Proposal], chains: Sequence[Chain], total: Cost, units: Sequence[str]
    ) -> None:  # fmt: skip
        self.proposals = proposals
        self.menus = [list_shared_menu(chain, units) if chain.shares else list_menu(chain, units) for chain in chains]
        self.losses: list[Floats] = [menu.losses for menu in self.menus]
        self.rest = total - sum((whole_cost(menu.chain) for menu in self.menus), Cost())

    def unit(self, name: str) -> list[Integers]:
        return [menu.costs[name] for menu in self.menus]

    def choices(self, name: str) -> list[Choices]:
        return [Choices(cost, loss) for cost, loss in zip(self.unit(name), self.losses, strict=True)]

    def least(self, name: str) -> int:
        return int(getattr(self.rest, name)) + sum(int(cost.min()) for cost in self.unit(name))

    def cost(self, indices: Sequence[int]) -> Cost:
        spent = {name: sum(int(costs[i]) for costs, i in zip(self.unit(name), indices, strict=True)) for name in UNITS}
        return self.rest + Cost(**spent)

    def loss(self, indices: Sequence[int]) -> float:
        return float(sum(loss[i] for loss, i in zip(self.losses, indices, strict=True)))


def _reachable(table: _Table, limits: Mapping[str, int]) -> bool:
    return all(table.least(unit) <= limit for unit, limit in limits.items())


def _unreachable(table: _Table, total: Cost, limits: Mapping[str, int], reason: str) -> BudgetError:
    smallest = {unit: table.least(unit) / max(getattr(total, unit), 1) for unit in limits}
    asked = ", ".join(f"{unit} of at most {limit:,}" for unit, limit in limits.items())
    words = ", ".join(f"{unit}={np.ceil(ratio * 1e4) / 1e4:.4g}" for unit, ratio in smallest.items())
    together = " (each alone; together they may need more)" if len(limits) > 1 else ""
    return BudgetError(
        f"budget: {asked} cannot be reached: the smallest reachable is {words}{together}. "
        f"{reason and reason + ' '}Ask for that, or allow more layers with include=, exclude= or passes=.",
        smallest=smallest,
    )


def _smallest(table: _Table, limits: Mapping[str, int]) -> Allocation:
    """The cheapest choice in the first unit, least lossy among equals."""
    unit = next(iter(limits))
    indices = [int(np.lexsort((loss, cost))[0]) for cost, loss in zip(table.unit(unit), table.losses, strict=True)]
    return _result(indices, table, limits, gap=0.0)


def _result(indices: Sequence[int], table: _Table, limits: Mapping[str, int], *, gap: float) -> Allocation:
    picks = [menu.pick(index) for menu, index in zip(table.menus, indices, strict=True)]
    chosen = {
        proposal.site.path: option
        for menu, pick in zip(table.menus, picks, strict=True)
        for proposal, option in zip(menu.chain.proposals, pick.options, strict=True)
    }
    cost = table.cost(indices)
    met = all(getattr(cost, unit) <= limit for unit, limit in limits.items())
    options = tuple(chosen[proposal.site.path] for proposal in table.proposals)
    shared = tuple(pick.shared for pick in picks if pick.shared is not None)
    thinned = sum(not menu.exact for menu in table.menus)
    kept, frontier = _dropped(table.menus, picks), _list_tradeoffs(table, limits)
    return Allocation(options, cost, table.loss(indices), gap, met, kept, thinned, shared, frontier)


def _list_tradeoffs(table: _Table, limits: Mapping[str, int]) -> tuple[Tradeoff, ...]:
    """The best choices at other costs; under several limits the cost is the sum of the shares of each limit."""
    relative = [[cost / max(limit, 1) for cost in table.unit(unit)] for unit, limit in limits.items()]
    corners = list_corners([np.asarray(sum(lists)) for lists in zip(*relative, strict=True)], table.losses)
    return tuple(Tradeoff(table.cost(corner.indices), corner.loss) for corner in corners)


def _dropped(menus: Sequence[Menu], picks: Sequence[Pick]) -> dict[str, int]:
    """How many channels stay on the links where some are dropped."""
    return {
        joint.link.consumer: count
        for menu, pick in zip(menus, picks, strict=True)
        for joint, count in zip(menu.chain.joints, pick.kept, strict=True)
        if count < joint.link.channels
    }


def _choose_for_two(table: _Table, limits: Mapping[str, int]) -> tuple[tuple[int, ...], float] | None:
    """Indices and gap of a good choice within two limits, or None when there is none."""
    first, second = limits
    rooms = {unit: limit - getattr(table.rest, unit) for unit, limit in limits.items()}
    low, high, bound = 0.0, 1.0, 0.0
    best: tuple[int, ...] | None = None
    for weight in (1.0, 0.0, *[None] * _BISECTIONS):
        share = (low + high) / 2 if weight is None else weight
        selection = _choose_weighted(table, rooms, share)
        if selection is None:
            return None  # a relaxation without a solution proves that there is none
        bound = max(bound, selection.loss - selection.gap)
        candidate = _repair(table, rooms, selection.indices)
        if candidate is not None and (best is None or table.loss(candidate) < table.loss(best)):
            best = candidate
        over = _excess(table, rooms, selection.indices)
        if over[first] <= 0 and over[second] <= 0:
            break
        if weight is None:
            low, high = (share, high) if over[first] > 0 else (low, share)
    best = best or _least_second(table, rooms)
    return None if best is None else (best, max(0.0, table.loss(best) - bound))


def _least_second(table: _Table, rooms: Mapping[str, int]) -> tuple[int, ...] | None:
    """The choice that costs least in the second unit within the first limit, or None when that is still too much."""
    first, second = rooms
    costs = zip(table.unit(first), table.unit(second), strict=True)
    selection = choose([Choices(cost, other.astype(np.float64)) for cost, other in costs], rooms[first])
    return selection.indices if selection is not None and selection.loss <= rooms[second] else None


def _choose_weighted(table: _Table, rooms: Mapping[str, int], share: float) -> Selection | None:
    """The best choice when only a weighted sum of both costs is limited; costs are rounded down, so nothing is lost."""
    (first, room_1), (second, room_2) = rooms.items()
    scale_1, scale_2 = share * _RESOLUTION / max(room_1, 1), (1 - share) * _RESOLUTION / max(room_2, 1)
    lists = [
        Choices(np.floor(a * scale_1 + b * scale_2).astype(np.int64), loss)
        for a, b, loss in zip(table.unit(first), table.unit(second), table.losses, strict=True)
    ]
    return choose(lists, _RESOLUTION)


def _excess(table: _Table, rooms: Mapping[str, int], indices: Sequence[int]) -> dict[str, float]:
    """How far each cost is over its limit, relative to the limit."""
    return {
        unit: (sum(int(cost[i]) for cost, i in zip(table.unit(unit), indices, strict=True)) - room) / max(room, 1)
        for unit, room in rooms.items()
    }


def _repair(table: _Table, rooms: Mapping[str, int], indices: Sequence[int]) -> tuple[int, ...] | None:
    """Move to cheaper entries, least loss for the violation first, until both limits hold."""
    at = list(indices)
    relative = {unit: [cost / max(room, 1) for cost in table.unit(unit)] for unit, room in rooms.items()}
    while True:
        violated = [unit for unit, amount in _excess(table, rooms, at).items() if amount > 0]
        if not violated:
            return tuple(at)
        move = _best_move(table.losses, relative, violated, at)
        if move is None:
            return None
        at[move[0]] = move[1]


def _best_move(
    losses: Sequence[Floats], relative: Mapping[str, list[Floats]], violated: Sequence[str], at: Sequence[int]
) -> tuple[int, int] | None:
    """The list and entry that lowers the violated costs, and raises no cost, for the least loss."""
    best: tuple[float, int, int] | None = None
    for number, loss in enumerate(losses):
        falls = {unit: costs[number][at[number]] - costs[number] for unit, costs in relative.items()}
        gain = np.asarray(sum(falls[unit] for unit in violated))
        legal = np.flatnonzero((gain > 1e-15) & (np.minimum.reduce(list(falls.values())) >= 0))
        if not len(legal):
            continue
        price = (loss[legal] - loss[at[number]]) / gain[legal]
        pick = int(price.argmin())
        if best is None or price[pick] < best[0]:
            best = (float(price[pick]), number, int(legal[pick]))
    return None if best is None else best[1:]
