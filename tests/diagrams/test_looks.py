import pytest
import torch

import bottleneck_opt as bo
from bottleneck_opt.diagrams import Look, draw_diff, draw_model
from bottleneck_opt.diagrams.colors import DARK, LIGHT
from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.picture import Change, picture_model
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.errors import InputError
from tests.networks import classifier, seeded
from tests.samples import Run, residual_outcome, residual_run

RANKS = {f"blocks.{i}.conv{j}": 2 + i % 5 for i in range(300) for j in (1, 2) if i * j % 3}


def cards(look: Look, blocks: int = 8) -> int:
    return len(draw_model(residual_run(blocks).traced(), look=look).figure.cards)


def test_levels_of_detail_go_from_few_boxes_to_all() -> None:
    counts = [cards(Look(detail)) for detail in ("stage", "block", "layer", "operation")]
    assert counts == sorted(counts)
    assert counts[0] < counts[2] < counts[3]


def test_at_the_level_of_operations_every_operation_has_a_box() -> None:
    run = residual_run(8)
    assert cards(Look("operation")) == len(run.nodes)


def test_a_stage_is_one_box_also_where_much_changed_in_it() -> None:
    outcome = residual_outcome({f"blocks.{i}.conv1": 2 + i for i in range(8)}, blocks=8)
    layout = fold(picture_outcome(outcome), detail="block")
    assert {len(box.paths[0].split(".")) for box in layout.boxes if box.change is Change.REPLACED} == {2}


def test_modules_of_one_model_are_nested_frames() -> None:
    source = draw_model(residual_run(2).traced(), look=Look("layer")).source
    assert "blocks.0 .. 1   x2" in source
    assert source.count("subgraph cluster_") == 1
    assert draw_model(residual_run(2).traced(), look=Look("operation")).source.count("subgraph cluster_") == 3


@pytest.mark.parametrize("blocks", [142, 300])
def test_thousands_of_operations_with_different_changes_fit_on_a_page(blocks: int) -> None:
    ranks = {path: rank for path, rank in RANKS.items() if int(path.split(".")[1]) < blocks}
    layout = fold(picture_outcome(residual_outcome(ranks, blocks=blocks)))
    assert len(layout.boxes) <= 20
    assert sum(len(box.parts) for box in layout.boxes) == len(layout.picture.parts)


def test_heat_by_parameters_differs_from_heat_by_multiply_adds() -> None:
    run = Run()
    x = run.conv("big", run.input(3), 3, 8)
    run.output(run.module("linear", "Linear", (x,), 8))
    traced = run.traced()
    by_macs, by_params = (draw_model(traced, look=Look(heat=heat)).source for heat in ("macs", "params"))
    assert "share of the multiply-adds (MACs)" in by_macs
    assert "share of the parameters" in by_params


def test_heat_by_time_shows_milliseconds_and_names_what_was_not_timed() -> None:
    traced = residual_run(1).traced()
    times = {"stem": 1.0, "blocks.0.conv1": 3.0}
    source = draw_model(traced, look=Look(heat="ms", milliseconds=(times, times))).source
    assert "3.00 ms" in source
    assert "75.0 %" in source
    assert "not timed" in source


def test_heat_by_time_in_a_diff_takes_each_side_from_its_own_profile() -> None:
    before, after = {"blocks.1.conv1": 4.0}, {"blocks.1.conv1.conv": 1.0, "blocks.1.conv1.reduce": 0.5}
    source = draw_diff(residual_outcome(), Look(heat="ms", milliseconds=(before, after))).source
    assert "4.00 ms" in source
    assert "1.00 ms" in source
    assert "0.500 ms" in source


@pytest.mark.parametrize("look", [{"detail": "fine"}, {"heat": "joules"}, {"theme": "blue"}, {"heat": "ms"}])
def test_an_unknown_look_is_an_error_that_names_the_choices(look: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"expected|profiles="):
        Look(**look)  # type: ignore[arg-type]


def test_the_dark_theme_uses_none_of_the_light_colours() -> None:
    source = draw_diff(residual_outcome(), Look(theme="dark")).source
    light = {color for _, color in LIGHT.heat} | set(LIGHT.border.values()) | {LIGHT.background}
    assert not [color for color in light - {"#ffffff"} if color in source]
    assert DARK.background in source


def test_drawing_a_model_measures_its_modules_when_asked_for_milliseconds() -> None:
    model, x = seeded(classifier, dtype=torch.float32), torch.zeros(1, 3, 8, 8)
    assert " ms" in bo.draw(model, x, heat="ms").source
    with pytest.raises(InputError, match="meta device"):
        bo.draw(model.to("meta"), x.to("meta"), heat="ms")


def test_a_picture_of_one_model_can_be_had_of_its_parts() -> None:
    layout = fold(picture_model(residual_run(3).traced(), split=True), detail="operation")
    assert all(len(part.unit.nodes) == 1 for part in layout.picture.parts)
