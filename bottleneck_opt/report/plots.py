"""The plots of the page, as SVG that needs no script and takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bottleneck_opt.budget import TIME
from bottleneck_opt.diagrams.wording import (
    change_text,
    elide_middle,
    loss_text,
    macs_text,
    share_text,
)
from bottleneck_opt.outcome import Curve, Outcome
from bottleneck_opt.plan import Step
from bottleneck_opt.report.facts import visible_text
from bottleneck_opt.report.places import Place
from bottleneck_opt.report.rows import rank_text

_MOST_POINTS = 400
NOTHING = 1e-12  # losses below are rounding errors
_DEPTH = 1e-6  # how far below the largest loss an axis goes
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 30, 40
Points = Sequence[tuple[float, float]]
Words = Callable[[float], str]


@dataclass(frozen=True)
class Scale:
    """Values to positions, straight or by their logarithm.

    Example:
        >>> Scale(0, 10, 100, 200)(5), Scale(1, 100, 0, 2, log=True)(10)
        (150.0, 1.0)
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        """Round values to mark."""
        if self.log:
            first, last = (round(math.log10(each)) for each in (self.low, self.high))
            return [10.0**power for power in range(first, last + 1)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2 or 1.0))
        step = next((step * each for each in (0.5, 1, 2, 5) if (self.high - self.low) / (step * each) <= 5), step * 5)
        return [self.low + step * index for index in range(int((self.high - self.low) / step + 1e-9) + 1)]


def plot_frontier(outcome: Outcome) -> Markup | None:
    """Predicted loss of the best plan at every cost, with the chosen one ringed; None where nothing is known."""
    plan = outcome.plan
    unit = TIME if plan.before.latency else "macs"
    left = "time" if unit == TIME else "MACs"
    points = [(getattr(each.cost, unit), each.loss) for each in outcome.frontier]
    whole = plan.before.latency or outcome.before.cost.macs
    if len(points) < 2 or not whole:
        return None
    measured = outcome.verification.measured_change
    losses = [plan.predicted_loss, *(loss for _, loss in points), *([] if measured is None else [measured])]
    largest = max(filter(math.isfinite, losses), default=0.0)
    if largest < NOTHING:
        return None
    least = _DEPTH * largest
    chosen = (getattr(plan.after, unit) / whole, _visible(plan.predicted_loss, least))
    drawn = [(macs / whole, _visible(loss, least)) for macs, loss in points]
    ys = [_visible(loss, least) for loss in losses]
    low = math.floor(math.log10(min(ys)))
    high = max(low + 1, math.ceil(math.log10(max(ys))))
    x = Scale(0, 1, _LEFT, _WIDTH - _RIGHT)
    y = Scale(10.0**low, 10.0**high, _HEIGHT - _BOTTOM, _TOP, log=True)
    marks = [
        _dot(x(px), y(py), "dot", f"{share_text(px)} of the {left}: predicted loss {loss_text(loss)}")
        for (px, py), (_, loss) in zip(drawn, points, strict=True)
    ]
    words = f"chosen: {share_text(chosen[0])} of the {left}, predicted loss {loss_text(plan.predicted_loss)}"
    marks.append(_dot(x(chosen[0]), y(chosen[1]), "ring", words, size=7))
    labels = [_label(x(chosen[0]), y(chosen[1]) - 12, "chosen", "strong")]
    if measured is not None:
        place = x(chosen[0]), y(_visible(measured, least))
        marks.append(_diamond(*place, f"measured: the output changed by {loss_text(measured)}"))
        near = abs(place[1] - y(chosen[1])) < 20
        labels.append(_label(place[0] + 9, place[1] + (16 if near else 4), "measured", "strong", anchor="start"))
    body = [_axes(x, y, f"{left} left", "predicted loss", _percent, _tick_text), _line(drawn, x, y, "line"), *marks]
    title = f"Cost against predicted loss over all budgets; {words}."
    return _chart(_WIDTH, _HEIGHT, title, [*body, *labels])


def plot_costs(places: Sequence[Place]) -> Markup | None:
    """MACs added up from the first operation to the last, before and after; None where there are none."""
    before, after = _running([p.before.macs for p in places]), _running([p.after.macs for p in places])
    if len(places) < 2 or not before[-1]:
        return None
    x = Scale(0, len(places) - 1, _LEFT, _WIDTH - _RIGHT)
    y = Scale(0, max(before[-1], after[-1]), _HEIGHT - _BOTTOM, _TOP)
    kept = _thin(len(places))
    old, new = ([(i, sums[i]) for i in kept] for sums in (before, after))
    end = x(len(places) - 1) - 4
    body = [
        _axes(x, y, "operation, in the order they run", "MACs so far", lambda v: f"{v:.0f}", macs_text),
        _area(old, new, x, y), _line(old, x, y, "line before"), _line(new, x, y, "line"),
        _label(end, y(before[-1]) - 6, f"before {macs_text(before[-1])}", "quiet", anchor="end"),
        _label(end, y(after[-1]) + 20, f"after {macs_text(after[-1])}", "strong", anchor="end"),
    ]  # fmt: skip
    change = change_text(before[-1], after[-1])
    return _chart(_WIDTH, _HEIGHT, f"Cumulative cost by layer, before and after: {change} in the end.", body)


