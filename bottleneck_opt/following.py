"""Find the options of a plan again for other weights: layers of the same widths, fitted to what this model does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from bottleneck_opt.allocation import Allocation
from bottleneck_opt.choosing import Choice
from bottleneck_opt.elimination import refit_kept
from bottleneck_opt.errors import InputError, PassError, RewriteError
from bottleneck_opt.graph import Cost
from bottleneck_opt.links import Link, find_links
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.narrowing import narrow_site
from bottleneck_opt.plan import Plan, Selection, Sharing, Step
from bottleneck_opt.progress import Advance
from bottleneck_opt.proposing import Priced, Proposal, ask, make_step
from bottleneck_opt.rehearsing_links import rehearse_links
from bottleneck_opt.rehearsing_sharing import rehearse_groups
from bottleneck_opt.rewriting import check_plan_fits
from bottleneck_opt.shared_options import SharedOption, make_shared_option
from bottleneck_opt.sharing import find_groups
from bottleneck_opt.sites import AnyPass, Pass, SharingPass, Site, Skip
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.subject import Subject

LEFT = Skip("the plan leaves it as it is", "run optimize for a plan made for these weights")
P = TypeVar("P")
_OTHER = "Pass a model built as the one that the plan was made for, or run optimize on this one."


@dataclass(frozen=True)
class Course:
    """A plan that was found to fit a model.

    Attributes:
        plan: What to do.
        subject: The model and its data; of its layers, those of the plan are the candidates.
        links: What stands between the layers of each selection, by the consumer's path.
    """

    plan: Plan
    subject: Subject
    links: Mapping[str, Link]


def prepare_course(subject: Subject, plan: Plan) -> Course:
    """See whether a plan can be carried out on a model.

    Raises:
        RewriteError: A layer is missing, different, or may not be rewritten as planned here.
    """
    check_plan_fits(subject.original, plan)
    candidates = subject.candidates
    for step in plan.steps:
        if step.path not in candidates.layers:
            reason = candidates.refused.get(step.path, Skip("it is no layer of the recorded run")).reason
            raise RewriteError(
                f"the plan rewrites '{step.path}', which cannot be done in this model: {reason}. {_OTHER}"
            )
    planned = {step.path for step in plan.steps}
    rest = {path: LEFT for path in candidates.layers if path not in planned}
    links = _find_links(subject, plan.selections) if plan.selections else {}
    if plan.sharings:
        _check_groups(subject, plan.sharings)
    return Course(plan, replace(subject, candidates=candidates.without(rest)), links)


def _find_links(subject: Subject, selections: Sequence[Selection]) -> dict[str, Link]:
    """The links across which the plan drops channels, each tried on this model."""
    found = find_links(subject.working, subject.traced, subject.candidates)
    wanted = {each.consumer for each in selections}
    found = replace(found, found=tuple(link for link in found.found if link.consumer in wanted))
    links = rehearse_links(subject.working, subject.example, subject.candidates, found)
    known = {link.consumer: link for link in links.found}
    for each in selections:
        link = known.get(each.consumer)
        if link is None or (link.producer, link.channels) != (each.producer, each.channels):
            reason = links.refused.get(each.consumer, Skip("other layers stand at these places")).reason
            raise RewriteError(
                f"the plan drops channels between '{each.producer}' and '{each.consumer}', which cannot be done in "
                f"this model: {reason}. {_OTHER}"
            )
    return known


def _check_groups(subject: Subject, sharings: Sequence[Sharing]) -> None:
    """See that a bottleneck can stand where the plan puts one."""
    groups = find_groups(subject.working, subject.traced, subject.candidates)
    groups = rehearse_groups(subject.working, subject.example, subject.candidates, groups)
    for sharing in sharings:
        if not any(set(sharing.members) <= set(group.members) for group in groups.found):
            reasons = [groups.refused[path].reason for path in sharing.members if path in groups.refused]
            raise RewriteError(
                f"the plan puts a bottleneck before {', '.join(sharing.members)}, which cannot be done in this model: "
                f"{reasons[0] if reasons else 'they do not read one tensor'}. {_OTHER}"
            )


def follow(
    course: Course, statistics: Statistics, passes: Sequence[AnyPass], *, rounds: int = 0,
    advance: Advance = lambda: None,
) -> Choice:  # fmt: skip
    """The plan's steps as options fitted to a model; nothing is chosen anew, the kept channels are those of the plan.

    Args:
        course: The plan and the model.
        statistics: Of the plan's layers.
        passes: Those that the plan was made with.
        rounds: In how many rounds the factors are improved.
        advance: Called after each layer.

    Raises:
        PassError: A pass that the plan needs is missing, or failed.
        InputError: No example reached a layer.
        RewriteError: A pass does not offer what the plan says.
    """
    subject, plan = course.subject, course.plan
    sites = {
        site.path: site
        for site in make_sites(subject.working, subject.traced, subject.candidates, statistics, rounds=rounds)
    }
    _check_reached(sites.values())
    selections = tuple(_renew(each, course.links[each.consumer], sites[each.consumer]) for each in plan.selections)
    narrowed = {path: _narrow(site, plan) for path, site in sites.items()}
    named = {each.name: each for each in passes if isinstance(each, Pass)}
    sharing = {each.name: each for each in passes if isinstance(each, SharingPass)}
    shared = tuple(_share(each, narrowed, sharing) for each in plan.sharings)
    members = {path: p for one in shared for path, p in zip(one.members, one.options, strict=True)}
    steps = {step.path: step for step in plan.steps}
    chosen: list[Priced | None] = []
    for path, site in narrowed.items():
        chosen.append(members.get(path) or _find_option(site, steps[path], named))
        advance()
    return _choose(course, tuple(narrowed.values()), tuple(chosen), selections, shared)


def _check_reached(sites: Iterable[Site]) -> None:
    """Raise InputError where there is nothing to fit a layer to."""
    unseen = [site.path for site in sites if site.statistics.inputs.count == 0]
    if unseen:
        raise InputError(
            f"calibration: no example reached '{unseen[0]}', which the plan rewrites; expected inputs that reach all "
            f"{len(unseen)} such layers. Pass other examples, or leave calibration= out to fit to the weights alone."
        )


def _narrow(site: Site, plan: Plan) -> Site:
    inputs, outputs = plan.kept_inputs(site.path), plan.kept_outputs(site.path)
    if not inputs and not outputs:
        return site
    layer = site.layer
    return narrow_site(site, inputs or range(layer.in_channels), outputs or range(layer.out_channels))


def _renew(selection: Selection, link: Link, consumer: Site) -> Selection:
    """The plan's entry with what dropping these channels saves and loses here, before any caution of the pass."""
    gone = selection.channels - len(selection.kept)
    saved = Cost(link.cost.macs * gone, link.cost.params * gone, link.cost.other * gone)
    kept = torch.tensor(selection.kept, device="cpu")
    spread = torch.zeros_like(consumer.offset_weight)
    spread[:, :, kept] = refit_kept(consumer.offset_weight, consumer.covariance(), kept)
    lost = consumer.predict_loss(spread.flatten(1))
    return replace(selection, between=link.between, saved=saved, predicted_loss=lost)


