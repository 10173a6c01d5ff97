import re

from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.palette import HEAT, heat_step
from bottleneck_opt.report.places import list_places
from bottleneck_opt.report.strip import HEIGHT, Strip, draw_strip, make_strip
from tests.report.outcomes import many_changes
from tests.samples import residual_outcome


def strip_of(outcome: Outcome) -> Strip:
    return make_strip(list_places(fold(picture_outcome(outcome))), outcome.before.cost.macs)


def bars(data: str) -> dict[int, float]:
    """Height of each bar by its number."""
    found = re.findall(rf"M([\d.]+),{HEIGHT}v-([\d.]+)h", data)
    return {int(float(x)): float(high) for x, high in found}


def test_every_place_has_one_bar_and_every_change_one_tick() -> None:
    outcome = many_changes()
    strip = strip_of(outcome)
    assert sorted(index for data in strip.heat for index in bars(data)) == list(range(strip.count))
    assert strip.ticks.count("M") == len(outcome.plan.steps)


def test_a_cheaper_layer_shows_how_high_it_was() -> None:
    strip = strip_of(residual_outcome())
    ((index, was),) = bars(strip.was).items()
    now = {number: high for data in strip.heat for number, high in bars(data).items()}[index]
    assert was == HEIGHT
    assert 0.27 < now / was < 0.29


def test_the_colour_tells_the_share_of_the_original() -> None:
    for step, (bound, _) in enumerate(HEAT):
        assert heat_step(bound) == step


def test_the_number_of_shapes_does_not_grow_with_the_model() -> None:
    assert draw_strip(strip_of(many_changes())).count("<path") <= len(HEAT) + 2


def test_a_model_without_cost_has_a_strip_too() -> None:
    assert "<svg" in draw_strip(make_strip((), 0))
