"""What stands above a figure: what was saved, in numbers, and how to read the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bottleneck_opt.diagrams.cards import Block, Legend, centered
from bottleneck_opt.diagrams.heat import Measure
from bottleneck_opt.diagrams.layout import Layout
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.tags import count_rest, shown_change
from bottleneck_opt.diagrams.wording import (
    CHANGE_MEANING,
    ascii_text,
    change_text,
    count_text,
    elide_end,
    elide_middle,
    loss_text,
    macs_text,
    milliseconds_text,
    shrink_text,
)
from bottleneck_opt.graph import Cost
from bottleneck_opt.outcome import Outcome

_TITLE_LIMIT = 70
_LINE_LIMIT = 120


@dataclass(frozen=True)
class Heading:
    """The words above a figure.

    Attributes:
        title: The one thing to know.
        lines: The numbers behind it.
        notes: In small letters below.
    """

    title: str
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def head_model(title: str, cost: Cost, inputs: str) -> Heading:
    """The heading of one model."""
    return Heading(title, (f"{cost_words(cost)}, for {inputs}",))


def head_side(side: str, outcome: Outcome) -> Heading:
    """The heading of the model before, or after."""
    before, after = outcome.before.cost, outcome.after.cost
    name = f"{side}: {class_name(outcome)}"
    return Heading(name, (cost_words(before),) if side == "Before" else (compare(before, after),))


def head_diff(outcome: Outcome) -> Heading:
    """The heading of both models in one picture."""
    before, after = outcome.before.cost, outcome.after.cost
    lines = (compare(before, after), *_fill_lines(_results(outcome)))
    return Heading(f"{class_name(outcome)}: {saving(before, after)}", lines)


def saving(before: Cost, after: Cost) -> str:
    """What was saved, in one phrase.

    Example:
        >>> saving(Cost(200, 10), Cost(100, 10)), saving(Cost(200, 10), Cost(200, 10))
        ('50 % fewer multiply-adds', 'nothing was changed')
    """
    for one, other, words in ((before.macs, after.macs, "multiply-adds"), (before.params, after.params, "parameters")):
        if one != other:
            return f"{change_text(one, other).lstrip('+-')} {'fewer' if other < one else 'more'} {words}"
    return "nothing was changed"


def cost_words(cost: Cost) -> str:
    """Both totals."""
    return f"{macs_text(cost.macs)}, {count_text(cost.params)} parameters"


def compare(before: Cost, after: Cost) -> str:
    """Both totals before and after."""
    return (
        f"{shrink_text(macs_text(before.macs), macs_text(after.macs))} ({change_text(before.macs, after.macs)}), "
        f"{shrink_text(count_text(before.params), count_text(after.params))} parameters "
        f"({change_text(before.params, after.params)})"
    )


def class_name(outcome: Outcome) -> str:
    """The model's class without its package."""
    return outcome.provenance.model.rpartition(".")[2]


def _results(outcome: Outcome) -> list[str]:
    checked, changed = outcome.verification, len(outcome.plan.steps)
    words = [f"{changed} of {changed + len(outcome.skipped)} layers rewritten"]
    measured = "" if checked.measured_change is None else f", measured {loss_text(checked.measured_change)}"
    if checked.held_out_change is not None and not outcome.made_up:
        measured = f", measured {loss_text(checked.held_out_change)} on {checked.held_out_data}"
    data = " on made-up inputs" if outcome.made_up else ""
    words.append(f"output change{data}: predicted {loss_text(checked.predicted_change)}{measured}")
    if checked.speed is not None:
        before, after = milliseconds_text(checked.speed.before), milliseconds_text(checked.speed.after)
        words.append(f"time a call {shrink_text(before, after)}")
    return words


def _fill_lines(phrases: Sequence[str]) -> list[str]:
    """Phrases in as few lines as hold them: none is cut off for want of room."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and len(lines[-1]) + len(", ") + len(phrase) <= _LINE_LIMIT:
            lines[-1] += f", {phrase}"
        else:
            lines.append(phrase)
    return lines


def write_heading(heading: Heading, layout: Layout, measure: Measure) -> tuple[Block, ...]:
    """The rows above a figure: title, numbers, how much is shown, what the words and colours mean."""
    lines = [elide_end(ascii_text(line), _LINE_LIMIT) for line in heading.lines]
    quiet = [_counts(layout), *heading.notes, *_loss_meaning(layout)]
    return (
        centered(elide_middle(ascii_text(heading.title), _TITLE_LIMIT), size=20, bold=True),
        *(centered(line, size=13 if index == 0 else 11) for index, line in enumerate(lines)),
        *(centered(elide_end(ascii_text(line), _LINE_LIMIT), size=10, quiet=True) for line in quiet),
        Legend(_changes(layout), measure.words),
    )


def _changes(layout: Layout) -> tuple[Change, ...]:
    found = {shown_change(box) for box in layout.boxes}
    return tuple(change for change in Change if change in found) if found != {Change.SAME} else ()


def _counts(layout: Layout) -> str:
    folded = layout.operations - layout.shown
    if not folded:
        return f"all {layout.operations} operations are shown"
    changed = any(part.change is not Change.SAME for part in layout.picture.parts)
    counted = any(count_rest(box) for box in layout.boxes)
    promise = f"; every change is shown{' or counted' if counted else ''}" if changed else ""
    return f"{layout.shown} of {layout.operations} operations have a place of their own, {folded} are folded{promise}"


def _loss_meaning(layout: Layout) -> list[str]:
    rewritten = any(part.step is not None for part in layout.picture.parts)
    return [f"predicted loss, output change: {CHANGE_MEANING}"] if rewritten else []
