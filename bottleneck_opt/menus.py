"""The lists that the knapsack chooses from: a layer's options, or the joint options of layers in a chain.

Where channels between two layers may be dropped, what one layer costs depends on what was chosen for the other. The
layers of a chain are therefore listed together: walking along it, a Pareto list of partial sums is kept for every
number of channels at the present link (dynamic programming over the links; Kellerer, Pferschy and Pisinger 2004,
chapter 11, with the number of channels as state).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck_opt.budget import UNITS
from bottleneck_opt.costs import price_layers
from bottleneck_opt.graph import Cost
from bottleneck_opt.joining import Chain, Joint
from bottleneck_opt.knapsack import Choices, Floats, Integers, list_pareto
from bottleneck_opt.narrowing import narrow_cost, narrow_shape
from bottleneck_opt.proposing import Priced, Proposal
from bottleneck_opt.shared_options import SharedOption
from bottleneck_opt.sites import Site

MOST_SUMS = 400
MOST_OPTIONS = 64
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Pick:
    """What an entry of a menu stands for.

    Attributes:
        options: For each layer of the chain its option, or None to leave it as it is.
        kept: For each link of the chain, how many channels are left.
        shared: The bottleneck that some of the layers read, if any.
    """

    options: tuple[Priced | None, ...]
    kept: tuple[int, ...]
    shared: SharedOption | None = None


@dataclass(frozen=True)
class Menu:
    """One list of the knapsack.

    Attributes:
        chain: The layers it is about.
        costs: Cost of each entry, by unit ``(n,)``.
        losses: Predicted loss of each entry ``(n,)``.
        exact: Whether no entry was left out that could be part of the best choice.
    """

    chain: Chain
    costs: Mapping[str, Integers]
    losses: Floats
    exact: bool
    _decode: Callable[[int], Pick]

    def pick(self, index: int) -> Pick:
        """What entry ``index`` stands for."""
        return self._decode(index)


def list_menu(chain: Chain, units: Sequence[str]) -> Menu:
    """The choices for a chain: all of them for a single layer, else those that no other beats.

    Args:
        chain: One layer, or several that are joined.
        units: The limited units. For two, the lists of five weighted sums of both are put together.
    """
    if not chain.joints:
        return _list_options(chain)
    walks = [_walk(chain, weights) for weights in list_weightings(chain, units)]
    ends = [(walk, index) for walk in walks for index in range(len(walk.last.losses))]
    costs = {unit: np.concatenate([walk.last.costs[unit] for walk in walks]) for unit in UNITS}
    losses = np.concatenate([walk.last.losses for walk in walks])
    exact = len(units) == 1 and all(walk.exact for walk in walks)
    return Menu(chain, costs, losses, exact, lambda index: ends[index][0].decode(ends[index][1]))


def whole_cost(chain: Chain) -> Cost:
    """What the layers of a chain, and what is between them, cost as they are."""
    layers = sum((proposal.site.cost for proposal in chain.proposals), Cost())
    return layers + sum((_between(joint, joint.link.channels) for joint in chain.joints), Cost())


def _between(joint: Joint, channels: int) -> Cost:
    each = joint.link.cost
    return Cost(each.macs * channels, each.params * channels)


def _list_options(chain: Chain) -> Menu:
    (proposal,) = chain.proposals
    costs = [proposal.site.cost, *(priced.cost for priced in proposal.options)]
    losses = np.array([0.0, *(priced.option.predicted_loss for priced in proposal.options)])
    options = (None, *proposal.options)
    return Menu(chain, by_unit(costs), losses, True, lambda index: Pick((options[index],), ()))


def by_unit(costs: Sequence[Cost]) -> dict[str, Integers]:
    """Costs as one array a unit."""
    return {unit: np.array([getattr(cost, unit) for cost in costs], dtype=np.int64) for unit in UNITS}


def list_weightings(chain: Chain, units: Sequence[str]) -> list[dict[str, float]]:
    """The sums of units to make Pareto lists for: one unit itself, of two several shares of each."""
    if len(units) == 1:
        return [{units[0]: 1.0}]
    whole = whole_cost(chain)
    first, second = units
    scale = max(getattr(whole, first), 1) / max(getattr(whole, second), 1)
    return [{first: share, second: (1 - share) * scale} for share in _SHARES]


@dataclass(frozen=True)
class _Table:
    """Cost of each option of one layer for each number of channels before and after it ``(options, before, after)``."""

    options: tuple[Priced | None, ...]
    costs: Mapping[str, Integers]
    losses: Floats


@dataclass(frozen=True)
class _Sums:
    """Partial sums that end in one number of channels, with the way back."""

    costs: Mapping[str, Integers]
    losses: Floats
    states: Integers
    entries: Integers
    picked: Integers


@dataclass(frozen=True)
class _Walk:
    """One walk along a chain: for each layer, the sums by the state after it."""

    chain: Chain
    tables: tuple[_Table, ...]
    sums: tuple[tuple[_Sums, ...], ...]
    exact: bool

    @property
    def last(self) -> _Sums:
        return self.sums[-1][0]

    def decode(self, index: int) -> Pick:
        options, kept, state = list[Priced | None](), list[int](), 0
        for number in reversed(range(len(self.tables))):
            sums = self.sums[number][state]
            if number < len(self.chain.joints):
                kept.append(self.chain.joints[number].counts[state])
            options.append(self.tables[number].options[int(sums.picked[index])])
            state, index = int(sums.states[index]), int(sums.entries[index])
        return Pick(tuple(options[::-1]), tuple(kept[::-1]))


def _walk(chain: Chain, weights: Mapping[str, float]) -> _Walk:
    tables, rows, exact = [], list[tuple[_Sums, ...]](), True
    states: tuple[_Sums, ...] = (_start(),)
    for number, proposal in enumerate(chain.proposals):
        joint = chain.joints[number] if number < len(chain.joints) else None
        before = chain.joints[number - 1].counts if number else (proposal.site.layer.in_channels,)
        after = joint.counts if joint else (proposal.site.layer.out_channels,)
        table, whole = _tabulate(proposal, before, after, weights)
        steps = [_step(states, table, place, joint, weights) for place in range(len(after))]
        states = tuple(sums for sums, _ in steps)
        exact = exact and whole and all(complete for _, complete in steps)
        tables.append(table)
        rows.append(states)
    return _Walk(chain, tuple(tables), tuple(rows), exact)


def _start() -> _Sums:
    zero = np.zeros(1, dtype=np.int64)
    return _Sums(dict.fromkeys(UNITS, zero), np.zeros(1), zero, zero, zero)


def _tabulate(
    proposal: Proposal, before: Sequence[int], after: Sequence[int], weights: Mapping[str, float]
) -> tuple[_Table, bool]:  # fmt: skip
    """The table of a layer, and whether all its options are in it: of very many, an even choice of the best is."""
    site = proposal.site
    costs = np.array([[[_plain(narrow_cost(site, i, o)) for o in after] for i in before]], dtype=np.int64)
    options: tuple[Priced | None, ...] = (None,)
    chosen, whole = _thin_out(proposal.options, weights)
    if chosen:
        options = (None, *chosen)
        costs = np.concatenate([costs, *(_narrowed_costs(proposal, each, before, after)[None] for each in chosen)])
    losses = np.array([0.0 if each is None else each.option.predicted_loss for each in options])
    return _Table(options, {unit: costs[..., place] for place, unit in enumerate(UNITS)}, losses), whole


def _plain(cost: Cost) -> tuple[int, ...]:
    return tuple(getattr(cost, unit) for unit in UNITS)


def _thin_out(options: Sequence[Priced], weights: Mapping[str, float]) -> tuple[tuple[Priced, ...], bool]:
    if len(options) < MOST_OPTIONS:
        return tuple(options), True
    costs = weigh(by_unit([priced.cost for priced in options]), weights)
    front = list_pareto(Choices(costs, np.array([priced.option.predicted_loss for priced in options])))
    places = np.unique(np.linspace(0, len(front) - 1, min(len(front), MOST_OPTIONS)).round().astype(np.int64))
    return tuple(options[int(front[place])] for place in places), False


def _narrowed_costs(
    proposal: Proposal, priced: Priced, before: Sequence[int], after: Sequence[int]
) -> Integers:  # fmt: skip
    """Cost of an option ``(before, after, units)`` whose first layer reads, and whose last makes, fewer channels."""
    layers, site = priced.option.layers, proposal.site
    if len(layers) < 2 or any(layer.groups > 1 or layer.subclass for layer in layers):
        return _only_whole(proposal, priced, before, after)
    shapes = site.input_shapes, site.output_shapes or None
    empty = [layer.named(layer.name) for layer in layers]
    first = [_plain(price_layers([empty[0].named("a", in_channels=i), *empty[1:]], *shapes)) for i in (1, 2)]
    whole = np.array(_plain(priced.cost), dtype=np.int64)
    each_input = np.array(first[1], dtype=np.int64) - np.array(first[0], dtype=np.int64)
    shorter = price_layers([*empty[:-1], empty[-1].named("z", out_channels=site.layer.out_channels - 1)], *shapes)
    each_output = whole - np.array(_plain(shorter), dtype=np.int64)
    lost_inputs = site.layer.in_channels - np.array(before, dtype=np.int64)
    lost_outputs = site.layer.out_channels - np.array(after, dtype=np.int64)
    costs = whole - lost_inputs[:, None, None] * each_input - lost_outputs[None, :, None] * each_output
    costs[..., UNITS.index("latency")] = _narrowed_times(site, priced, before, after)
    return np.asarray(costs, dtype=np.int64)


def _narrowed_times(site: Site, priced: Priced, before: Sequence[int], after: Sequence[int]) -> Integers:
    """Nanoseconds ``(before, after)``: what fewer channels save in the first and in the last layer, added up."""
    if site.pacer is None:
        return np.zeros((len(before), len(after)), dtype=np.int64)
    layers = priced.option.layers
    inputs = [
        site.price_time(
            (layers[0].named("", in_channels=i), *layers[1:]),
            [narrow_shape(shape, site.layer, i) for shape in site.input_shapes],
        )
        for i in before
    ]
    outputs = [site.price_time((*layers[:-1], layers[-1].named("", out_channels=o)), site.input_shapes) for o in after]
    return np.array(inputs, dtype=np.int64)[:, None] + np.array(outputs, dtype=np.int64) - priced.cost.latency


def _only_whole(
    proposal: Proposal, priced: Priced, before: Sequence[int], after: Sequence[int]
) -> Integers:  # fmt: skip
    """An option that cannot be narrowed costs too much wherever channels are lost."""
    costs = np.full((len(before), len(after), len(UNITS)), np.iinfo(np.int64).max // 2**12, dtype=np.int64)
    whole = (before[-1], after[-1]) == (proposal.site.layer.in_channels, proposal.site.layer.out_channels)
    if whole:
        costs[-1, -1] = _plain(priced.cost)
    return costs


def _step(
    states: Sequence[_Sums], table: _Table, place: int, joint: Joint | None, weights: Mapping[str, float]
) -> tuple[_Sums, bool]:
    """All sums that leave a layer in one state, without those that others beat; and whether none else was left out."""
    parts = [_add(sums, state, table, place, weights) for state, sums in enumerate(states)]
    costs = {unit: np.concatenate([part.costs[unit] for part in parts]) for unit in UNITS}
    losses = np.concatenate([part.losses for part in parts])
    if joint is not None:
        between = _between(joint, joint.counts[place])
        costs = {unit: cost + getattr(between, unit) for unit, cost in costs.items()}
        losses = losses + joint.losses[place]
    key = weigh(costs, weights)
    front = list_pareto(Choices(key, losses))
    complete = len(front) <= MOST_SUMS
    if not complete:
        front = keep_best_in_bins(front, key)
    entries, picked, sources = (
        np.concatenate([getattr(part, name) for part in parts])[front] for name in ("entries", "picked", "states")
    )
    return _Sums({u: c[front] for u, c in costs.items()}, losses[front], sources, entries, picked), complete


def _add(
    sums: _Sums, state: int, table: _Table, place: int, weights: Mapping[str, float]
) -> _Sums:  # fmt: skip
    """Every sum of a state with every option that pays between this state and the next."""
    costs = {unit: table.costs[unit][:, state, place] for unit in UNITS}
    front = list_pareto(Choices(weigh(costs, weights), table.losses))
    summed = {unit: (sums.costs[unit][:, None] + costs[unit][front][None, :]).ravel() for unit in UNITS}
    losses = (sums.losses[:, None] + table.losses[front][None, :]).ravel()
    entries = np.repeat(np.arange(len(sums.losses)), len(front))
    return _Sums(summed, losses, np.full(len(losses), state), entries, np.tile(front, len(sums.losses)))


def weigh(costs: Mapping[str, Integers], weights: Mapping[str, float]) -> Integers:
    """Exact for one unit; sums of two are rounded to whole multiply-adds."""
    weighed = np.asarray(sum(weight * costs[unit] for unit, weight in weights.items()))
    return np.asarray(np.rint(weighed), dtype=np.int64)


def keep_best_in_bins(front: Integers, key: Integers, most: int = MOST_SUMS) -> Integers:
    """Of a Pareto list, cheapest first, the least lossy entry of every bin of costs."""
    low, high = key[front[0]], key[front[-1]]
    bins = (key[front] - low) * most // max(int(high - low), 1)
    last = np.flatnonzero(np.concatenate([bins[1:] != bins[:-1], [True]]))
    return front[last]
