"""Carry the choice of channels out on the proposals: narrower sites, asked afresh, and what the plan says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bottleneck_opt.allocation import Allocation
from bottleneck_opt.graph import Cost
from bottleneck_opt.joining import Joint
from bottleneck_opt.narrowing import narrow_site
from bottleneck_opt.plan import Selection
from bottleneck_opt.progress import Advance
from bottleneck_opt.proposing import Proposal, ask_all
from bottleneck_opt.sites import Pass


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


def drop_channels(
    proposals: Sequence[Proposal], joints: Sequence[Joint], allocation: Allocation, total: Cost,
    passes: Sequence[Pass], units: Sequence[str], advance: Advance = lambda: None,
) -> Dropped:  # fmt: skip
    """Narrow the sites at both ends of each link that loses channels, and ask the passes about them again.

    Args:
        proposals: Those of the whole sites.
        joints: The links.
        allocation: How many channels of each stay.
        total: Cost of the whole model as it is.
        passes: Whom to ask.
        units: The budget's units.
        advance: Called after each site that got narrower.
    """
    selections = tuple(_select(joint, allocation.kept) for joint in joints if joint.link.consumer in allocation.kept)
    inputs = {selection.consumer: selection.kept for selection in selections}
    outputs = {selection.producer: selection.kept for selection in selections}
    made = []
    for proposal in proposals:
        path = proposal.site.path
        if path in inputs or path in outputs:
            proposal = _narrow(proposal, inputs.get(path), outputs.get(path), passes, units)  # noqa: PLW2901
            total -= proposal.site.whole.cost - proposal.site.cost  # type: ignore[union-attr]  # narrow sites have it
            advance()
        made.append(proposal)
    return Dropped(tuple(made), total - sum((each.saved for each in selections), Cost()), selections)


def _narrow(
    proposal: Proposal, inputs: Sequence[int] | None, outputs: Sequence[int] | None, passes: Sequence[Pass],
    units: Sequence[str],
) -> Proposal:  # fmt: skip
    layer = proposal.site.layer
    site = narrow_site(
        proposal.site,
        range(layer.in_channels) if inputs is None else inputs,
        range(layer.out_channels) if outputs is None else outputs,
    )
    return ask_all(site, passes, units)


def _select(joint: Joint, kept: Mapping[str, int]) -> Selection:
    link, count = joint.link, kept[joint.link.consumer]
    gone = link.channels - count
    saved = Cost(link.cost.macs * gone, link.cost.params * gone, link.cost.other * gone)
    return Selection(
        link.producer, link.consumer, link.between, link.channels, joint.elimination.kept(count), joint.pass_name,
        saved, float(joint.elimination.losses[count]),
    )  # fmt: skip
