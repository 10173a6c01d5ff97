"""What a bottleneck before several layers costs and loses at every rank: joint options for the layers of a group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from bottleneck_opt.common_factor import CommonBasis, refit_to_common
from bottleneck_opt.costs import price_layers
from bottleneck_opt.errors import PassError
from bottleneck_opt.graph import Cost
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.narrowing import narrow_shape
from bottleneck_opt.plan import SHARED, Sharing
from bottleneck_opt.progress import Advance
from bottleneck_opt.proposing import Priced, Proposal, pays
from bottleneck_opt.sharing import Group, Groups
from bottleneck_opt.sites import Option, SharingPass, Site, Skip, Weights, rank_steps


@dataclass(frozen=True)
class SharedOption:
    """One bottleneck for some layers.

    Attributes:
        path: Where its 1x1 will stand.
        members: Paths of the layers.
        layer: The 1x1.
        cost: What it costs.
        options: For each member the narrower layer that reads it.
        pass_name: The pass that proposed it.
        fill: Computes the 1x1's weights; called only if it is chosen.
    """

    path: str
    members: tuple[str, ...]
    layer: LayerSpec
    cost: Cost
    options: tuple[Priced, ...]
    pass_name: str
    fill: Callable[[], Weights]

    @property
    def whole_cost(self) -> Cost:
        """What the 1x1 and all members cost."""
        return sum((priced.cost for priced in self.options), self.cost)

    @property
    def loss(self) -> float:
        """The members' predicted losses added up."""
        return sum(priced.option.predicted_loss for priced in self.options)

    def describe(self) -> Sharing:
        """The plan's entry."""
        layer = self.layer
        return Sharing(
            self.path, self.members, layer.out_channels, layer.in_channels, layer, self.pass_name, self.cost, self.loss
        )  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A bottleneck for some layers of a group, at every rank that pays.

    Attributes:
        path: Where its 1x1 will stand; the same for all bottlenecks of a group.
        members: Paths of the layers.
        offers: One for each rank.
    """

    path: str
    members: tuple[str, ...]
    offers: tuple[SharedOption, ...]


def propose_shares(
    proposals: Sequence[Proposal], groups: Groups, passes: Sequence[SharingPass], units: Sequence[str],
    advance: Advance = lambda: None,
) -> tuple[list[Proposal], list[Share]]:  # fmt: skip
    """What the passes offer for the groups, cheaper bottlenecks only, and the proposals with their reasons added.

    Of a group of few members every subset is tried too (:attr:`SharingPass.subsets`): one member may need what the
    others do without.

    Args:
        proposals: Those of all sites.
        groups: The layers that read one tensor.
        passes: Whom to ask.
        units: The budget's units; an option must not cost more in any of them, and less in one.
        advance: Called after each group.

    Raises:
        PassError: A pass failed, or its answer does not fit the layers.
    """
    if not passes:
        return list(proposals), []
    sites = {proposal.site.path: proposal.site for proposal in proposals}
    shares: list[Share] = []
    skips = {path: dict.fromkeys((each.name for each in passes), skip) for path, skip in groups.refused.items()}
    for group in groups.found:
        usable, unusable = _sort_members(group, sites)
        for each in passes:
            answers = [_ask(each, group.path, subset, units) for subset in _list_subsets(usable, each.subsets)]
            shares += [answer for answer in answers if isinstance(answer, Share)]
            reasons = {site.path: answers[0] for site in usable if answers and isinstance(answers[0], Skip)} | unusable
            for path, skip in reasons.items():
                skips.setdefault(path, {})[each.name] = skip
        advance()
    return [_add_skips(proposal, skips.get(proposal.site.path, {})) for proposal in proposals], shares


def _add_skips(proposal: Proposal, skips: Mapping[str, Skip]) -> Proposal:
    return replace(proposal, skips=(*proposal.skips, *skips.items()))


def _sort_members(group: Group, sites: Mapping[str, Site]) -> tuple[list[Site], dict[str, Skip]]:
    """The members of which enough is known, and why the others are left out."""
    members = [sites[path] for path in group.members]
    unusable = {site.path: skip for site in members if (skip := _find_gap(site))}
    return [site for site in members if site.path not in unusable], unusable


def _find_gap(site: Site) -> Skip | None:
    if site.statistics.inputs.count == 0:
        return Skip("no calibration example reached it", "calibrate with inputs that reach it")
    if site.statistics.inputs.outer is None:
        width = len(site.statistics.inputs.total)
        return Skip(f"its patches have {width} entries: the {width} x {width} covariance is too large to fit")
    return None


def _list_subsets(members: Sequence[Site], most: int) -> list[tuple[Site, ...]]:
    """All members together first; of few, every subset of at least two."""
    if len(members) < 2:
        return []
    sizes = range(len(members), 1, -1) if len(members) <= most else (len(members),)
    return [subset for size in sizes for subset in itertools.combinations(members, size)]


def _ask(each: SharingPass, path: str, sites: Sequence[Site], units: Sequence[str]) -> Share | Skip | None:
    width = sites[0].layer.in_channels
    ranks = [rank for rank in rank_steps(width) if pays(_price(sites, rank), _price_whole(sites), units)]
    if not ranks:
        return Skip(f"{len(sites)} layers read its input: no rank of '{each.name}' costs fewer {' and '.join(units)}")
    where = ", ".join(f"'{site.path}'" for site in sites)
    try:
        answer = each.share(sites, max(ranks))
    except Exception as error:  # a stranger's pass can raise anything; the message names it and the sites
        raise PassError(
            f"pass '{each.name}' failed on {where}: {type(error).__name__}: {error}. Leave it out with passes=, or "
            f"exclude='{sites[0].path}'."
        ) from error
    if answer is None or isinstance(answer, Skip):
        return answer
    _check(each.name, where, answer, sites, max(ranks))
    return Share(
        path,
        tuple(site.path for site in sites),
        tuple(make_shared_option(each.name, path, sites, answer, rank) for rank in ranks),
    )


def _check(name: str, where: str, answer: CommonBasis, sites: Sequence[Site], most: int) -> None:
    width = sites[0].layer.in_channels
    wanted = (most, width), (len(sites), most + 1)
    shapes = tuple(answer.projection.shape), tuple(answer.losses.shape)
    if shapes != wanted:
        raise PassError(
            f"pass '{name}' on {where}: got a basis and losses of shapes {shapes}; expected {wanted}. Mend the pass."
        )
    if not bool((answer.losses >= 0).all()):
        raise PassError(f"pass '{name}' on {where}: got a negative loss or NaN; expected losses of at least 0.")


def _narrow(site: Site, rank: int) -> LayerSpec:
    """A layer after the bottleneck; its bias carries what is lost in the mean."""
    return site.layer.named(site.layer.name, in_channels=rank, bias=True)


def _bottleneck(sites: Sequence[Site], rank: int) -> LayerSpec:
    return sites[0].layer.pointwise(SHARED, sites[0].layer.in_channels, rank, bias=False)


def _price_member(site: Site, rank: int) -> Cost:
    narrow = _narrow(site, rank)
    shapes = [narrow_shape(shape, site.layer, rank) for shape in site.input_shapes]
    cost = price_layers((narrow,), site.input_shapes, site.output_shapes or None)
    return replace(cost, latency=site.price_time((narrow,), shapes))


def _price_bottleneck(sites: Sequence[Site], rank: int) -> Cost:
    first = sites[0]
    layers = (_bottleneck(sites, rank),)
    latency = 0 if first.pacer is None else first.pacer.price_alone(layers, first.input_shapes)
    return replace(price_layers(layers, first.input_shapes), latency=latency)


def _price(sites: Sequence[Site], rank: int) -> Cost:
    return sum((_price_member(site, rank) for site in sites), _price_bottleneck(sites, rank))


def _price_whole(sites: Sequence[Site]) -> Cost:
    return sum((site.cost for site in sites), Cost())


def make_shared_option(
    pass_name: str, path: str, sites: Sequence[Site], basis: CommonBasis, rank: int
) -> SharedOption:  # fmt: skip
    """A bottleneck of this rank, whatever it costs.

    Args:
        pass_name: Who proposes it.
        path: Where its 1x1 will stand.
        sites: The layers that read it.
        basis: Fitted to them.
        rank: How many channels it makes.
    """
    solution = _Solution(tuple(sites), basis.projection[:rank])
    options = tuple(
        Priced(
            pass_name,
            Option(
                SHARED, (rank,), (site.layer.in_channels,), (_narrow(site, rank),), float(basis.losses[place, rank]),
                partial(solution.fill_member, place),
            ),
            _price_member(site, rank),
        )
        for place, site in enumerate(sites)
    )  # fmt: skip
    members, layer = tuple(site.path for site in sites), _bottleneck(sites, rank)
    cost = _price_bottleneck(sites, rank)
    return SharedOption(path, members, layer, cost, options, pass_name, solution.fill_bottleneck)


@dataclass(frozen=True)
class _Solution:
    """All weights of one bottleneck and its readers, computed when the first of them is asked for."""

    sites: tuple[Site, ...]
    projection: Tensor

    @cached_property
    def factors(self) -> tuple[Tensor, list[Tensor]]:
        return refit_to_common([site.as_consumer() for site in self.sites], self.projection)

    def fill_bottleneck(self) -> Weights:
        first, _ = self.factors
        return Weights(first.reshape(*first.shape, *(1 for _ in self.sites[0].layer.kernel)))

    def fill_member(self, place: int) -> Sequence[Weights]:
        site = self.sites[place]
        first, seconds = self.factors
        second = seconds[place]
        kernel = second.transpose(1, 2).reshape(len(second), len(first), *site.layer.kernel)
        approximation = torch.matmul(second, first).flatten(1)
        return (Weights(kernel, site.corrected_bias(approximation)),)
