import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from bottleneck_opt.diagrams import draw_diff, render_svg, renderer
from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report import figure, render_html
from bottleneck_opt.report.figure import PAPER, SVG, Figure, make_figure
from tests.report.outcomes import joined_changes, many_changes
from tests.samples import residual_outcome

pytestmark = pytest.mark.skipif(renderer() is None, reason="no renderer: neither dot nor pygraphviz")


def figure_of(outcome: Outcome) -> Figure:
    svg = render_svg(draw_diff(outcome))
    assert svg is not None
    return make_figure(svg, fold(picture_outcome(outcome)))


def nodes(figure: Figure) -> dict[str, ET.Element]:
    root = ET.fromstring(figure.svg)
    return {
        each.findtext(f"{{{SVG}}}title", ""): each
        for each in root.iter(f"{{{SVG}}}g")
        if "node" in each.get("class", "").split()
    }


def words(element: ET.Element, view: str) -> str:
    (group,) = (each for each in element.iter(f"{{{SVG}}}g") if each.get("class") == view)
    return " / ".join(text.text or "" for text in group.iter(f"{{{SVG}}}text"))


def test_every_box_of_the_layout_is_in_the_figure() -> None:
    outcome = many_changes()
    assert set(nodes(figure_of(outcome))) == {box.key for box in fold(picture_outcome(outcome)).boxes}


@pytest.mark.parametrize("make", [joined_changes, lambda: many_changes(24)], ids=["layers", "blocks"])
def test_a_box_of_both_models_has_a_caption_for_each(make: Callable[[], Outcome]) -> None:
    outcome = make()
    found = nodes(figure_of(outcome))
    joined = [box for box in fold(picture_outcome(outcome)).boxes if box.change is Change.REPLACED]
    assert joined
    for box in joined:
        before, after = (words(found[box.key], view) for view in ("in-before", "in-after"))
        assert "REMOVED" in before
        assert "NEW" not in before
        assert "rank" not in before
        assert "rank" in after
        assert "NEW" in after
        assert "REMOVED" not in after
        assert "REPLACED" in words(found[box.key], "in-diff")


def test_a_box_of_one_model_has_no_other_captions() -> None:
    assert "in-before" not in figure_of(residual_outcome()).svg


def test_heading_and_background_are_left_to_the_page() -> None:
    svg = figure_of(residual_outcome()).svg
    assert "Before and after" not in svg
    assert "% of the original" not in svg
    assert {each.tag for each in next(iter(ET.fromstring(svg)))} <= {f"{{{SVG}}}title", f"{{{SVG}}}g"}


def test_the_drawing_fills_its_frame() -> None:
    root = ET.fromstring(figure_of(residual_outcome()).svg)
    width, height = map(float, root.get("viewBox", "").split()[2:])
    shapes = [shape.get("points", "") for shape in root.iter(f"{{{SVG}}}polygon")]
    numbers = [float(number) for points in shapes for number in re.findall(r"[-\d.]+", points)]
    right, down = map(float, re.findall(r"[-\d.]+", next(iter(root)).get("transform", "")))
    for places, shift, size in ((numbers[::2], right, width), (numbers[1::2], down, height)):
        assert min(places) + shift >= 0
        assert max(places) + shift <= size


def test_a_very_long_drawing_is_not_copied_for_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = joined_changes()
    monkeypatch.setattr(figure, "MOST_COPIES", 20)
    html = render_html(outcome, render_svg(draw_diff(outcome)))
    assert 'class="sheet"' not in html
    assert "too long for paper" in html


def test_a_wide_drawing_turns_the_paper_round(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not figure_of(joined_changes()).wide
    monkeypatch.setattr(figure, "PAPER", (150.0, 740.0))
    made = figure_of(joined_changes())
    assert made.wide
    assert all(float(re.findall(r'height="([\d.]+)pt"', sheet)[0]) <= figure.WIDE[1] + 0.1 for sheet in made.sheets)


def test_on_paper_the_parts_cover_the_drawing_without_a_gap_and_fit_the_page() -> None:
    made = figure_of(joined_changes())
    boxes = [list(map(float, re.findall(r'viewBox="([^"]*)"', sheet)[0].split())) for sheet in made.sheets]
    height = float(ET.fromstring(made.svg).get("viewBox", "").split()[3])
    assert len(boxes) > 1
    assert boxes[0][1] == 0
    for above, below in itertools.pairwise(boxes):
        assert above[1] + above[3] == pytest.approx(below[1], abs=0.2)
    assert boxes[-1][1] + boxes[-1][3] == pytest.approx(height, abs=0.5)
    for sheet in made.sheets:
        wide, high = (float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', sheet))
        assert wide <= PAPER[0] + 0.1
        assert high <= PAPER[1] + 0.1
