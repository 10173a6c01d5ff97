"""Ask every pass about every site, check and price the answers, and keep what pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from bottleneck_opt.errors import PassError
from bottleneck_opt.graph import Cost
from bottleneck_opt.knapsack import Choices, list_pareto
from bottleneck_opt.layers import (
    LINEAR,
    LayerSpec,
    are_child_names,
    find_fault,
    find_order_fault,
)
from bottleneck_opt.outcome import Curve
from bottleneck_opt.plan import IN_PLACE, SHARED, Step
from bottleneck_opt.progress import Advance
from bottleneck_opt.sites import Option, Pass, Site, Skip

CURVE_POINTS = 16
_KEEP = "expected site.layer.named(...) with 1x1 layers where site.mixable_input and site.mixable_output allow them."


@dataclass(frozen=True)
class Priced:
    """An option of a pass with the cost of its layers over all calls of the site."""

    pass_name: str
    option: Option
    cost: Cost


@dataclass(frozen=True)
class Proposal:
    """What was answered about one site: the options that pay, and the reasons of the passes that have none."""

    site: Site
    options: tuple[Priced, ...]
    skips: tuple[tuple[str, Skip], ...]


def propose(
    sites: Sequence[Site], passes: Sequence[Pass], units: Sequence[str], advance: Advance = lambda: None
) -> list[Proposal]:
    """What every pass offers for every site, cheaper options only.

    Args:
        sites: The sites.
        passes: Whom to ask.
        units: The budget's units; an option must not cost more in any of them, and less in one.
        advance: Called after each site.

    Raises:
        PassError: A pass raised, or answered with layers that do not fit the site.
    """
    proposals = []
    for site in sites:
        with site.remembering():
            proposals.append(ask_all(site, passes, units))
        advance()
    return proposals


def ask_all(site: Site, passes: Sequence[Pass], units: Sequence[str]) -> Proposal:
    """What every pass offers for one site, and the reasons of those that offer nothing."""
    if site.statistics.inputs.count == 0:
        unseen = Skip("no calibration example reached it", "calibrate with inputs that reach it")
        return Proposal(site, (), (("calibration", unseen),))
    options: list[Priced] = []
    skips: list[tuple[str, Skip]] = []
    for each in passes:
        answer = ask(each, site)
        if isinstance(answer, Skip):
            skips.append((each.name, answer))
        elif answer is not None:
            paying = [one for one in answer if pays(one.cost, site.cost, units) and _is_liked(one, site)]
            options.extend(paying)
            if not paying:
                skips.append((each.name, _no_gain(each.name, site, units)))
    return Proposal(site, tuple(options), tuple(skips))


def ask(each: Pass, site: Site) -> tuple[Priced, ...] | Skip | None:
    """A pass's answer about a site, its options checked and priced, whatever they cost.

    Raises:
        PassError: The pass raised, or answered with layers that do not fit the site.
    """
    with blaming(each.name, site):
        answer = each.propose(site)
    if answer is None or isinstance(answer, Skip):
        return answer
    return tuple(_price(each.name, option, site) for option in answer)


@contextmanager
def blaming(name: str, site: Site) -> Iterator[None]:
    """Whatever a pass raises becomes a PassError that names it and the site: a stranger's can raise anything."""
    try:
        yield
    except Exception as error:
        raise PassError(
            f"pass '{name}' failed on '{site.path}' ({site.layer.label}): {type(error).__name__}: {error}. "
            f"Leave it out with passes=, or exclude='{site.path}'."
        ) from error


