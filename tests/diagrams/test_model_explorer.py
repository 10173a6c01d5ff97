import json
from typing import Any

from bottleneck_opt.diagrams import graph_json, node_data_json
from tests.samples import renamed_outcome, residual_outcome

OUTCOME = residual_outcome()


def test_every_node_of_the_graphs_has_data_under_its_id() -> None:
    graphs, data = json.loads(graph_json(OUTCOME))["graphs"], json.loads(node_data_json(OUTCOME))
    assert [graph["id"] for graph in graphs] == ["before", "after"]
    for graph in graphs:
        ids = {node["id"] for node in graph["nodes"]}
        assert ids == set(data[graph["id"]]["results"])
        assert all(edge["sourceNodeId"] in ids for node in graph["nodes"] for edge in node["incomingEdges"])


def test_values_are_the_multiply_adds_and_add_up_to_the_model() -> None:
    data = json.loads(node_data_json(OUTCOME))
    for name, traced in (("before", OUTCOME.before), ("after", OUTCOME.after)):
        assert sum(result["value"] for result in data[name]["results"].values()) == traced.cost.macs


def test_rewritten_layers_carry_rank_and_predicted_loss() -> None:
    results = json.loads(node_data_json(OUTCOME))["after"]["results"]
    assert results["blocks_1_conv1_reduce"] == {
        "value": 4096, "params": 64, "rank": [4], "full_rank": [16], "predicted_loss": 0.01,
    }  # fmt: skip
    assert "rank" not in results["stem"]


def test_thresholds_rise_and_end_at_the_whole_model() -> None:
    thresholds = json.loads(node_data_json(OUTCOME))["before"]["thresholds"]
    bounds = [each["value"] for each in thresholds]
    assert bounds == sorted(bounds)
    assert bounds[-1] == OUTCOME.before.cost.macs


def test_modules_are_nested_namespaces_whatever_their_names() -> None:
    hostile = json.loads(graph_json(renamed_outcome(OUTCOME, "blocks", "a/b")))
    nodes: list[dict[str, Any]] = hostile["graphs"][0]["nodes"]
    namespaces = {node["namespace"] for node in nodes if node["attrs"][0]["value"].endswith("0.conv1")}
    assert namespaces == {"a|b (Sequential)/0 (Block)"}
