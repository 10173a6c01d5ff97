from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck_opt.budget import Budget, read_budget
from bottleneck_opt.errors import BudgetError, NotAvailableError
from bottleneck_opt.graph import Cost

COST = Cost(macs=2_000_000_000, params=30_000_000)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        (0.5, {"macs": 10**9}),
        ("0.5", {"macs": 10**9}),
        (1, {"macs": 2 * 10**9}),
        ("macs=0.5", {"macs": 10**9}),
        (" macs = 0.5 , params=0.1 ", {"macs": 10**9, "params": 3 * 10**6}),
        ("macs=1.5G", {"macs": 15 * 10**8}),
        ("params=10M", {"params": 10**7}),
        ("params=10 m", {"params": 10**7}),
        ("macs=1e9", {"macs": 10**9}),
        ("macs=.5", {"macs": 10**9}),
        ({"macs": 0.5, "params": "1k"}, {"macs": 10**9, "params": 1000}),
        (Budget(params=5_000), {"params": 5000}),
        ("2G", {"macs": 2 * 10**9}),
        (None, {"macs": 10**9}),
    ],
)
def test_what_can_be_typed_is_read(given: Any, limits: dict[str, int]) -> None:
    assert read_budget(given)[0].limits(COST) == limits


def test_only_the_default_is_no_contract() -> None:
    assert not read_budget(None)[1]
    assert read_budget(0.5)[1]
    assert read_budget(Budget(macs=0.5))[1]


@pytest.mark.parametrize(
    "wrong", [0, -1, -0.5, float("nan"), float("inf"), "half", "macs=half", "macs=0", "macs=1X", "50%", "macs=", ""]
)
def test_what_is_no_amount_is_refused(wrong: Any) -> None:
    with pytest.raises(BudgetError, match=r"^budget macs=.*: expected a ratio in \(0, 1\] or an absolute number"):
        read_budget(wrong)


@pytest.mark.parametrize("wrong", [1.5, 2, "1.5", "50"])
def test_a_bare_number_above_one_is_neither_a_ratio_nor_absolute(wrong: Any) -> None:
    with pytest.raises(BudgetError, match=r"expected a ratio in .* where no unit is given"):
        read_budget(wrong)


@pytest.mark.parametrize("wrong", ["flops=0.5", {"MACS": 0.5}, "macs=0.5, weights=2"])
def test_an_unknown_unit_is_refused(wrong: Any) -> None:
    with pytest.raises(
        BudgetError, match=r"^budget: unknown unit '.*'; expected macs, params, latency\. Write budget="
    ):
        read_budget(wrong)


@pytest.mark.parametrize("wrong", [{}, "macs=0.5,", "macs=0.5;params=0.5", "macs=0.5,macs=0.2"])
def test_a_malformed_list_is_refused(wrong: Any) -> None:
    with pytest.raises(BudgetError, match=r"^budget"):
        read_budget(wrong)


@pytest.mark.parametrize("wrong", [[0.5], (0.5, 0.6), object(), {"macs": None}, {"macs": [1]}, True])
def test_what_is_no_budget_is_refused(wrong: Any) -> None:
    with pytest.raises(BudgetError, match=r"^budget"):
        read_budget(wrong)


@pytest.mark.parametrize(
    ("given", "nanoseconds"),
    [("latency=0.7", 7 * 10**6), ("latency=0.7ms", 700_000), ("latency=12 ms", 12 * 10**6), ("latency=5us", 5000),
     ({"latency": "1.5s"}, 15 * 10**8), (Budget(latency=0.5), 5 * 10**6), ("macs=0.5, latency=0.5", 5 * 10**6)],
)  # fmt: skip
def test_a_time_is_a_ratio_or_has_its_unit(given: Any, nanoseconds: int) -> None:
    assert read_budget(given)[0].limits(Cost(macs=8, latency=10**7))["latency"] == nanoseconds


@pytest.mark.parametrize("wrong", ["latency=12", "latency=2M", {"latency": 12}, "latency=0ms", "latency=fast"])
def test_what_is_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(BudgetError, match=r"^budget latency=.*: expected a ratio in \(0, 1\] or a time with its unit"):
        read_budget(wrong)


def test_three_limits_are_too_many() -> None:
    with pytest.raises(BudgetError, match=r"^budget: limits macs, params, latency; expected two of them at most"):
        read_budget("macs=0.5, params=0.5, latency=0.5")


@pytest.mark.parametrize("wrong", [{"memory": "50MB"}, "macs=0.5, memory=0.5"])
def test_what_comes_later_is_told(wrong: Any) -> None:
    with pytest.raises(NotAvailableError, match=r"^budget memory=.*: this version limits macs, params, latency only"):
        read_budget(wrong)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"nothing is limited; expected macs=, params= or latency="):
        Budget()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    macs=st.none() | st.floats(1e-3, 1.0) | st.integers(2, 10**12),
    params=st.none() | st.floats(1e-3, 1.0) | st.integers(2, 10**9),
)
def test_a_described_budget_reads_back_the_same(macs: float | None, params: float | None) -> None:
    if macs is None and params is None:
        return
    budget = Budget(macs=macs, params=params)
    assert read_budget(budget.describe())[0].limits(COST) == budget.limits(COST)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(ratio=st.floats(1e-6, 1.0), total=st.integers(0, 10**13))
def test_a_limit_is_never_above_the_ratio(ratio: float, total: int) -> None:
    assert Budget(macs=ratio).limits(Cost(macs=total))["macs"] <= ratio * total
