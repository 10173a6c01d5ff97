"""The outcome as plain text: what ``print(result)`` shows."""

from __future__ import annotations

from bottleneck_opt.diagrams.wording import CHANGE_MEANING, RANK_MEANING, ascii_text, elide_middle, share_text
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.facts import budget_words, headline, layers_changed, list_numbers
from bottleneck_opt.report.rows import SkipGroup, group_skipped, list_dropped, list_layers, list_tried
from bottleneck_opt.report.tables import WIDTH, format_table, wrap_last_column, wrap_text

_PATH_LIMIT = 40


def render_text(outcome: Outcome) -> str:
    """The outcome as a compact table of at most 110 columns, without colours."""
    sections = [
        _head(outcome), _tried(outcome), _layers(outcome), _dropped(outcome), _skipped(outcome), _notes(outcome),
    ]  # fmt: skip
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _head(outcome: Outcome) -> list[str]:
    rows = [[n.name, n.before, n.after, n.change, n.note] for n in list_numbers(outcome)]
    rows.append(["layers changed", "", layers_changed(outcome), "", budget_words(outcome)])
    title = elide_middle(ascii_text(outcome.provenance.model), WIDTH)
    table = format_table(["", "before", "after", "change", ""], wrap_last_column(rows), right="lrrrl")
    return [
        title,
        *wrap_text(headline(outcome)),
        *table,
        *wrap_text(f"output change and loss: {CHANGE_MEANING}", rest="  "),
    ]


def _tried(outcome: Outcome) -> list[str]:
    header, rows = list_tried(outcome)
    return format_table(header, rows, right="lrrrrlr") if rows else []


def _layers(outcome: Outcome) -> list[str]:
    header = ["rewritten layer", "was", "form", "rank", "MACs", "", "params", "loss"]
    rows = [
        [
            row.path, row.original, row.form, row.rank.replace(" of ", "/"),
            f"{row.macs_before} -> {row.macs_after}", row.macs_change,
            f"{row.params_before} -> {row.params_after}", row.loss,
        ]
        for row in list_layers(outcome)
    ]  # fmt: skip
    if not rows:
        return ["no layer was rewritten"]
    return [*format_table(header, rows, right="lllrrrrr"), *wrap_text(f"rank: {RANK_MEANING}", rest="  ")]


def _dropped(outcome: Outcome) -> list[str]:
    rows = [[each.producer, each.consumer, each.kept.replace(" of ", "/"), each.loss] for each in list_dropped(outcome)]
    return format_table(["channels dropped after", "before", "kept", "loss"], rows, right="llrr") if rows else []


def _skipped(outcome: Outcome) -> list[str]:
    groups = group_skipped(outcome.skipped)
    if not groups:
        return []
    rows = [[group.reason, str(len(group.entries)), share_text(group.share), _examples(group)] for group in groups]
    header, *lines = format_table(["left alone, because", "layers", "of MACs", "which"], rows, right="lrrl")
    advised = [[line, *_advice(group)] for line, group in zip(lines, groups, strict=True)]
    return [header, *(line for lines in advised for line in lines)]


def _examples(group: SkipGroup) -> str:
    more = f" and {len(group.entries) - 1} more" if len(group.entries) > 1 else ""
    return elide_middle(ascii_text(group.entries[0].path), _PATH_LIMIT - len(more)) + more


def _advice(group: SkipGroup) -> list[str]:
    if not group.advice:
        return []
    return wrap_text(group.advice, first="  what to do: ", rest="    ")


def _notes(outcome: Outcome) -> list[str]:
    lines = [line for note in outcome.notes for line in wrap_text(note, first="  - ", rest="    ")]
    return ["notes", *lines] if lines else []
