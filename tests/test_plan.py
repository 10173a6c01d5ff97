from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck_opt.errors import FileError
from bottleneck_opt.graph import Cost
from bottleneck_opt.plan import Plan
from tests.samples import reduce_step

PLAN = Plan(
    "m.Net", "macs=0.5", ("reduce",), 3, Cost(10, 5), Cost(6, 3, 1), 0.25, 0.0,
    (reduce_step("a", 4), reduce_step("b.c", 2)),
)  # fmt: skip


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(PLAN.to_json()), **changes})


def changed_step(**changes: Any) -> str:
    steps = json.loads(PLAN.to_json())["steps"]
    return changed(steps=[{**steps[0], **changes}])


def test_a_plan_survives_json() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    loss=st.floats(0, 1e30), seed=st.integers(-(2**62), 2**62), path=st.text(min_size=1), macs=st.integers(0, 10**15)
)
def test_any_values_survive_json(loss: float, seed: int, path: str, macs: int) -> None:
    plan = Plan(path, "b", (path,), seed, Cost(macs), Cost(0, macs), loss, 0.0, (reduce_step(path, 1, loss=loss),))
    assert Plan.from_json(plan.to_json()) == plan


def test_the_text_is_canonical() -> None:
    text = PLAN.to_json()
    assert text.endswith("}\n")
    assert Plan.from_json(text).to_json() == text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_plan_with_infinite_loss_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        Plan("m", "b", (), 0, Cost(), Cost(), float("inf"), 0.0, ()).to_json()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"plan"', PLAN.to_json()[:-20], "\x00"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(FileError, match=r"^this is not a valid plan: .*Use the plan\.json that result\.save\(\) wrote"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (changed(steps="none"), "steps"),
        (changed(seed="x"), "seed"),
        (changed(seed=1.5), "seed"),
        (changed(extra=1), "extra"),
        (changed(before={"macs": 1, "evil": 2}), "before.evil"),
        (changed_step(ranks=["a"]), "steps.0.ranks.0"),
        (changed_step(layers=[{"name": "conv"}]), "steps.0.layers.0.kind"),
        (json.dumps({"model": "m"}), "budget"),
    ],
)
def test_the_first_wrong_field_is_named(text: str, where: str) -> None:
    with pytest.raises(FileError, match=rf"^this is not a valid plan: {where}: "):
        Plan.from_json(text)


def test_another_format_is_told() -> None:
    with pytest.raises(
        FileError, match=r"^the plan has format 6, this version reads formats 1 and 2 and 3 and 4 and 5\."
    ):
        Plan.from_json(changed(format=6))


def test_layers_that_do_not_fit_are_refused() -> None:
    layers = json.loads(PLAN.to_json())["steps"][0]["layers"]
    layers[0]["out_channels"] = 5
    with pytest.raises(FileError, match=r"layers for 'a' do not fit each other: widths \[16, 4\] -> \[5, 16\]"):
        Plan.from_json(changed_step(layers=layers))


def test_a_step_without_layers_is_refused() -> None:
    with pytest.raises(FileError, match="step for 'a' has no layers"):
        Plan.from_json(changed_step(layers=[]))


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": -16},
        {"groups": 0},
        {"kind": "Evil"},
        {"kernel": [3]},
        {"padding": "all"},
        {"padding_mode": "x"},
        {"stride": [0, 1]},
        {"name": "a.b"},
        {"name": "forward"},
    ],
)
def test_a_layer_that_cannot_be_built_is_refused(changes: dict[str, Any]) -> None:
    layers = json.loads(PLAN.to_json())["steps"][0]["layers"]
    with pytest.raises(FileError, match=r"^the plan's layers for 'a' (cannot be built|do not fit)"):
        Plan.from_json(changed_step(layers=[{**layers[0], **changes}, layers[1]]))
