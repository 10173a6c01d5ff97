"""What each layer of a model costs, as plain text."""

from __future__ import annotations

from collections.abc import Mapping

from bottleneck_opt.diagrams.units import is_drawn, operation_label
from bottleneck_opt.diagrams.wording import count_text, elide_end, macs_text, milliseconds_text, shapes_text, share_text
from bottleneck_opt.graph import Node, Traced
from bottleneck_opt.report.tables import format_table, wrap_text

_OPERATION_LIMIT = 24
_SHAPE_LIMIT = 24


def render_profile(traced: Traced, milliseconds: Mapping[str, float] | None) -> str:
    """One line for each operation with a cost, and the totals.

    Args:
        traced: The model's recorded run.
        milliseconds: Time in each module over all its calls, by module path; None if it was not timed.
    """
    nodes = [node for node in traced.structure.nodes if _is_listed(node, milliseconds)]
    times = [_time_of(node, milliseconds) for node in nodes]
    header = ["path", "operation", "output", "MACs", "params", "share", "ms"]
    rows = [_row(node, traced.cost.macs, time) for node, time in zip(nodes, times, strict=True)]
    rows.append(_totals(traced, times))
    if milliseconds is None:
        header, rows = header[:-1], [row[:-1] for row in rows]
    lines = format_table(header, rows, right="lllrrrr")
    lines.insert(-1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *_uncounted(traced)]) + "\n"


def _is_listed(node: Node, milliseconds: Mapping[str, float] | None) -> bool:
    if node.kind in ("input", "output") or not is_drawn(node):
        return False
    return bool(node.cost.macs or node.cost.params) or _time_of(node, milliseconds) is not None


def _time_of(node: Node, milliseconds: Mapping[str, float] | None) -> float | None:
    if milliseconds is None or node.kind != "module" or node.call > 0:
        return None
    return milliseconds.get(node.path)


def _row(node: Node, whole: int, time: float | None) -> list[str]:
    call = f" (call {node.call + 1} of {node.calls})" if node.calls > 1 else ""
    return [
        node.path + call or "(model)", elide_end(operation_label(node), _OPERATION_LIMIT),
        elide_end(shapes_text(node.output_shapes), _SHAPE_LIMIT), count_text(node.cost.macs),
        count_text(node.cost.params), share_text(node.cost.macs / whole if whole else 0.0),
        "" if time is None else milliseconds_text(time).removesuffix(" ms"),
    ]  # fmt: skip


def _totals(traced: Traced, times: list[float | None]) -> list[str]:
    known = [time for time in times if time is not None]
    total = milliseconds_text(sum(known)).removesuffix(" ms") if known else ""
    return ["total", "", "", macs_text(traced.cost.macs), count_text(traced.cost.params), "100.0 %", total]


def _uncounted(traced: Traced) -> list[str]:
    if not traced.uncounted:
        return []
    names = ", ".join(f"{name} x{count}" for name, count in sorted(traced.uncounted.items()))
    return wrap_text(f"not counted, no formula: {names}", rest="  ")
