"""Costs and ranks for Google's Model Explorer: a graph that it opens, and "custom node data" that colours it.

Open ``model_explorer_graph.json`` in Model Explorer and load ``model_explorer.json`` as custom node data. A viewer of
another file, such as a ``torch.export`` program, can use the node data too if its nodes have the same ids.

Source: https://github.com/google-ai-edge/model-explorer, ``node_data_builder.py`` and ``graph_builder.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bottleneck_opt.diagrams.colors import LIGHT
from bottleneck_opt.diagrams.tags import rank_words
from bottleneck_opt.diagrams.units import operation_label
from bottleneck_opt.diagrams.wording import count_text, loss_text, macs_text
from bottleneck_opt.graph import Node, Traced
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.plan import Step


def node_data_json(outcome: Outcome) -> str:
    """Node data for the graphs ``before`` and ``after``: each node's MACs as its value, coloured by their share.

    A result also has ``params``, and for a rewritten layer ``rank``, ``full_rank`` and ``predicted_loss``, which Model
    Explorer keeps to itself and other readers can use.

    Returns:
        Indented JSON, the same text for the same outcome.
    """
    steps = _steps_by_path(outcome)
    whole = outcome.before.cost.macs
    graphs = {
        name: {
            "name": "multiply-adds (MACs)",
            "results": {node.name: _result(node, steps.get(node.path)) for node in traced.structure.nodes},
            "thresholds": list(_thresholds(whole)),
        }
        for name, traced in _sides(outcome).items()
    }
    return json.dumps(graphs, indent=1, sort_keys=True, allow_nan=False) + "\n"


def graph_json(outcome: Outcome) -> str:
    """Both models as a graph collection that Model Explorer opens, with costs and ranks as attributes of the nodes.

    Returns:
        Indented JSON, the same text for the same outcome.
    """
    steps = _steps_by_path(outcome)
    graphs = [
        {"id": name, "nodes": [_node(node, steps.get(node.path)) for node in traced.structure.nodes]}
        for name, traced in _sides(outcome).items()
    ]
    label = outcome.provenance.model
    return json.dumps({"graphs": graphs, "label": label}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _sides(outcome: Outcome) -> Mapping[str, Traced]:
    return {"before": outcome.before, "after": outcome.after}


def _steps_by_path(outcome: Outcome) -> dict[str, Step]:
    """The step behind each layer that was replaced or put in; a layer that got narrower is both."""
    return {
        path: step for step in outcome.plan.steps for path in (step.path, *step.names, *step.layer_paths)
    }  # fmt: skip


def _result(node: Node, step: Step | None) -> dict[str, Any]:
    numbers: dict[str, Any] = {"value": node.cost.macs, "params": node.cost.params}
    if step is None or node.kind != "module":
        return numbers
    loss = step.predicted_loss if math.isfinite(step.predicted_loss) else None
    return {**numbers, "rank": list(step.ranks), "full_rank": list(step.full_ranks), "predicted_loss": loss}


def _thresholds(whole: int) -> Iterator[dict[str, Any]]:
    """Upper bound and colour of each step; Model Explorer colours what is at most the bound."""
    bounds = [bound for bound, _ in LIGHT.heat[1:]]
    for bound, (_, color) in zip((*bounds, 1.0), LIGHT.heat, strict=True):
        yield {"value": bound * whole, "bgColor": color, "textColor": LIGHT.ink}


def _node(node: Node, step: Step | None) -> dict[str, Any]:
    return {
        "id": node.name,
        "label": operation_label(node),
        "namespace": "/".join(_namespace(node)),
        "attrs": [{"key": key, "value": value} for key, value in _attributes(node, step)],
        "incomingEdges": [
            {"sourceNodeId": source, "sourceNodeOutputId": "0", "targetNodeInputId": str(index)}
            for index, source in enumerate(node.inputs)
        ],
        "outputsMetadata": [
            {"id": str(index), "attrs": [{"key": "shape", "value": "x".join(map(str, shape)) or "scalar"}]}
            for index, shape in enumerate(node.output_shapes)
        ],
    }


def _namespace(node: Node) -> Iterable[str]:
    """The modules around a node; a slash would start another level."""
    for path, kind in node.stack:
        if path:
            yield f"{path.rpartition('.')[2]} ({kind})".replace("/", "|").replace(";", ",")


def _attributes(node: Node, step: Step | None) -> Iterator[tuple[str, str]]:
    yield "path", node.path
    if node.cost.macs:
        yield "MACs", macs_text(node.cost.macs)
    if node.cost.params:
        yield "params", count_text(node.cost.params)
    if step is not None and node.kind == "module":
        yield "rewritten", f"{step.form}, {rank_words([step])}"
        yield "predicted loss", loss_text(step.predicted_loss)
