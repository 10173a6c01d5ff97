import re
from dataclasses import replace

import pytest

from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.places import list_places
from bottleneck_opt.report.plots import Scale, plot_costs, plot_curve, plot_frontier, plot_ranks
from tests.report.outcomes import full_outcome, many_changes
from tests.samples import residual_outcome


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    (data,) = re.findall(rf'<polyline class="{kind}" points="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in data.split())]


def test_the_frontier_falls_to_the_right_and_the_chosen_plan_is_ringed() -> None:
    svg = plot_frontier(full_outcome())
    assert svg is not None
    line = points(svg, "line")
    assert len(line) == 5
    assert line == sorted(line)
    assert svg.count('class="ring"') == 1
    assert "chosen: 88.3 % of the MACs, predicted loss 1.0 %" in svg
    assert "measured: the output changed by 1.2 %" in svg


def test_without_a_frontier_or_a_measurement_nothing_is_made_up() -> None:
    outcome = full_outcome()
    assert plot_frontier(replace(outcome, frontier=())) is None
    unmeasured = plot_frontier(replace(outcome, verification=replace(outcome.verification, measured_change=None)))
    assert unmeasured is not None
    assert "measured" not in unmeasured
    assert plot_ranks(()) is None
    assert plot_costs(()) is None


def test_tiny_losses_are_told_apart_and_none_at_all_is_no_plot() -> None:
    outcome = full_outcome()
    checked = replace(outcome.verification, measured_change=None)

    def scaled(factor: float) -> Outcome:
        frontier = tuple(replace(each, loss=each.loss * factor) for each in outcome.frontier)
        plan = replace(outcome.plan, predicted_loss=outcome.plan.predicted_loss * factor)
        return replace(outcome, frontier=frontier, plan=plan, verification=checked)

    tiny = plot_frontier(scaled(1e-7))
    assert tiny is not None
    assert len({y for _, y in points(tiny, "line")}) == 5
    assert "1e-06 %" in tiny
    assert plot_frontier(scaled(0)) is None


def test_cumulative_cost_ends_lower_after_than_before() -> None:
    svg = plot_costs(list_places(fold(picture_outcome(residual_outcome()))))
    assert svg is not None
    before, after = points(svg, "line before"), points(svg, "line")
    assert before[0][1] == after[0][1]
    assert before[-1][1] < after[-1][1]
    assert "before 912 kMAC" in svg
    assert "after 806 kMAC" in svg


def test_every_rewritten_layer_has_a_bar_as_high_as_its_rank() -> None:
    steps = many_changes().plan.steps
    svg = plot_ranks(steps)
    assert svg is not None
    heights = [float(high) for high in re.findall(r'<rect class="bar"[^>]* height="([\d.]+)"', svg)]
    assert len(heights) == len(steps)
    assert heights[0] / heights[1] == pytest.approx(2 / 3, abs=0.02)


def test_a_curve_is_cut_at_the_chosen_rank() -> None:
    outcome = full_outcome()
    svg = plot_curve(outcome.curves[0], outcome.plan.steps[0])
    assert "rank 4 of 16: 1.0 %" in svg
    cut = re.findall(r'class="cut" d="M([\d.]+),', svg)
    assert float(cut[0]) in {x for x, _ in points(svg, "line")}
    other = plot_curve(outcome.curves[0], replace(outcome.plan.steps[0], ranks=(5,)))
    assert 'class="cut"' not in other


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 912_000), (0, 3.2e9)])
def test_straight_axes_have_a_few_round_numbers(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == low
    assert ticks[-1] <= high


def test_axes_by_logarithm_have_every_power_of_ten() -> None:
    assert Scale(0.001, 1, 0, 100, log=True).ticks() == pytest.approx([0.001, 0.01, 0.1, 1])
