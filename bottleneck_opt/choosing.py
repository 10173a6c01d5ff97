"""From statistics to a choice: ask the passes, share out the budget, drop channels, share out what is left again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bottleneck_opt.allocation import Allocation, allocate
from bottleneck_opt.budget import TIME
from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.dropping import Dropped, Narrowed, drop_channels
from bottleneck_opt.graph import Cost
from bottleneck_opt.joining import Joint, propose_joints
from bottleneck_opt.links import Links, find_links
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.outcome import Curve
from bottleneck_opt.plan import Selection, Sharing, Step
from bottleneck_opt.progress import Stages
from bottleneck_opt.proposing import Priced, Proposal, make_curve, make_step
from bottleneck_opt.proposing_on_ranks import propose_on_ranks
from bottleneck_opt.rehearsing_links import rehearse_links
from bottleneck_opt.rehearsing_sharing import rehearse_groups
from bottleneck_opt.shared_options import Share, propose_shares
from bottleneck_opt.sharing import Groups, find_groups
from bottleneck_opt.sites import AnyPass, ChannelPass, Pacer, Pass, SharingPass, Skip
from bottleneck_opt.skipping import main_reasons
from bottleneck_opt.slower import SlowOption, leave_out
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.subject import Subject


@dataclass(frozen=True)
class Wish:
    """What to choose from and within which limits.

    Attributes:
        passes: Whom to ask.
        limits: The most the result may cost, by unit.
        contract: Whether a limit that cannot be reached is an error.
        rounds: In how many rounds the factors of what was chosen are improved.
        pacer: Says how long layers take, where time is limited.
        whole: Nanoseconds of the whole model, where time is limited.
        slower: What is not to be chosen because it is no faster.
        hold: Drop the same channels as in the last choice from the same offers, and share out the rest.
    """

    passes: tuple[AnyPass, ...]
    limits: Mapping[str, int]
    contract: bool
    rounds: int = 0
    pacer: Pacer | None = None
    whole: int = 0
    slower: tuple[SlowOption, ...] = ()
    hold: bool = False

    def total(self, cost: Cost) -> Cost:
        """The whole model's cost with its time, where that is limited."""
        return replace(cost, latency=self.whole)

    @property
    def units(self) -> tuple[str, ...]:
        """What a replacement must not cost more of: what is limited and, where that is time, multiply-adds too."""
        return (*self.limits, *(["macs"] if TIME in self.limits and "macs" not in self.limits else []))

    @property
    def site_passes(self) -> tuple[Pass, ...]:
        """Those that replace a layer."""
        return tuple(each for each in self.passes if isinstance(each, Pass))

    @property
    def channel_passes(self) -> tuple[ChannelPass, ...]:
        """Those that drop channels between layers."""
        return tuple(each for each in self.passes if isinstance(each, ChannelPass))

    @property
    def sharing_passes(self) -> tuple[SharingPass, ...]:
        """Those that put a bottleneck before several layers."""
        return tuple(each for each in self.passes if isinstance(each, SharingPass))


@dataclass(frozen=True)
class Ties:
    """Where layers are not independent of each other: who makes channels for whom, and who reads the same ones."""

    links: Links
    groups: Groups


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        proposals: The options of every site, of the narrower one where channels are dropped.
        allocation: The option of each.
        selections: The channels that are dropped.
    """

    proposals: tuple[Proposal, ...]
    allocation: Allocation
    selections: tuple[Selection, ...]

    @property
    def changed(self) -> tuple[tuple[Proposal, Priced | None], ...]:
        """The proposals that change something, with the option; None where the layer only got narrower."""
        pairs = zip(self.proposals, self.allocation.chosen, strict=True)
        return tuple((p, priced) for p, priced in pairs if priced is not None or p.site.whole is not None)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The plan's steps."""
        return tuple(make_step(proposal.site, priced) for proposal, priced in self.changed)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """What other ranks of the chosen options' forms would have lost."""
        drawn = (make_curve(proposal, priced) for proposal, priced in self.changed if priced is not None)
        return tuple(curve for curve in drawn if len(curve.losses) > 1)

    @property
    def sharings(self) -> tuple[Sharing, ...]:
        """The plan's shared bottlenecks."""
        return tuple(option.describe() for option in self.allocation.shared)


@dataclass(frozen=True)
class Offers:
    """What there is to choose from, at any budget in the same units.

    Attributes:
        proposals: The options of every site.
        joints: The links between them whose channels may be dropped.
        shares: The bottlenecks that several of them can read.
        total: Cost of the whole model as it is.
        reason: What keeps the rest of the model from being rewritten.
        narrowed: The options of the sites that the last choice from these offers made narrower.
        last: The last choice from these offers that drops channels, with what it left.
    """

    proposals: tuple[Proposal, ...]
    joints: tuple[Joint, ...]
    shares: tuple[Share, ...]
    total: Cost
    reason: str
    narrowed: Narrowed = field(default_factory=dict, compare=False)
    last: list[tuple[Allocation, Dropped]] = field(default_factory=list, compare=False)

    def find_smallest(self, limits: Mapping[str, int]) -> Cost:
        """The least that can be reached of some limits; a choice within them where they can be."""
        return allocate(
            self.proposals, self.total, limits, contract=False, joints=self.joints, shares=self.shares
        ).cost  # fmt: skip

    def leave_all(self, like: Choice) -> Choice:
        """The choice to leave every layer as it is, in place of another choice among these offers."""
        nothing = replace(
            like.allocation, chosen=(None,) * len(self.proposals), cost=self.total, loss=0.0, gap=0.0, met=True,
            kept={}, shared=(), thinned=0,
        )  # fmt: skip
        return Choice(self.proposals, nothing, ())


