"""What happened to each layer, in words: the rows of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bottleneck_opt.diagrams.wording import change_text, count_text, loss_text, macs_text, milliseconds_text
from bottleneck_opt.outcome import Outcome, Skipped
from bottleneck_opt.plan import Sharing, Step


@dataclass(frozen=True)
class LayerRow:
    """One rewritten layer in words.

    ``loss_share`` is its loss as a share of the largest, ``order`` has the numbers that columns are sorted by.
    """

    path: str
    form: str
    rank: str
    fraction: float
    macs_before: str
    macs_after: str
    macs_change: str
    params_before: str
    params_after: str
    params_change: str
    loss: str
    loss_share: float
    pass_name: str
    original: str
    error: str
    time: str
    time_change: str
    order: Mapping[str, float]


@dataclass(frozen=True)
class DroppedRow:
    """Channels between two layers of which some are no longer made, in words.

    Attributes:
        producer, consumer: The layers.
        kept: How many channels are left; ``fraction`` is their share.
        loss: What dropping them is predicted to cost, on top of the layers' own losses; ``order`` as a number,
            ``loss_share`` as a share of the largest.
    """

    producer: str
    consumer: str
    kept: str
    fraction: float
    loss: str
    order: float
    loss_share: float


@dataclass(frozen=True)
class SkipGroup:
    """Layers that were left alone for the same reason.

    Attributes:
        reason: The reason.
        advice: What to do about it, or empty.
        entries: The layers.
        share: Their share of the original model's MACs.
    """

    reason: str
    advice: str
    entries: tuple[Skipped, ...]
    share: float


def list_layers(outcome: Outcome) -> tuple[LayerRow, ...]:
    """Every rewritten layer, in the plan's order, and the bottlenecks that several of them read."""
    errors, times = error_of(outcome), times_of(outcome)
    whole = _largest_loss(outcome)
    rows = (_layer_row(step, whole, errors.get(step.path), times.get(step.path)) for step in outcome.plan.steps)
    return (*rows, *map(_sharing_row, outcome.plan.sharings))


def list_dropped(outcome: Outcome) -> tuple[DroppedRow, ...]:
    """Where channels were dropped between two layers, in the plan's order."""
    whole = _largest_loss(outcome)
    return tuple(
        DroppedRow(
            each.producer, each.consumer, f"{len(each.kept)} of {each.channels}", len(each.kept) / each.channels,
            loss_text(each.predicted_loss), each.predicted_loss, each.predicted_loss / whole,
        )
        for each in outcome.plan.selections
    )  # fmt: skip


def _largest_loss(outcome: Outcome) -> float:
    losses = [step.predicted_loss for step in outcome.plan.steps]
    losses += [each.predicted_loss for each in outcome.plan.selections]
    return max(losses, default=0.0) or 1.0


def error_of(outcome: Outcome) -> dict[str, float]:
    """For each layer that refitting looked at, the error of its output that was measured there, after it."""
    return {each.path: each.after if each.accepted else each.before for each in outcome.corrections}


def times_of(outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Milliseconds in each rewritten layer before and after, where that was timed."""
    speed = outcome.verification.speed
    return {} if speed is None else {path: (before, after) for path, before, after in speed.layers}


def group_skipped(skipped: tuple[Skipped, ...]) -> tuple[SkipGroup, ...]:
    """Layers left alone, grouped by reason, largest share first."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for entry in skipped:
        groups.setdefault((entry.reason, entry.advice), []).append(entry)
    made = [
        SkipGroup(reason, advice, tuple(entries), sum(entry.share for entry in entries))
        for (reason, advice), entries in groups.items()
    ]
    return tuple(sorted(made, key=lambda group: (-group.share, group.reason)))


def rank_text(step: Step) -> str:
    """The rank and the rank at which nothing would be lost: ``16 of 64``."""
    ranks = "x".join(map(str, step.ranks))
    return f"{ranks} of {'x'.join(map(str, step.full_ranks))}" if step.full_ranks else ranks


def _sharing_row(sharing: Sharing) -> LayerRow:
    """A new layer: its predicted loss is told with the layers that read it."""
    return LayerRow(
        path=sharing.path,
        form=f"for {len(sharing.members)} layers",
        rank=f"{sharing.rank} of {sharing.full_rank}",
        fraction=min(1.0, sharing.rank / max(1, sharing.full_rank)),
        macs_before="0",
        macs_after=count_text(sharing.cost.macs),
        macs_change="new",
        params_before="0",
        params_after=count_text(sharing.cost.params),
        params_change="new",
        loss="-",
        loss_share=0.0,
        pass_name=sharing.pass_name,
        original="-",
        error="",
        time="",
        time_change="",
        order={"macs": -sharing.cost.macs, "params": -sharing.cost.params, "loss": 0.0},
    )


def _times(before: float, after: float) -> str:
    """Both with the unit once where it is the same."""
    return f"{milliseconds_text(before).removesuffix(' ms')} -> {milliseconds_text(after)}"


def _layer_row(step: Step, whole: float, error: float | None, time: tuple[float, float] | None) -> LayerRow:
    return LayerRow(
        path=step.path,
        form=step.form,
        rank=rank_text(step),
        fraction=min(1.0, sum(step.ranks) / max(1, sum(step.full_ranks or step.ranks))),
        macs_before=count_text(step.before.macs),
        macs_after=count_text(step.after.macs),
        macs_change=change_text(step.before.macs, step.after.macs),
        params_before=count_text(step.before.params),
        params_after=count_text(step.after.params),
        params_change=change_text(step.before.params, step.after.params),
        loss=loss_text(step.predicted_loss),
        loss_share=step.predicted_loss / whole,
        pass_name=step.pass_name,
        original=step.original.label,
        error="" if error is None else loss_text(error),
        time="" if time is None else _times(*time),
        time_change="" if time is None else change_text(*time),
        order={
            "macs": step.before.macs - step.after.macs,
            "params": step.before.params - step.after.params,
            "loss": step.predicted_loss,
            **({} if error is None else {"error": error}),
            **({} if time is None else {"time": time[0] - time[1]}),
        },
    )


def list_tried(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Column names and a row for each model that was measured on the way to the smallest one above the floor."""
    promise = outcome.promise
    if promise is None:
        return [], []
    whole = max(outcome.before.cost.macs, 1)
    rows = [
        [
            each.budget, f"{macs_text(each.macs)} ({each.macs / whole:.1%})", _metric(each.metric),
            "-" if each.metric is None else f"{each.metric - promise.metric:+.4g}", _metric(each.confirmed),
            "yes, returned" if each.returned else "yes" if each.held else "no", _metric(each.worst),
        ]
        for each in promise.tried
    ]  # fmt: skip
    columns = 6 if promise.samples == 1 else 7
    header = ["tried, at most", "MACs", "metric", "change", "again", f"at least {promise.floor:.4g}", "surely at least"]
    return header[:columns], [row[:columns] for row in rows]


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