def _find_option(site: Site, step: Step, passes: Mapping[str, Pass]) -> Priced | None:
    """The pass's option of the step's form and widths; None for a layer that only gets narrower."""
    if step.in_place:
        return None
    each = _find_pass(passes, step.pass_name, step.path)
    with site.remembering():
        answer = ask(each, site)
    where = f"the plan rewrites '{step.path}' by '{step.pass_name}' to {step.form} {'x'.join(map(str, step.ranks))}"
    if answer is None or isinstance(answer, Skip):
        reason = "it does not handle this layer" if answer is None else answer.reason
        raise RewriteError(f"{where}, which the pass does not offer here: {reason}. {_OTHER}")
    for priced in answer:
        if (priced.option.form, priced.option.ranks, priced.option.layers) == (step.form, step.ranks, step.layers):
            return priced
    offered = ", ".join("x".join(map(str, priced.option.ranks)) for priced in answer)
    raise RewriteError(
        f"{where}: the pass offers {offered} with its present options. Pass passes= with the options that the plan was "
        "made with, or run optimize again."
    )


def _find_pass(passes: Mapping[str, P], name: str, path: str) -> P:
    found = passes.get(name)
    if found is None:
        raise PassError(
            f"the plan rewrites '{path}' by the pass '{name}', which is not among {', '.join(passes) or 'none'}. "
            "Pass it in passes=, or leave passes= out and install the plugin that has it."
        )
    return found


def _share(sharing: Sharing, sites: Mapping[str, Site], passes: Mapping[str, SharingPass]) -> SharedOption:
    """The plan's shared bottleneck, fitted to its members."""
    each = _find_pass(passes, sharing.pass_name, sharing.path)
    members = [sites[path] for path in sharing.members]
    where = f"the plan puts '{sharing.path}' before {', '.join(sharing.members)}"
    try:
        answer = each.share(members, sharing.rank)
    except Exception as error:  # a stranger's pass can raise anything; the message names it and the sites
        raise PassError(f"{where}: pass '{each.name}' failed: {type(error).__name__}: {error}. {_OTHER}") from error
    if answer is None or isinstance(answer, Skip):
        reason = "it does not handle these layers" if answer is None else answer.reason
        raise RewriteError(f"{where}, which the pass '{each.name}' does not offer here: {reason}. {_OTHER}")
    made = make_shared_option(each.name, sharing.path, members, answer, sharing.rank)
    if made.layer != sharing.layer:
        raise RewriteError(f"{where}: got a layer {made.layer}; expected {sharing.layer}. {_OTHER}")
    return made


def _choose(
    course: Course, sites: Sequence[Site], chosen: tuple[Priced | None, ...], selections: tuple[Selection, ...],
    shared: tuple[SharedOption, ...],
) -> Choice:  # fmt: skip
    """The choice with its cost and its loss."""
    steps = [make_step(site, priced) for site, priced in zip(sites, chosen, strict=True)]
    cost = course.subject.traced.cost
    for step in steps:
        cost = cost - step.before + step.after
    cost = sum((option.cost for option in shared), cost - sum((each.saved for each in selections), Cost()))
    loss = sum(step.predicted_loss for step in steps) + sum(each.predicted_loss for each in selections)
    allocation = Allocation(chosen, cost, loss, gap=0.0, met=True, shared=shared)
    return Choice(tuple(Proposal(site, (), ()) for site in sites), allocation, selections)
