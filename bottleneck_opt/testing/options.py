"""Check what a pass that replaces layers answers about one layer: every option, its weights, and what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck_opt.applying import Rewritten, apply_plan
from bottleneck_opt.costs import price_layers
from bottleneck_opt.errors import BottleneckOptError, PassError, tell
from bottleneck_opt.graph import Cost
from bottleneck_opt.patches import count_positions, take_pixels
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import Priced, check_description, check_fit, make_step
from bottleneck_opt.sites import Option, Site, Weights
from bottleneck_opt.testing.faults import make_error
from bottleneck_opt.testing.sample_layers import Shown

EXACT = 1e-7
"""Largest difference at full rank, relative to the largest output, in float64."""
LOSS_FACTOR = 3.0
"""How far predicted and measured loss of a layer by itself may be apart."""
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Checked:
    """What was found about one layer.

    Attributes:
        options: How many there are.
        pays: Whether one of them costs less than the layer.
        full_rank: Whether it was exact at full rank; None for a pass that has no such option.
    """

    options: int
    pays: bool
    full_rank: float | None


def check_options(name: str, shown: Shown, options: Sequence[Option], watch: Callable[[], None]) -> Checked:
    """Check a pass's options for a layer.

    Args:
        name: The pass.
        shown: The layer.
        options: What it offers.
        watch: Called after weights were computed, to see that nothing else was changed.

    Raises:
        ConformanceError: One of them breaks a promise.
    """
    where = f"'{shown.sample.name}'"
    for option in options:
        _check_form(name, where, option, shown.site)
    _check_full_rank_offered(name, where, options)
    gaps = [_check_weights(name, where, option, shown, watch) for option in _choose(options)]
    pays = any(not _is_larger(option, shown.site) and not _is_full(option) for option in options)
    return Checked(len(options), pays, max((gap for gap in gaps if gap is not None), default=None))


def _check_form(name: str, where: str, option: Option, site: Site) -> None:
    if not isinstance(option, Option):
        raise make_error(
            name, where, "impossible answer", f"expected options, got a {type(option).__name__} among them",
            "Return a list of bottleneck_opt.sites.Option, a Skip, or None.",
        )  # fmt: skip
    try:
        check_description(name, option, site)
    except PassError as error:
        raise make_error(name, where, "impossible option", _core_text(error), "") from error
    try:
        check_fit(name, option, site)
    except PassError as error:
        raise make_error(name, where, "wrong shape", _core_text(error), "") from error
    if _is_larger(option, site) and not _is_full(option):
        before, after = site.cost, _price(option, site)
        raise make_error(
            name, f"{where}, ranks {option.ranks}", "grows the layer",
            f"{before.macs:,} -> {after.macs:,} multiply-adds, {before.params:,} -> {after.params:,} parameters",
            "Offer only ranks that save one of them (sites.paying_ranks lists those), and the full rank.",
        )  # fmt: skip


def _core_text(error: PassError) -> str:
    """What the tool itself says, without the pass's name."""
    return str(error).partition(": ")[2].strip().removesuffix(".")


def _price(option: Option, site: Site) -> Cost:
    return price_layers(option.layers, site.input_shapes, site.output_shapes or None)


def _is_full(option: Option) -> bool:
    return bool(option.full_ranks) and option.ranks == option.full_ranks


def _is_larger(option: Option, site: Site) -> bool:
    """Whether a replacement saves neither multiply-adds nor weights, of which biases and slopes do not count."""
    products = [layer for layer in option.layers if not layer.is_activation]
    entries = sum(math.prod(layer.weight_shape) for layer in products)
    return _price(option, site).macs > site.cost.macs and entries > site.weight.numel()


def _check_full_rank_offered(name: str, where: str, options: Sequence[Option]) -> None:
    """Each form has to be there at full rank, or to say that it has none."""
    full = {option.form for option in options if _is_full(option) or not option.full_ranks}
    for option in options:
        if option.form not in full:
            raise make_error(
                name, where, "no full rank",
                f"form '{option.form}' has ranks {[each.ranks for each in options if each.form == option.form]}; "
                f"expected {option.full_ranks} among them",
                "Offer the full rank too, where nothing is lost: the tool drops it, the tests need it. A form that "
                "loses something at every rank says so with full_ranks=().",
            )  # fmt: skip