def ask_full_rank(site: Site, passes: Sequence[Pass]) -> Priced | None:
    """The first pass's option at which nothing is lost, whatever it costs; None when no pass has one.

    A pass whose options have no full ranks (``full_ranks=()``) loses something at every rank, and is passed over.

    Raises:
        PassError: As :func:`ask`, or the pass has options but none at full rank.
    """
    for each in passes:
        answer = ask(each, site)
        if not answer or isinstance(answer, Skip) or not any(priced.option.full_ranks for priced in answer):
            continue
        full = next((priced for priced in answer if priced.option.ranks == priced.option.full_ranks), None)
        if full is None:
            raise PassError(
                f"pass '{each.name}' on '{site.path}': got ranks {[priced.option.ranks for priced in answer]}; "
                f"expected {answer[0].option.full_ranks} among them. Offer the full rank too; it is dropped where it "
                "does not pay."
            )
        return full
    return None


def make_step(site: Site, chosen: Priced | None) -> Step:
    """The plan's entry for a site and the option chosen for it; None for one that has only lost channels."""
    whole = site.whole or site
    original = whole.original or whole.layer
    if chosen is None:
        ranks, full = (site.layer.in_channels, site.layer.out_channels), (original.in_channels, original.out_channels)
        return Step(
            path=site.path, names=site.names, pass_name=IN_PLACE, form=IN_PLACE, ranks=ranks, full_ranks=full,
            original=original, layers=(site.layer,), before=whole.cost, after=site.cost, predicted_loss=0.0,
        )  # fmt: skip
    option = chosen.option
    return Step(
        path=site.path, names=site.names, pass_name=chosen.pass_name, form=option.form, ranks=option.ranks,
        full_ranks=option.full_ranks, original=original, layers=option.layers, before=whole.cost,
        after=chosen.cost, predicted_loss=option.predicted_loss,
    )  # fmt: skip


def make_curve(proposal: Proposal, chosen: Priced) -> Curve:
    """What the other ranks of a chosen option's form would have lost: the best at each cost, evenly thinned out."""
    kind = (chosen.pass_name, chosen.option.form)
    alike = [each for each in proposal.options if (each.pass_name, each.option.form) == kind] or [chosen]
    costs = np.array([each.cost.macs for each in alike], dtype=np.int64)
    front = list_pareto(Choices(costs, np.array([each.option.predicted_loss for each in alike])))
    places = np.linspace(0, len(front) - 1, min(len(front), CURVE_POINTS)).round().astype(np.int64)
    shown = {id(each): each for each in (*(alike[int(front[place])] for place in places), chosen)}.values()
    ordered = sorted(shown, key=lambda each: (each.cost.macs, each.option.ranks))
    return Curve(
        proposal.site.path,
        ranks=tuple(each.option.ranks for each in ordered),
        costs=tuple(each.cost for each in ordered),
        losses=tuple(each.option.predicted_loss for each in ordered),
    )


def reprice(proposal: Proposal) -> Proposal:
    """The same with times as they are known now; itself where time is not limited."""
    site = proposal.site
    if site.pacer is None:
        return proposal
    now = replace(site.cost, latency=site.price_time((site.layer,), site.input_shapes))
    options = tuple(
        replace(each, cost=replace(each.cost, latency=site.price_time(each.option.layers, site.input_shapes)))
        for each in proposal.options
    )
    return replace(proposal, site=replace(site, cost=now), options=options)


def _price(name: str, option: Option, site: Site) -> Priced:
    check_option(name, option, site)
    return Priced(name, option, site.price(option.layers))


def check_option(name: str, option: Option, site: Site) -> None:
    """Raise PassError when an option's layers cannot stand where the site's layer stands."""
    check_description(name, option, site)
    check_fit(name, option, site)


def check_description(name: str, option: Option, site: Site) -> None:
    """Raise PassError when an option describes something that cannot be built."""
    where = _where(name, option, site)
    names = [layer.name for layer in option.layers]
    if option.form in (IN_PLACE, SHARED):
        raise PassError(
            f"{where}: got the form '{option.form}', which stands for layers that only got narrower. Name it otherwise."
        )
    if not names or not are_child_names(names):
        raise PassError(
            f"{where}: got layer names {names}; expected distinct names that torch.nn.Sequential does not use."
        )
    fault = next((fault for layer in option.layers if (fault := find_fault(layer))), "")
    fault = fault or find_order_fault(option.layers) or _find_class_fault(option.layers, site)
    if fault:
        raise PassError(f"{where}: got layers that cannot be built: {fault}. Describe layers that torch.nn has.")
    if not option.predicted_loss >= 0:
        raise PassError(f"{where}: got predicted loss {option.predicted_loss}; expected a finite number of at least 0.")


