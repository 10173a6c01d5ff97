"""Joint options of layers in a chain: the knapsack finds what trying everything finds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from bottleneck_opt.allocation import allocate
from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.choosing import find_droppable, find_shareable
from bottleneck_opt.costs import price_layers
from bottleneck_opt.graph import Cost
from bottleneck_opt.joining import Joint, choose_counts, group_chains, propose_joints
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.menus import list_menu
from bottleneck_opt.narrowing import narrow_site
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.passes.select import Select
from bottleneck_opt.passes.shared import Shared
from bottleneck_opt.proposing import Priced, Proposal, propose
from bottleneck_opt.shared_options import Share, propose_shares
from bottleneck_opt.subject import Request, prepare_subject
from tests.networks import Computes, conv, noise, seeded


def offer(counts: int = 3) -> tuple[list[Proposal], list[Joint], Cost]:
    """Three layers in a row with a batch norm, few options each."""
    net = seeded(lambda: nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 3)))
    subject = prepare_subject(net, Request(noise(8, 2, 6, 6), noise(8, 2, 6, 6), 8, None, 0, None, None))
    statistics = collect_statistics(subject.working, subject.candidates.layers, subject.data, Sampling(8, 2, 0))
    sites = make_sites(subject.working, subject.traced, subject.candidates, statistics)
    passes = (Select(counts=counts),)
    proposals = propose(sites, (Reduce(), Expand()), ("macs",))
    proposals, joints = propose_joints(proposals, find_droppable(subject, passes), passes)
    return proposals, joints, subject.traced.cost


def price(proposal: Proposal, option: Priced | None, inputs: int, outputs: int) -> int:
    """MACs of a layer with fewer channels, counted from the layers themselves."""
    site = proposal.site
    layers = (site.layer,) if option is None else option.option.layers
    first = layers[0].named("first", in_channels=inputs)
    layers = (first, *layers[1:])
    layers = (*layers[:-1], layers[-1].named("last", out_channels=outputs))
    return price_layers(layers, list(site.input_shapes)).macs


def try_everything(proposals: Sequence[Proposal], joints: Sequence[Joint], room: int) -> float:
    """The least loss within the room, over all options and numbers of channels."""
    best = float("inf")
    for kept in itertools.product(*(joint.counts for joint in joints)):
        widths = [2, *kept, 3]
        dropped = sum(float(j.elimination.losses[count]) for j, count in zip(joints, kept, strict=True))
        lists = [
            [
                (price(p, option, widths[i], widths[i + 1]), 0.0 if option is None else option.option.predicted_loss)
                for option in (None, *p.options)
            ]
            for i, p in enumerate(proposals)
        ]
        for picked in itertools.product(*lists):
            if sum(cost for cost, _ in picked) <= room:
                best = min(best, dropped + sum(loss for _, loss in picked))
    return best


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.4, 0.25])
def test_the_choice_for_a_chain_is_the_best_of_all(ratio: float) -> None:
    proposals, joints, total = offer()
    limit = int(ratio * total.macs)
    found = allocate(proposals, total, {"macs": limit}, contract=True, joints=joints)
    assert found.cost.macs <= limit
    assert found.loss == pytest.approx(try_everything(proposals, joints, limit), rel=1e-9)


def test_more_budget_never_loses_more() -> None:
    proposals, joints, total = offer(counts=6)
    losses = [
        allocate(proposals, total, {"macs": int(ratio * total.macs)}, contract=True, joints=joints).loss
        for ratio in (0.3, 0.5, 0.7, 0.9, 1.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0.0


def test_two_budgets_hold_at_once() -> None:
    proposals, joints, total = offer()
    limits = {"macs": total.macs // 2, "params": total.params // 2}
    found = allocate(proposals, total, limits, contract=True, joints=joints)
    assert found.met


def test_every_entry_costs_what_its_narrower_layers_cost() -> None:
    proposals, joints, _ = offer()
    (chain,) = group_chains(proposals, joints)
    menu = list_menu(chain, ("macs",))
    for index in range(len(menu.losses)):
        pick = menu.pick(index)
        widths = [2, *pick.kept, 3]
        costs = [
            price(p, o, widths[i], widths[i + 1]) for i, (p, o) in enumerate(zip(proposals, pick.options, strict=True))
        ]
        assert menu.costs["macs"][index] == sum(costs)


def test_a_narrower_site_costs_and_loses_what_it_says() -> None:
    proposals, joints, _ = offer()
    site, joint = proposals[1].site, joints[0]
    kept = joint.elimination.kept(2)
    narrow = narrow_site(site, kept, range(site.layer.out_channels))
    assert narrow.cost.macs == site.cost.macs // 2
    spread = torch.zeros_like(site.offset_weight)
    spread[..., list(kept)] = narrow.offset_weight
    predicted = Select().caution * site.predict_loss(spread.flatten(1))
    assert predicted == pytest.approx(float(joint.elimination.losses[2]), rel=1e-6)


def test_counts_are_spread_evenly_and_end_with_all() -> None:
    assert choose_counts(6, 100) == (1, 2, 3, 4, 5, 6)
    assert choose_counts(128, 4) == (32, 64, 96, 128)


def offer_shared() -> tuple[list[Proposal], list[Share], Cost]:
    """Three layers that read one tensor, few options each, and bottlenecks for all of them and for every two."""

    def forward(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(net.get_submodule("stem")(x))
        return torch.cat([net.get_submodule(name)(x) for name in "abc"], 1)

    net = seeded(lambda: Computes(forward, stem=conv(2, 6), a=conv(6, 4, 1), b=conv(6, 5), c=conv(6, 4)))
    request = Request(noise(8, 2, 6, 6), noise(8, 2, 6, 6), 8, None, 0, None, None)
    subject = prepare_subject(net, request, as_graph=True)
    statistics = collect_statistics(subject.working, subject.candidates.layers, subject.data, Sampling(8, 2, 0))
    sites = make_sites(subject.working, subject.traced, subject.candidates, statistics)
    passes = (Shared(),)
    proposals = propose(sites, (Reduce(), Expand()), ("macs",))
    groups = find_shareable(subject, passes)
    proposals, shares = propose_shares(proposals, groups, passes, ("macs",))
    return proposals, shares, subject.traced.cost


def try_everything_shared(proposals: Sequence[Proposal], shares: Sequence[Share], room: int) -> float:
    """The least loss within the room, over all options of all layers and all bottlenecks."""
    best = float("inf")
    for offer in (None, *(offer for share in shares for offer in share.offers)):
        behind = () if offer is None else offer.members
        lists = [
            [
                (
                    p.site.cost.macs if o is None else o.cost.macs,
                    0.0 if o is None else o.option.predicted_loss,
                )
                for o in (None, *p.options)
            ]
            for p in proposals
            if p.site.path not in behind
        ]
        lists += [] if offer is None else [[(offer.whole_cost.macs, offer.loss)]]
        for picked in itertools.product(*lists):
            if sum(cost for cost, _ in picked) <= room:
                best = min(best, sum(loss for _, loss in picked))
    return best


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.4, 0.25])
def test_the_choice_for_layers_that_read_one_tensor_is_the_best_of_all(ratio: float) -> None:
    proposals, shares, total = offer_shared()
    assert sorted(len(share.members) for share in shares) == [2, 2, 2, 3]
    limit = int(ratio * total.macs)
    found = allocate(proposals, total, {"macs": limit}, contract=True, shares=shares)
    assert found.cost.macs <= limit
    assert found.loss == pytest.approx(try_everything_shared(proposals, shares, limit), rel=1e-9)


def test_two_budgets_hold_at_once_with_shared_bottlenecks() -> None:
    proposals, shares, total = offer_shared()
    limits = {"macs": total.macs // 2, "params": total.params // 2}
    assert allocate(proposals, total, limits, contract=True, shares=shares).met


def test_lists_that_were_thinned_out_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals, joints, total = offer()
    limits = {"macs": total.macs // 2}
    assert allocate(proposals, total, limits, contract=True, joints=joints).thinned == 0
    monkeypatch.setattr("bottleneck_opt.menus.MOST_SUMS", 4)
    found = allocate(proposals, total, limits, contract=True, joints=joints)
    assert found.thinned == 1
    assert found.met
