"""Carry the choice of channels out on the proposals: narrower sites, asked afresh, and what the plan says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bottleneck_opt.allocation import Allocation
from bottleneck_opt.graph import Cost
from bottleneck_opt.joining import Joint
from bottleneck_opt.narrowing import narrow_site
from bottleneck_opt.plan import Selection
from bottleneck_opt.proposing import Proposal, reprice
from bottleneck_opt.sites import Site

Narrowed = dict[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None], Proposal]
"""Proposals of narrower sites, by path and the numbers of the input and output channels that are left."""


@dataclass(frozen=True)
class Dropped:
    """What is left to choose once it is decided which channels go.

    Attributes:
        proposals: Those of the narrower sites in place of the whole ones; the others as they were.
        cost: Cost of the whole model with these channels dropped and nothing else changed.
        selections: For the plan.
    """

    proposals: tuple[Proposal, ...]
    cost: Cost
    selections: tuple[Selection, ...]

    @property
    def loss(self) -> float:
        """Predicted loss of dropping."""
        return sum(selection.predicted_loss for selection in self.selections)

    def reprice(self, whole: Sequence[Proposal], total: Cost) -> Dropped:
        """The same with times as they are known now.

        Args:
            whole: The proposals of the whole sites, with times as they are known now.
            total: Cost of the whole model as it is.
        """
        proposals = tuple(map(reprice, self.proposals))
        return replace(self, proposals=proposals, cost=total - _count_saved(whole, proposals, self.selections))


def drop_channels(
    proposals: Sequence[Proposal], joints: Sequence[Joint], allocation: Allocation, total: Cost,
    ask: Callable[[Sequence[Site]], list[Proposal]], known: Narrowed | None = None,
) -> Dropped:  # fmt: skip
    """Narrow the sites at both ends of each link that loses channels, and ask the passes about them again.

    Args:
        proposals: Those of the whole sites.
        joints: The links.
        allocation: How many channels of each stay.
        total: Cost of the whole model as it is.
        ask: Gives the passes' answers about sites.
        known: Those of the last time, which are not asked for again; those of this time take their place.
    """
    selections = tuple(_select(joint, allocation.kept) for joint in joints if joint.link.consumer in allocation.kept)
    inputs = {selection.consumer: selection.kept for selection in selections}
    outputs = {selection.producer: selection.kept for selection in selections}
    wanted = {
        (p.site.path, inputs.get(p.site.path), outputs.get(p.site.path)): p.site
        for p in proposals
        if p.site.path in {*inputs, *outputs}
    }
    known = {} if known is None else known
    missing = [key for key in wanted if key not in known]
    fresh = ask([_narrow(wanted[key], key[1], key[2]) for key in missing])
    found = {key: known[key] for key in wanted if key in known} | dict(zip(missing, fresh, strict=True))
    known.clear()
    known.update(found)
    answers = {proposal.site.path: proposal for proposal in map(reprice, found.values())}
    left = tuple(answers.get(each.site.path, each) for each in proposals)
    return Dropped(left, total - _count_saved(proposals, left, selections), selections)


def _count_saved(whole: Sequence[Proposal], left: Sequence[Proposal], selections: Sequence[Selection]) -> Cost:
    """What the narrower sites, and what is between them, cost less."""
    before = {proposal.site.path: proposal.site.cost for proposal in whole}
    narrower = [each.site for each in left if each.site.whole is not None]
    saved = sum((before[site.path] - site.cost for site in narrower), Cost())
    return saved + sum((selection.saved for selection in selections), Cost())


def _narrow(site: Site, inputs: Sequence[int] | None, outputs: Sequence[int] | None) -> Site:
    layer = site.layer
    return narrow_site(
        site,
        range(layer.in_channels) if inputs is None else inputs,
        range(layer.out_channels) if outputs is None else outputs,
    )


def _select(joint: Joint, kept: Mapping[str, int]) -> Selection:
    link, count = joint.link, kept[joint.link.consumer]
    gone = link.channels - count
    saved = Cost(link.cost.macs * gone, link.cost.params * gone, link.cost.other * gone)
    return Selection(
        link.producer, link.consumer, link.between, link.channels, joint.elimination.kept(count), joint.pass_name,
        saved, float(joint.elimination.losses[count]),
    )  # fmt: skip
