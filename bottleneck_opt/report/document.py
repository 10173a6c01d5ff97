"""The outcome as JSON, for machines."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from bottleneck_opt.graph import Node, Traced
from bottleneck_opt.outcome import Outcome

FORMAT = 1


def report_json(outcome: Outcome) -> str:
    """The outcome as indented JSON, the same text for the same outcome.

    ``headline`` has ``macs``, ``params``, ``milliseconds`` and ``metric``, each with ``before`` and ``after``
    (the first three also ``ratio``), or null where nothing was measured; ``weights_changed`` says that the weights
    were changed afterwards. Numbers that are not finite become null.
    """
    document = {
        "format": FORMAT,
        "headline": _headline(outcome),
        "verification": dataclasses.asdict(outcome.verification),
        "plan": {
            "predicted_loss": outcome.plan.predicted_loss,
            "optimality_gap": outcome.plan.optimality_gap,
        },
        "layers": [dataclasses.asdict(step) for step in outcome.plan.steps],
        "sharings": [dataclasses.asdict(sharing) for sharing in outcome.plan.sharings],
        "skipped": [dataclasses.asdict(entry) for entry in outcome.skipped],
        "corrections": [dataclasses.asdict(entry) for entry in outcome.corrections],
        "recovery": _recovery(outcome),
        "promise": _promise(outcome),
        "clocked": None if outcome.clocked is None else dataclasses.asdict(outcome.clocked),
        "notes": list(outcome.notes),
        "provenance": {**dataclasses.asdict(outcome.provenance), "versions": dict(outcome.provenance.versions)},
        "seconds": [{"stage": stage, "seconds": seconds} for stage, seconds in outcome.seconds],
        "frontier": [{**dataclasses.asdict(each.cost), "predicted_loss": each.loss} for each in outcome.frontier],
        "curves": [dataclasses.asdict(curve) for curve in outcome.curves],
        "nodes": {"before": _nodes(outcome.before), "after": _nodes(outcome.after)},
        "unexecuted": dict(outcome.before.unexecuted),
    }
    return json.dumps(_finite(document), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _headline(outcome: Outcome) -> dict[str, Any]:
    before, after, checked = outcome.before.cost, outcome.after.cost, outcome.verification
    return {
        "macs": _pair(before.macs, after.macs),
        "params": _pair(before.params, after.params),
        "milliseconds": None if checked.speed is None else _pair(checked.speed.before, checked.speed.after),
        "output_change": {
            "predicted": checked.predicted_change,
            "measured": checked.measured_change,
            "held_out": checked.held_out_change,
            "held_out_data": None if checked.held_out_change is None else checked.held_out_data,
        },
        "metric": _metric(checked.metric_before, checked.metric_after),
        "layers_changed": len(outcome.plan.steps),
        "layers_skipped": len(outcome.skipped),
        "budget": outcome.plan.budget,
        "budget_met": outcome.budget_met,
        "weights_changed": outcome.weights_changed,
    }


def _recovery(outcome: Outcome) -> dict[str, Any] | None:
    found = outcome.recovery
    return None if found is None else {**dataclasses.asdict(found), "accepted": found.accepted}


def _promise(outcome: Outcome) -> dict[str, Any] | None:
    found = outcome.promise
    return None if found is None else {**dataclasses.asdict(found), "floor": found.floor}


def _pair(before: float, after: float) -> dict[str, float | None]:
    return {"before": before, "after": after, "ratio": after / before if before else None}


def _metric(before: float | None, after: float | None) -> dict[str, float] | None:
    if before is None or after is None:
        return None
    return {"before": before, "after": after, "drop": before - after}


def _nodes(traced: Traced) -> list[dict[str, Any]]:
    return [_node(node) for node in traced.structure.nodes]


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name, "kind": node.kind, "operation": node.operation, "path": node.path, "call": node.call,
        "calls": node.calls, "output_shapes": [list(shape) for shape in node.output_shapes],
        "macs": node.cost.macs, "params": node.cost.params, "other": node.cost.other,
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """The value with every number that JSON cannot write replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def profile_json(traced: Traced, milliseconds: Mapping[str, float]) -> str:
    """A model's costs for each node, with the totals and the time in each module, as indented JSON."""
    document = {
        "format": FORMAT,
        "total": dataclasses.asdict(traced.cost),
        "nodes": _nodes(traced),
        "milliseconds": dict(milliseconds),
        "uncounted": dict(traced.uncounted),
        "notes": list(traced.notes),
    }
    return json.dumps(_finite(document), indent=2, sort_keys=True, allow_nan=False) + "\n"
