"""Ask which channels between two layers can go, and line such pairs up to chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bottleneck_opt.distribution import ALONE, Elsewhere, Ranks, run_on_ranks
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.errors import PassError
from bottleneck_opt.links import Link, Links
from bottleneck_opt.progress import Advance
from bottleneck_opt.proposing import Proposal, blaming
from bottleneck_opt.shared_options import Share
from bottleneck_opt.sites import ChannelPass, Pacer, Site, Skip, rank_steps


@dataclass(frozen=True)
class Joint:
    """A link whose channels may be dropped.

    Attributes:
        link: The two layers.
        pass_name: The pass that says which.
        elimination: In which order, and what it costs.
        counts: How many channels may be left, ascending; the last is all of them.
    """

    link: Link
    pass_name: str
    elimination: Elimination
    counts: tuple[int, ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """The predicted loss at each of ``counts``."""
        return tuple(float(self.elimination.losses[count]) for count in self.counts)


@dataclass(frozen=True)
class Chain:
    """Layers that are chosen for together: in a row, each the only reader of the one before it, or side by side.

    Attributes:
        proposals: The layers' options.
        joints: The links between layers in a row.
        shares: The bottlenecks that some of the layers side by side can read; none of these has a link.
    """

    proposals: tuple[Proposal, ...]
    joints: tuple[Joint, ...]
    shares: tuple[Share, ...] = ()


def propose_joints(
    proposals: Sequence[Proposal], links: Links, passes: Sequence[ChannelPass], advance: Advance = lambda: None,
    ranks: Ranks = ALONE,
) -> tuple[list[Proposal], list[Joint]]:  # fmt: skip
    """What the passes say about the links, and the proposals with their reasons added.

    Args:
        proposals: Those of all sites.
        links: Where channels may be dropped.
        passes: Whom to ask.
        advance: Called after each question.
        ranks: Who shares the work.

    Raises:
        PassError: A pass failed, or answered with something else than an order of the channels.
    """
    if not passes:
        return list(proposals), []
    answers = _ask_all({p.site.path: p.site for p in proposals}, links, passes, advance, ranks)
    joints, told = [], []
    for proposal in proposals:
        path = proposal.site.path
        mine = {name: answer for (consumer, name), answer in answers.items() if consumer == path}
        skips = {name: answer for name, answer in mine.items() if isinstance(answer, Skip)}
        if path in links.refused:
            skips |= {each.name: links.refused[path] for each in passes}
        joints.extend([each for each in mine.values() if isinstance(each, Joint)][:1])
        told.append(replace(proposal, skips=(*proposal.skips, *skips.items())))
    return told, joints


def _ask_all(
    sites: Mapping[str, Site], links: Links, passes: Sequence[ChannelPass], advance: Advance, ranks: Ranks
) -> dict[tuple[str, str], Joint | Skip | None]:
    """The answer of each pass about each link, by the link's consumer and the pass's name."""
    asked = [(link, each) for link in links.found for each in passes]
    loads = [float(link.channels * sites[link.consumer].layer.offsets) ** 3 for link, _ in asked]
    works: list[Callable[[], Joint | Skip | None]] = [
        partial(_ask, each, sites[link.consumer], link) if owner == ranks.rank else Elsewhere(owner)
        for (link, each), owner in zip(asked, ranks.deal(loads), strict=True)
    ]
    answers = run_on_ranks(works, ranks, advance)
    return {(link.consumer, each.name): answer for (link, each), answer in zip(asked, answers, strict=True)}


def _ask(each: ChannelPass, site: Site, link: Link) -> Joint | Skip | None:
    if site.statistics.inputs.count == 0:
        return Skip("no calibration example reached it", "calibrate with inputs that reach it")
    with blaming(each.name, site):
        answer = each.eliminate(site)
    if answer is None or isinstance(answer, Skip):
        return answer
    _check(each.name, answer, site)
    return Joint(link, each.name, answer, choose_counts(link.channels, each.counts, site.pacer))


def _check(name: str, answer: Elimination, site: Site) -> None:
    wanted = site.layer.in_channels
    if sorted(answer.order.tolist()) != list(range(wanted)) or answer.losses.shape != (wanted + 1,):
        raise PassError(
            f"pass '{name}' on '{site.path}': got an order of {len(answer.order)} channels with "
            f"{len(answer.losses)} losses; expected each of {wanted} channels once and {wanted + 1} losses. Mend the "
            "pass."
        )
    if not bool((answer.losses >= 0).all()):
        raise PassError(f"pass '{name}' on '{site.path}': got a negative loss or NaN; expected losses of at least 0.")


def choose_counts(channels: int, most: int, pacer: Pacer | None = None) -> tuple[int, ...]:
    """At most ``most`` numbers of channels to keep, evenly spread, and all of them.

    Args:
        channels: How many there are.
        most: How many numbers.
        pacer: Says which widths waste no time; None where time is not limited.

    Example:
        >>> choose_counts(128, 4)
        (32, 64, 96, 128)
    """
    liked = (count for count in rank_steps(channels) if pacer is None or pacer.likes(count))
    steps = (*liked, channels)
    stride = len(steps) / min(most, len(steps))
    return tuple(steps[round((number + 1) * stride) - 1] for number in range(min(most, len(steps))))


def group_chains(
    proposals: Sequence[Proposal], joints: Sequence[Joint], shares: Sequence[Share] = ()
) -> tuple[Chain, ...]:
    """The proposals as chains, in the order of their first layers; a layer that is joined to none is one by itself.

    Args:
        proposals: All layers.
        joints: The links between some.
        shares: The bottlenecks that some can read; these layers must have no link.
    """
    together = _group_shares(shares)
    before: Mapping[str, Joint] = {joint.link.consumer: joint for joint in joints}
    after: Mapping[str, Joint] = {joint.link.producer: joint for joint in joints}
    by_path = {proposal.site.path: proposal for proposal in proposals}
    chains = []
    for proposal in proposals:
        if proposal.site.path in before:
            continue
        if proposal.site.path in together:
            beside = together[proposal.site.path]
            paths = {path for share in beside for path in share.members}
            group = tuple(each for each in proposals if each.site.path in paths)
            if group[0] is proposal:
                chains.append(Chain(group, (), beside))
            continue
        members, links = [proposal], list[Joint]()
        while (joint := after.get(members[-1].site.path)) is not None:
            links.append(joint)
            members.append(by_path[joint.link.consumer])
        chains.append(Chain(tuple(members), tuple(links)))
    return tuple(chains)


def _group_shares(shares: Sequence[Share]) -> dict[str, tuple[Share, ...]]:
    """For each layer, all bottlenecks of its group: a layer reads one tensor, so the groups are apart."""
    groups: dict[str, list[Share]] = {}
    for share in shares:
        groups.setdefault(share.path, []).append(share)
    return {path: tuple(group) for group in groups.values() for share in group for path in share.members}