def find_ties(subject: Subject, passes: Sequence[AnyPass]) -> Ties:
    """What the passes can use of both; a layer that may share a bottleneck keeps the channels it reads and makes."""
    links, groups = find_droppable(subject, passes), find_shareable(subject, passes)
    reason = "or the layer that makes them may share a bottleneck"
    tied = [each.consumer for each in links.found if groups.members & {each.consumer, each.producer}]
    return Ties(links.without(dict.fromkeys(tied, Skip(f"keeps its input channels: it {reason}"))), groups)


def find_shareable(subject: Subject, passes: Sequence[AnyPass]) -> Groups:
    """The layers before which a bottleneck can stand; none where no pass offers one."""
    if not any(isinstance(each, SharingPass) for each in passes):
        return Groups((), {})
    groups = find_groups(subject.working, subject.traced, subject.candidates)
    return rehearse_groups(subject.working, subject.example, subject.candidates, groups)


def find_droppable(subject: Subject, passes: Sequence[AnyPass]) -> Links:
    """The links on which channels can be dropped; none where no pass drops any."""
    if not any(isinstance(each, ChannelPass) for each in passes):
        return Links((), {})
    links = find_links(subject.working, subject.traced, subject.candidates)
    return rehearse_links(subject.working, subject.example, subject.candidates, links)


def choose_options(
    subject: Subject, statistics: Statistics, ties: Ties, wish: Wish, stages: Stages, ranks: Ranks = ALONE
) -> Choice:
    """The least predicted change of the output within the limits.

    Raises:
        BudgetError, PassError: As :func:`allocate` and :func:`propose`.
    """
    return choose_among(list_offers(subject, statistics, ties, wish, stages, ranks), wish, stages, ranks)


def list_offers(
    subject: Subject, statistics: Statistics, ties: Ties, wish: Wish, stages: Stages, ranks: Ranks = ALONE
) -> Offers:
    """What the passes offer for every layer, whatever the limits.

    Raises:
        PassError: As :func:`propose`.
    """
    proposals, joints, shares = _propose(subject, statistics, ties, wish, stages, ranks)
    reason = main_reasons(subject.working, subject.traced, subject.candidates, proposals)
    return Offers(tuple(proposals), tuple(joints), tuple(shares), wish.total(subject.traced.cost), reason)


def choose_among(offers: Offers, wish: Wish, stages: Stages, ranks: Ranks = ALONE) -> Choice:
    """The least predicted change of the output within the limits, from what is offered.

    First all options of all layers compete, dropped channels among them. Then the channels that lost are gone, the
    passes look at the narrower layers, and the budget is shared out again among these, which can only do better.

    Raises:
        BudgetError, PassError: As :func:`allocate` and :func:`propose`.
    """
    if wish.hold and offers.last:
        return _share_out_rest(offers, *offers.last[0], wish, stages)
    offers = replace(offers, proposals=tuple(leave_out(offers.proposals, wish.slower)))
    with stages.stage("allocate"):
        first = allocate(
            offers.proposals, offers.total, wish.limits, contract=wish.contract, reason=offers.reason,
            joints=offers.joints, shares=offers.shares,
        )  # fmt: skip
    if not first.kept:
        offers.last.clear()
        return Choice(offers.proposals, first, ())
    dropped = _drop(offers, first, wish, stages, ranks)
    offers.last[:] = [(first, dropped)]
    return _share_out_rest(offers, first, dropped, wish, stages)


def _share_out_rest(offers: Offers, first: Allocation, dropped: Dropped, wish: Wish, stages: Stages) -> Choice:
    """The best choice among the narrower layers."""
    dropped = dropped.reprice(offers.proposals, offers.total)
    left = tuple(leave_out(dropped.proposals, wish.slower))
    with stages.stage("allocate again"):
        second = allocate(
            left, dropped.cost, wish.limits, contract=wish.contract, reason=offers.reason, shares=offers.shares
        )  # fmt: skip
    second = replace(second, loss=second.loss + dropped.loss, thinned=first.thinned, frontier=first.frontier)
    return Choice(left, second, dropped.selections)


def _propose(
    subject: Subject, statistics: Statistics, ties: Ties, wish: Wish, stages: Stages, ranks: Ranks
) -> tuple[list[Proposal], list[Joint], list[Share]]:
    sites = make_sites(
        subject.working, subject.traced, subject.candidates, statistics, rounds=wish.rounds, pacer=wish.pacer
    )  # fmt: skip
    total = len(sites) + len(ties.links.found) * len(wish.channel_passes) + len(ties.groups.found)
    with stages.stage("propose", total=total) as advance:
        proposals = propose_on_ranks(sites, wish.site_passes, wish.units, advance, ranks)
        proposals, joints = propose_joints(proposals, ties.links, wish.channel_passes, advance, ranks)
        proposals, shares = propose_shares(proposals, ties.groups, wish.sharing_passes, wish.units, advance)
        return proposals, joints, shares


def _drop(offers: Offers, first: Allocation, wish: Wish, stages: Stages, ranks: Ranks) -> Dropped:
    links = [joint.link for joint in offers.joints if joint.link.consumer in first.kept]
    ends = {path for link in links for path in (link.producer, link.consumer)}
    with stages.stage("narrow", total=len(ends)) as advance:
        ask = partial(
            propose_on_ranks, passes=wish.site_passes, units=wish.units, advance=advance, ranks=ranks
        )  # fmt: skip
        return drop_channels(offers.proposals, offers.joints, first, offers.total, ask, offers.narrowed)
