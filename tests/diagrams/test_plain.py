from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck_opt.diagrams import Look, draw_diff, draw_model, draw_rewrite
from bottleneck_opt.diagrams.layered import place
from bottleneck_opt.diagrams.plain import write_plain
from tests.samples import residual_outcome, residual_run

SVG = "{http://www.w3.org/2000/svg}"


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str]]]:
    """Sizes of boxes and edges that go forward."""
    count = draw(st.integers(1, 12))
    sizes = {str(i): (float(draw(st.integers(5, 80))), float(draw(st.integers(5, 40)))) for i in range(count)}
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = draw(st.lists(pairs, max_size=20)) if count > 1 else []
    return sizes, [(str(one), str(other)) for one, other in edges]


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_boxes_never_overlap_and_stand_below_what_they_read(
    graph: tuple[dict[str, tuple[float, float]], list[tuple[str, str]]],
) -> None:
    sizes, edges = graph
    placed = place(sizes, edges)
    for one, other in combinations(sizes, 2):
        (x, y), (w, h), (a, b), (v, u) = placed.corners[one], sizes[one], placed.corners[other], sizes[other]
        assert x + w <= a + 1e-6 or a + v <= x + 1e-6 or y + h <= b + 1e-6 or b + u <= y + 1e-6
    for source, target in edges:
        assert placed.corners[source][1] + sizes[source][1] <= placed.corners[target][1]
    for key, (x, y) in placed.corners.items():
        assert x >= -1e-6
        assert x + sizes[key][0] <= placed.width + 1e-6
        assert 0 <= y <= placed.height - sizes[key][1]


def test_the_svg_has_the_same_nodes_and_edges_as_the_figure() -> None:
    figure = draw_diff(residual_outcome()).figure
    root = ElementTree.fromstring(write_plain(figure).encode())
    groups = [(g.get("class", ""), g.findtext(f"{SVG}title")) for g in root.iter(f"{SVG}g")]
    nodes = [(f"node {card.change.value}", card.key) for card in figure.cards]
    edges = [(f"edge {line.change.value}", f"{line.source}->{line.target}") for line in figure.lines]
    assert [each for each in groups if each[0].startswith("node")] == nodes
    assert [each for each in groups if each[0].startswith("edge")] == edges


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_word_of_every_card_is_in_the_svg(theme: str) -> None:
    for figure in (
        draw_diff(residual_outcome(), Look(theme=theme)).figure,
        draw_rewrite(residual_outcome(), "blocks.1.conv1", Look(theme=theme)).figure,
        draw_model(residual_run(20).traced(), look=Look("layer", theme=theme)).figure,
    ):
        text = "".join(ElementTree.fromstring(write_plain(figure).encode()).itertext())
        for card in figure.cards:
            assert card.key in text
        assert figure.theme.background in write_plain(figure)


def test_thousands_of_boxes_are_placed() -> None:
    figure = draw_model(residual_run(400).traced(), look=Look("operation")).figure
    assert len(figure.cards) > 2500
    assert len(write_plain(figure)) > 1_000_000