def _find_class_fault(layers: Sequence[LayerSpec], site: Site) -> str:
    strange = [layer.subclass for layer in layers if layer.subclass not in ("", site.layer.subclass)]
    return f"'{strange[0]}' is another class than the layer's own" if strange else ""


def check_fit(name: str, option: Option, site: Site) -> None:
    """Raise PassError when an option's layers do not make the site's outputs of its inputs."""
    where = _where(name, option, site)
    widths = [layer.in_channels for layer in option.layers] + [option.layers[-1].out_channels]
    expected = [site.layer.in_channels, *(layer.out_channels for layer in option.layers)]
    expected[-1] = site.layer.out_channels
    if widths != expected:
        raise PassError(f"{where}: got channel widths {widths}; expected {expected}. Make the layers fit each other.")
    if not site.channels_second and any(layer.is_activation and layer.groups > 1 for layer in option.layers):
        raise PassError(
            f"{where}: got an activation with a slope for each channel; expected one slope, as the channels of this "
            "layer's output are not on axis 1. Ask site.channels_second."
        )
    if site.layer.subclass:
        _check_kept(where, option.layers, site)
    else:
        _check_sizes(where, option.layers, site)


def _where(name: str, option: Option, site: Site) -> str:
    return f"pass '{name}' on '{site.path}', ranks {option.ranks}"


def _check_kept(where: str, layers: Sequence[LayerSpec], site: Site) -> None:
    """A layer whose own forward is kept may only get 1x1 layers around it, on the sides where they can stand."""
    places = [index for index, layer in enumerate(layers) if layer.subclass == site.layer.subclass]
    others = [layer for layer in layers if not layer.subclass]
    around = len(places) == 1 and len(others) == len(layers) - 1 and all(layer.is_pointwise for layer in others)
    if not around or (places[0] > 0 and not site.mixable_input):
        raise PassError(f"{where}: got layers that do not keep {site.layer.subclass}; {_KEEP}")
    if places[0] < len(layers) - 1 and not site.mixable_output:
        raise PassError(f"{where}: got a layer after {site.layer.subclass}, whose output cannot be mixed; {_KEEP}")


def _check_sizes(where: str, layers: Sequence[LayerSpec], site: Site) -> None:
    if site.layer.kind == LINEAR:
        return
    axes = len(site.layer.kernel)
    for shape in site.input_shapes:
        size = expected = tuple(shape[-axes:])
        for layer in layers:
            size = layer.output_size(size)
        if size != site.layer.output_size(expected):
            raise PassError(
                f"{where}: got output size {size} from input size {expected}; expected "
                f"{site.layer.output_size(expected)}. Keep the layer's stride, padding and dilation."
            )


def pays(cost: Cost, before: Cost, units: Sequence[str]) -> bool:
    """Whether something costs no more than before in any of the units, and less in one."""
    gains: list[int] = [getattr(before, unit) - getattr(cost, unit) for unit in units]
    return min(gains) >= 0 and max(gains) > 0


def _is_liked(priced: Priced, site: Site) -> bool:
    """Whether no rank wastes time that a larger one would not."""
    return site.pacer is None or all(map(site.pacer.likes, priced.option.ranks))


def _no_gain(name: str, site: Site, units: Sequence[str]) -> Skip:
    layer = site.layer
    return Skip(
        f"{layer.in_channels} -> {layer.out_channels} channels: no rank of '{name}' costs fewer {' and '.join(units)}"
    )
