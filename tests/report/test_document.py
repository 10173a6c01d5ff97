import json
import math
from dataclasses import replace
from typing import Any

from bottleneck_opt.outcome import Speed
from bottleneck_opt.report import report_json
from tests.samples import residual_outcome


def document(**changes: Any) -> Any:
    return json.loads(report_json(replace(residual_outcome(), **changes)))


def test_the_headline_has_both_sides_and_their_ratio() -> None:
    outcome = residual_outcome()
    headline = document()["headline"]
    assert headline["macs"]["before"] == outcome.before.cost.macs
    assert headline["macs"]["ratio"] == outcome.after.cost.macs / outcome.before.cost.macs
    assert headline["milliseconds"] == {"before": 2.0, "after": 1.5, "ratio": 0.75}
    assert math.isclose(headline["metric"]["drop"], 0.01)
    assert headline["output_change"]["measured"] == 0.012


def test_what_was_not_measured_is_null() -> None:
    verification = replace(residual_outcome().verification, speed=None, metric_after=None)
    headline = document(verification=verification)["headline"]
    assert headline["milliseconds"] is None
    assert headline["metric"] is None


def test_an_output_change_that_was_not_measured_is_null() -> None:
    verification = replace(residual_outcome().verification, measured_change=None)
    found = document(verification=verification)
    assert found["headline"]["output_change"]["measured"] is None
    assert found["verification"]["measured_change"] is None


def test_how_steady_the_machine_was_is_told() -> None:
    verification = residual_outcome().verification
    assert (
        document(verification=replace(verification, speed=Speed(2.0, 1.5, 30, 1, "cpu", spread=0.3)))["verification"][
            "speed"
        ]["spread"]
        == 0.3
    )


def test_node_costs_add_up_to_the_model() -> None:
    outcome = residual_outcome()
    nodes = document()["nodes"]
    assert sum(node["macs"] for node in nodes["before"]) == outcome.before.cost.macs
    assert sum(node["macs"] for node in nodes["after"]) == outcome.after.cost.macs


def test_numbers_that_json_cannot_write_become_null() -> None:
    verification = replace(residual_outcome().verification, measured_change=math.nan, graph_difference=math.inf)
    text = report_json(replace(residual_outcome(), verification=verification))
    assert "NaN" not in text
    assert "Infinity" not in text
    assert json.loads(text)["verification"]["measured_change"] is None


def test_layers_skips_notes_and_stages_are_all_listed_in_order() -> None:
    found = document(seconds=(("b", 1.0), ("a", 2.0)))
    assert [layer["path"] for layer in found["layers"]] == ["blocks.1.conv1"]
    assert [entry["path"] for entry in found["skipped"]] == ["stem"]
    assert [stage["stage"] for stage in found["seconds"]] == ["b", "a"]
    assert found["notes"] == ["A note."]
    assert found["format"] == 1


def test_keys_come_in_one_order() -> None:
    text = report_json(residual_outcome())
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