def plot_ranks(steps: Sequence[Step]) -> Markup | None:
    """The share of its full rank that each rewritten layer has left, in the order of the plan."""
    if not steps:
        return None
    width, high, gap = 940, 120, 26
    wide = min(40.0, (width - _LEFT) / len(steps))
    y = Scale(0, 1, high, 8)
    body = [_rule(_LEFT, width, y(value), _percent(value)) for value in (0.0, 0.5, 1.0)]
    for index, step in enumerate(steps):
        left = _LEFT + wide * index
        words = f"{step.path}: {step.form}, {rank_text(step)}"
        body.append(
            Markup(
                '<rect class="bar" x="{}" y="{}" width="{}" height="{}" data-path="{}"><title>{}</title></rect>'
            ).format(
                f"{left + 0.12 * wide:.1f}",
                f"{y(_fraction(step)):.1f}",
                f"{0.76 * wide:.1f}",
                f"{high - y(_fraction(step)):.1f}",
                visible_text(step.path),
                visible_text(words),
            )
        )
    ends = [(_LEFT, "start", steps[0]), (_LEFT + wide * len(steps), "end", steps[-1])][: 2 if len(steps) > 6 else 1]
    body += [
        _label(at, high + 16, elide_middle(visible_text(s.path), 40), "quiet", anchor=side) for at, side, s in ends
    ]
    return _chart(width, high + gap, "Rank of each rewritten layer as a share of its full rank.", body)


def plot_curve(curve: Curve, step: Step) -> Markup:
    """Predicted loss of one layer at every rank of its form, with the cut where it was made."""
    width, high, left, low = 190, 92, 8, 74
    macs = [cost.macs for cost in curve.costs]
    lowest = max(NOTHING, max(curve.losses) * 1e-4)
    losses = [max(lowest, loss) for loss in curve.losses]
    x = Scale(0, max(step.before.macs, *macs), left, width - 8)
    y = Scale(min(losses) * 0.8, max(losses) * 1.25, low, 10, log=True)
    chosen = curve.ranks.index(step.ranks) if step.ranks in curve.ranks else None
    body = [_line(list(zip(macs, losses, strict=True)), x, y, "line"), _rule(left, width - 8, low, "")]
    if chosen is not None:
        at = x(macs[chosen]), y(losses[chosen])
        body.append(Markup('<path class="cut" d="M{},8V{}"/>').format(f"{at[0]:.1f}", low))
        body.append(_dot(*at, "ring", f"rank {rank_text(step)}: {loss_text(step.predicted_loss)}", size=4.5))
    words = f"rank {rank_text(step)}"
    body.append(_label(left, 88, words, "quiet", anchor="start"))
    body.append(_label(width - 8, 88, loss_text(step.predicted_loss), "quiet", anchor="end"))
    title = f"{step.path}: predicted loss against cost over the ranks from {_rank(curve, 0)} to {_rank(curve, -1)}."
    return _chart(width, high, title, body)


def _rank(curve: Curve, index: int) -> str:
    return "x".join(map(str, curve.ranks[index]))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _fraction(step: Step) -> float:
    return min(1.0, sum(step.ranks) / max(1, sum(step.full_ranks or step.ranks)))


def _visible(loss: float, least: float) -> float:
    """A loss that a logarithmic axis from ``least`` on can show."""
    return max(least, loss if math.isfinite(loss) else 0.0)


def _tick_text(loss: float) -> str:
    """A power of ten in percent; small ones keep their exponent."""
    return f"{100 * loss:g} %" if loss >= 1e-5 else f"{100 * loss:.0e} %"


def _running(values: Iterable[int]) -> list[int]:
    sums, total = list[int](), 0
    for value in values:
        total += value
        sums.append(total)
    return sums


def _thin(count: int) -> list[int]:
    step = max(1, -(-count // _MOST_POINTS))
    return sorted({*range(0, count, step), count - 1})


def _chart(width: int, height: int, title: str, body: Iterable[Markup]) -> Markup:
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, visible_text(title), Markup().join(body))  # fmt: skip


def _line(points: Points, x: Scale, y: Scale, kind: str) -> Markup:
    data = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points)
    return Markup('<polyline class="{}" points="{}"/>').format(kind, data)


def _area(upper: Points, lower: Points, x: Scale, y: Scale) -> Markup:
    """What lies between two lines."""
    data = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in (*upper, *reversed(lower)))
    return Markup('<polygon class="saved" points="{}"/>').format(data)


def _dot(x: float, y: float, kind: str, words: str, size: float = 3.0) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
        kind, f"{x:.1f}", f"{y:.1f}", size, visible_text(words)
    )


def _diamond(x: float, y: float, words: str) -> Markup:
    return Markup('<path class="measured" d="M{},{}l5,5l-5,5l-5,-5z"><title>{}</title></path>').format(
        f"{x:.1f}", f"{y - 5:.1f}", words
    )


def _label(x: float, y: float, words: str, kind: str, *, anchor: str = "middle") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, f"{x:.1f}", f"{y:.1f}", anchor, words
    )


def _rule(left: float, right: float, y: float, words: str) -> Markup:
    rule = Markup('<path class="rule" d="M{},{}H{}"/>').format(left, f"{y:.1f}", right)
    return rule + (_label(left - 6, y + 4, words, "quiet", anchor="end") if words else Markup())


def _axes(x: Scale, y: Scale, x_name: str, y_name: str, x_words: Words, y_words: Words) -> Markup:
    """Rules at the values of the upright axis, numbers on both, and their names."""
    rules = [_rule(x.start, x.end, y(value), y_words(value)) for value in y.ticks()]
    numbers = [_label(x(value), y.start + 16, x_words(value), "quiet") for value in x.ticks()]
    names = [
        _label((x.start + x.end) / 2, y.start + 33, x_name, "name"),
        _label(4, y.end - 16, y_name, "name", anchor="start"),
    ]
    return Markup().join([*rules, *numbers, *names])
