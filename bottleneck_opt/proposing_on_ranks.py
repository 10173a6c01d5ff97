"""Ask the passes about each site once, however many processes share the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bottleneck_opt.distribution import ALONE, Elsewhere, Ranks
from bottleneck_opt.progress import Advance
from bottleneck_opt.proposing import Priced, Proposal, propose
from bottleneck_opt.sites import Pass, Site


def propose_on_ranks(
    sites: Sequence[Site], passes: Sequence[Pass], units: Sequence[str], advance: Advance = lambda: None,
    ranks: Ranks = ALONE,
) -> list[Proposal]:  # fmt: skip
    """As :func:`bottleneck_opt.proposing.propose`, with the sites dealt out to the ranks.

    All ranks get all options. Those of another rank's sites cannot be filled here: their ``fill`` is
    :class:`bottleneck_opt.distribution.Elsewhere`.

    Args:
        sites, passes, units: As for ``propose``, the same at all ranks.
        advance: Called after each site.
        ranks: Who shares the work.
    """
    if ranks.count == 1:
        return propose(sites, passes, units, advance)
    owners = ranks.deal([_guess_work(site) for site in sites])
    mine = [site for site, owner in zip(sites, owners, strict=True) if owner == ranks.rank]
    own = propose(mine, passes, units, advance)
    answers = [(tuple(_without_fill(priced, ranks.rank) for priced in each.options), each.skips) for each in own]
    others = [iter(answers_of_rank) for answers_of_rank in ranks.collect(answers)]
    kept = iter(own)
    proposals = []
    for site, owner in zip(sites, owners, strict=True):
        options, skips = next(others[owner])
        if owner == ranks.rank:
            proposals.append(next(kept))
        else:
            proposals.append(Proposal(site, options, skips))
            advance()
    return proposals


def _guess_work(site: Site) -> float:
    """Decompositions take the third power of their width."""
    layer = site.layer
    return float(layer.in_channels * layer.offsets) ** 3 + float(layer.out_channels) ** 3


def _without_fill(priced: Priced, rank: int) -> Priced:
    return replace(priced, option=replace(priced.option, fill=Elsewhere(rank)))
