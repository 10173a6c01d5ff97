"""Names come from users' models: whatever they hold, the picture stays the same but for the words."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bottleneck_opt.diagrams import draw_diff, draw_rewrite, render_svg, renderer
from bottleneck_opt.diagrams.plain import write_plain
from tests.samples import renamed_outcome, residual_outcome

OUTCOME = residual_outcome()
PLAIN = draw_diff(OUTCOME).source
CLASSES = sorted(re.findall(r"[ \[]class=(\w+)", PLAIN))
names = st.text(st.characters(exclude_characters="."), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(names)
@example('"];evil [label="x')
@example("<b>&amp;</b>]]>")
@example("back\\slash\\N\\")
@example("\u202e\U0001f600\ud800\x00")
def test_any_name_gives_the_same_nodes_and_one_statement_a_line(name: str) -> None:
    outcome = renamed_outcome(OUTCOME, "blocks", name)
    for source in (draw_diff(outcome).source, draw_rewrite(outcome, f"{name}.1.conv1").source):
        assert source.isascii()
        assert all(line.count("[") >= line.count("] [") for line in source.splitlines())
    source = draw_diff(outcome).source
    assert source.count("\n") == PLAIN.count("\n")
    assert sorted(re.findall(r"[ \[]class=(\w+)", source)) == CLASSES


@settings(max_examples=20, deadline=None)
@given(names)
def test_any_name_gives_a_plain_svg_that_parses(name: str) -> None:
    figure = draw_diff(renamed_outcome(OUTCOME, "blocks", name)).figure
    assert _count(write_plain(figure), "node") == _count(write_plain(draw_diff(OUTCOME).figure), "node")


@pytest.mark.skipif(renderer() is None, reason="neither dot nor pygraphviz")
@settings(max_examples=12, deadline=None)
@given(names)
def test_any_name_renders_to_the_same_boxes(name: str) -> None:
    drawn, plain = (render_svg(draw_diff(o)) for o in (renamed_outcome(OUTCOME, "blocks", name), OUTCOME))
    assert drawn is not None
    assert plain is not None
    assert _count(drawn, "node") == _count(plain, "node")
    assert _count(drawn, "edge") == _count(plain, "edge")


def _count(svg: str, kind: str) -> int:
    return sum(element.get("class", "").split(" ")[0] == kind for element in ElementTree.fromstring(svg).iter())
