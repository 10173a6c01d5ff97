"""The list of the knapsack for layers that read one tensor: each by itself in every way, or some behind one bottleneck.

Lists of the layers' own options are added up to a Pareto list; where some share a bottleneck, its ranks are one list in
the place of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck_opt.budget import UNITS
from bottleneck_opt.joining import Chain
from bottleneck_opt.knapsack import Choices, Floats, Integers, list_pareto
from bottleneck_opt.menus import Menu, Pick, by_unit, keep_best_in_bins, list_weightings, weigh
from bottleneck_opt.proposing import Priced, Proposal
from bottleneck_opt.shared_options import Share, SharedOption

MOST_SUMS = 4000


def list_shared_menu(chain: Chain, units: Sequence[str]) -> Menu:
    """The choices for the members of a group that no other choice for them beats.

    Args:
        chain: The members, with at least one bottleneck that some of them may share.
        units: The limited units. For two, the lists of five weighted sums of both are put together.
    """
    ways = [_list_parts(chain, share) for share in (None, *chain.shares)]
    tables = [_add_up(parts, weights) for weights in list_weightings(chain, units) for parts in ways]
    ends = [(table, index) for table in tables for index in range(len(table.losses))]
    costs = {unit: np.concatenate([table.costs[unit] for table in tables]) for unit in UNITS}
    losses = np.concatenate([table.losses for table in tables])
    exact = len(units) == 1 and all(table.exact for table in tables)
    return Menu(chain, costs, losses, exact, lambda index: ends[index][0].decode(chain, ends[index][1]))


@dataclass(frozen=True)
class _Part:
    """One list: the options of one layer, or the ranks of one bottleneck."""

    entries: tuple[Priced | SharedOption | None, ...]
    path: str
    costs: Mapping[str, Integers]
    losses: Floats


@dataclass(frozen=True)
class _Table:
    """Sums over some lists, with the entry of each list that they are made of ``(sums, lists)``."""

    parts: tuple[_Part, ...]
    costs: Mapping[str, Integers]
    losses: Floats
    rows: Integers
    exact: bool

    def decode(self, chain: Chain, index: int) -> Pick:
        """What a sum stands for."""
        chosen: dict[str, Priced | None] = {}
        shared = None
        for part, number in zip(self.parts, self.rows[index], strict=True):
            entry = part.entries[int(number)]
            if isinstance(entry, SharedOption):
                shared = entry
                chosen |= dict(zip(entry.members, entry.options, strict=True))
            else:
                chosen[part.path] = entry
        return Pick(tuple(chosen[proposal.site.path] for proposal in chain.proposals), (), shared)


def _list_parts(chain: Chain, share: Share | None) -> tuple[_Part, ...]:
    behind = () if share is None else share.members
    alone = tuple(_list_own(proposal) for proposal in chain.proposals if proposal.site.path not in behind)
    return alone if share is None else (_list_ranks(share), *alone)


def _list_own(proposal: Proposal) -> _Part:
    costs = [proposal.site.cost, *(priced.cost for priced in proposal.options)]
    losses = [0.0, *(priced.option.predicted_loss for priced in proposal.options)]
    return _Part((None, *proposal.options), proposal.site.path, by_unit(costs), np.array(losses))


def _list_ranks(share: Share) -> _Part:
    costs = [offer.whole_cost for offer in share.offers]
    return _Part(share.offers, "", by_unit(costs), np.array([offer.loss for offer in share.offers]))


def _add_up(parts: Sequence[_Part], weights: Mapping[str, float]) -> _Table:
    """Every sum of one entry of each list that is on the Pareto front; of very many, an even choice."""
    zero = np.zeros(1, dtype=np.int64)
    table = _Table((), dict.fromkeys(UNITS, zero), np.zeros(1), np.zeros((1, 0), dtype=np.int64), True)
    for part in parts:
        table = _add(table, part, weights)
    return table


def _add(table: _Table, part: _Part, weights: Mapping[str, float]) -> _Table:
    own = list_pareto(Choices(weigh(part.costs, weights), part.losses))
    costs = {u: (table.costs[u][:, None] + part.costs[u][own][None, :]).ravel() for u in UNITS}
    losses = (table.losses[:, None] + part.losses[own][None, :]).ravel()
    before = np.repeat(table.rows, len(own), axis=0)
    rows = np.concatenate([before, np.tile(own, len(table.losses))[:, None]], axis=1)
    key = weigh(costs, weights)
    front = list_pareto(Choices(key, losses))
    complete = len(front) <= MOST_SUMS
    if not complete:
        best = keep_best_in_bins(front, key, MOST_SUMS)
        front = np.concatenate([front[:1], best[best != front[0]]])  # what is reachable stays so
    kept = {unit: cost[front] for unit, cost in costs.items()}
    return _Table((*table.parts, part), kept, losses[front], rows[front], table.exact and complete)