def _choose(options: Sequence[Option]) -> list[Option]:
    """Of each form the smallest, the middle and the full one."""
    forms: dict[str, list[Option]] = {}
    for option in options:
        forms.setdefault(option.form, []).append(option)
    chosen = []
    for each in forms.values():
        numbers = {0, len(each) // 2, *(index for index, option in enumerate(each) if _is_full(option))}
        chosen += [each[index] for index in sorted(numbers)]
    return chosen


def _check_weights(
    name: str, where: str, option: Option, shown: Shown, watch: Callable[[], None]
) -> float | None:  # fmt: skip
    """Build an option, run it, and compare; the difference at full rank, None at other ranks."""
    where = f"{where}, ranks {option.ranks}"
    weights = fill(name, where, option)
    watch()
    rewritten = _rewrite(name, where, option, shown, weights)
    _check_cost(name, where, option, shown, rewritten)
    original = nn.Sequential(shown.sample.layer)
    if not _is_full(option):
        _check_loss(name, where, option, shown, original, rewritten.model)
        return None
    inputs = (shown.sample.inputs, shown.sample.others)
    gap = max(_gap(rewritten.model, original, each) for each in inputs)
    if not gap <= EXACT:
        raise make_error(
            name, where, "wrong at full rank",
            f"its output is off by {gap:.2g} of the largest value, borders included; expected at most {EXACT:g}",
            "At full_ranks nothing may be lost: compare the weights with the layer's. A form that loses something at "
            "every rank says so with full_ranks=().",
        )  # fmt: skip
    return gap


def fill(name: str, where: str, option: Option) -> Sequence[Weights]:
    """An option's weights, checked.

    Raises:
        ConformanceError: They cannot be computed, or are none for its layers.
    """
    try:
        weights = list(option.fill())
    except Exception as error:  # a stranger's pass can raise anything
        raise make_error(
            name, where, "raises", f"fill() failed with {tell(error)}", "Mend it, or do not offer this option."
        ) from error
    shapes = [tuple(each.weight.shape) if isinstance(each, Weights) else type(each).__name__ for each in weights]
    expected = [layer.weight_shape for layer in option.layers]
    if shapes != expected:
        raise make_error(
            name, where, "wrong shape", f"fill() gave weights {shapes}; expected {expected}, one for each layer",
            "Return one Weights(weight, bias) a layer, its weight as a plain kernel (out, in / groups, *kernel).",
        )  # fmt: skip
    if not all(bool(torch.isfinite(each.weight).all()) for each in weights):
        raise make_error(
            name, where, "not finite", "fill() gave weights that are NaN or infinite", "Mend it, or return a Skip."
        )
    return weights


def _rewrite(name: str, where: str, option: Option, shown: Shown, weights: Sequence[Weights]) -> Rewritten:
    """The sample with its layer replaced."""
    site, before = shown.site, shown.subject.traced.cost
    priced = Priced(name, option, _price(option, site))
    step = make_step(site, priced)
    plan = Plan(
        model=shown.subject.name, budget="", passes=(name,), seed=0, before=before,
        after=before - step.before + step.after, predicted_loss=0.0, optimality_gap=0.0, steps=(step,),
    )  # fmt: skip
    try:
        return apply_plan(shown.subject, plan, {site.path: weights})
    except BottleneckOptError as error:
        raise make_error(name, where, "wrong shape", str(error).removesuffix("."), "") from error


def _check_cost(name: str, where: str, option: Option, shown: Shown, rewritten: Rewritten) -> None:
    stated, counted = _price(option, shown.site), rewritten.traced.cost
    if (stated.macs, stated.params) != (counted.macs, counted.params):
        raise make_error(
            name, where, "wrong cost",
            f"its layers are described with {stated.macs:,} multiply-adds and {stated.params:,} parameters; the "
            f"rewritten layer was counted with {counted.macs:,} and {counted.params:,}",
            "Describe layers with site.layer.named(...) and .pointwise(...): their cost follows from their fields.",
        )  # fmt: skip


def _check_loss(
    name: str, where: str, option: Option, shown: Shown, original: nn.Module, rewritten: nn.Module
) -> None:  # fmt: skip
    """Predicted and measured loss agree: the budget is shared out by what passes predict."""
    site, x = shown.site, shown.sample.inputs
    with torch.no_grad():
        expected, got = original(x), rewritten(x)
    positions = torch.arange(count_positions(site.layer, expected), device="cpu")
    error, whole = (take_pixels(site.layer, each, positions) for each in (got - expected, expected))
    curvature = site.curvature()
    measured, total = _felt(error, curvature), _felt(whole - whole.mean(0), curvature)
    stated = float(option.predicted_loss)
    least = _NEGLIGIBLE * total
    if stated > LOSS_FACTOR * measured + least or measured > LOSS_FACTOR * stated + least:
        raise make_error(
            name, where, "wrong predicted loss", f"it predicts {stated:.3g}, and {measured:.3g} was measured",
            "Predict site.predict_loss(W), W being the flat weight that the layers multiply out to.",
        )  # fmt: skip


def _felt(error: Tensor, curvature: Tensor) -> float:
    """Mean of ``e^T G e`` over the rows of ``(n, out)``."""
    return float(torch.einsum("no,no->", error @ curvature, error)) / len(error)


def _gap(got: nn.Module, expected: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted = expected(x)
        return float((got(x) - wanted).abs().max() / wanted.abs().max())


def summarise_options(options: Sequence[Option]) -> Mapping[str, int]:
    """How many options there are of each form."""
    forms: dict[str, int] = {}
    for option in options:
        forms[option.form] = forms.get(option.form, 0) + 1
    return forms
