import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import graphviz
import pytest

from bottleneck_opt.diagrams import (
    Look,
    draw_after,
    draw_before,
    draw_diff,
    draw_model,
    draw_rewrite,
    render_svg,
    renderer,
)
from tests.samples import Run, renamed_outcome, residual_outcome, residual_run

HERE = Path(__file__).parent
HOSTILE = [
    '"];evil [label="x',
    "<script>alert(1)</script>",
    "]]></svg><b>&amp;",
    "back\\slash\\N\\n\\",
    "line\nbreak\x00\x1b",
    "<TABLE><TR><TD>",
    "&lt;&#60;",
    "caf\u00e9 \u202e \U0001f600",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 5000,
]
needs_renderer = pytest.mark.skipif(renderer() is None, reason="neither dot nor pygraphviz")


def tiny_run() -> Run:
    run = Run()
    x = run.module("relu", "ReLU", (run.conv("conv", run.input(3), 3, 4),), 4)
    run.output(x)
    return run


GOLDEN: dict[str, Callable[[], graphviz.Digraph]] = {
    "tiny": lambda: draw_model(tiny_run().traced(), title="Tiny"),
    "diff": lambda: draw_diff(residual_outcome()),
    "pass": lambda: draw_rewrite(residual_outcome(), "blocks.1.conv1", Look(theme="dark")),
    "folded": lambda: draw_diff(residual_outcome({f"blocks.{i}.conv1": 2 + i for i in range(20)}, blocks=20)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_dot_text_is_as_agreed(name: str) -> None:
    """After a wanted change: ``python -m tests.diagrams.test_dot`` writes the files again; read what changed."""
    assert GOLDEN[name]().source == (HERE / "golden" / f"{name}.dot").read_text()


def test_the_text_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "from tests.samples import residual_outcome as r; from bottleneck_opt.diagrams import *;"
        "o = r({'blocks.5.conv1': 4, 'blocks.6.conv1': 4}, blocks=20); print(draw_diff(o).source);"
        "print(draw_rewrite(o, 'blocks.5.conv1').source, draw_model(o.before, look=Look('operation')).source)"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=HERE.parents[1],
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1
    assert "+ NEW" in texts.pop()


def test_a_change_is_said_in_words_by_line_and_by_corners() -> None:
    source = draw_diff(residual_outcome()).source
    removed = _node_line(source, "blocks_1_conv1")
    reduce = _node_line(source, "blocks_1_conv1_reduce")
    kept = _node_line(source, "blocks_1_conv2")
    assert "- REMOVED | saves 106 kMAC" in removed
    assert "dashed" in removed
    assert "+ NEW | rank 4 of 16" in reduce
    assert "style=filled]" in reduce or "style=filled " in reduce
    assert "penwidth=3" in reduce
    assert "predicted loss 1.0 %" in _node_line(source, "blocks_1_conv1_conv")
    assert "penwidth=1 " in kept
    assert "rounded" in kept
    assert not re.search("NEW|REMOVED|dashed", kept)


def test_a_box_of_a_layer_with_its_replacements_has_a_shape_of_its_own() -> None:
    ranks = {f"blocks.{i}.conv{1 + i % 2}": 4 + i // 2 for i in range(16)}  # neighbours differ, so all are folded
    lines = [line for line in draw_diff(residual_outcome(ranks, blocks=16)).source.splitlines() if "[label=" in line]
    replaced = [line for line in lines if "REPLACED" in line]
    assert replaced
    assert all("peripheries=2" in line for line in replaced)
    assert not any("peripheries" in line for line in lines if line not in replaced)


def test_a_picture_with_predicted_losses_says_what_they_mean() -> None:
    assert "as a share of the output" in draw_diff(residual_outcome()).source
    assert "as a share of the output" not in draw_model(tiny_run().traced()).source


def test_the_picture_of_one_side_shows_only_that_side() -> None:
    outcome = residual_outcome()
    assert "NEW" not in draw_before(outcome).source
    assert "REMOVED" not in draw_after(outcome).source


def test_a_box_says_operation_path_shape_cost_and_share_of_the_original() -> None:
    line = _node_line(draw_after(residual_outcome()).source, "blocks_1_conv1_conv")
    for words in (
        "conv 3x3 | BN | ReLU",
        "blocks.1.conv1.conv",
        "4x8x8 -&gt; 16x8x8",
        "36.9 kMAC",
        "576 params",
        "4.0 %",
    ):
        assert words in line


def test_a_layer_left_alone_says_why() -> None:
    assert "3 input channels" in _node_line(draw_diff(residual_outcome()).source, "stem")


def test_a_folded_picture_says_how_much_is_folded() -> None:
    source = draw_model(residual_run(20).traced()).source
    assert "11 of 144 operations have a place of their own, 133 are folded" in source
    assert "x20" in source


def test_a_model_without_any_multiplication_is_drawn() -> None:
    run = Run()
    run.output(run.module("relu", "ReLU", (run.input(3),), 3))
    assert "ReLU" in draw_model(run.traced()).source


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_adds_nothing_to_the_text_but_escaped_words(name: str) -> None:
    plain, hostile = (draw_diff(renamed_outcome(residual_outcome(), "blocks", n)).source for n in ("blocks", name))
    assert hostile.isascii()
    assert hostile.count("\n") == plain.count("\n")
    assert max(map(len, hostile.splitlines())) < 3000


@needs_renderer
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_renders_to_the_same_boxes(name: str) -> None:
    outcome = renamed_outcome(residual_outcome(), "blocks", name)
    for draw in (draw_before, draw_after, draw_diff):
        root = ElementTree.fromstring(_svg(draw(outcome)))
        plain = ElementTree.fromstring(_svg(draw(residual_outcome())))
        assert _tags(root, "node") == _tags(plain, "node")
        assert _tags(root, "edge") == _tags(plain, "edge")
        assert {element.tag for element in root.iter()} == {element.tag for element in plain.iter()}


@needs_renderer
def test_backslashes_in_a_name_are_shown_as_they_are() -> None:
    svg = _svg(draw_model(tiny_run().traced(), title="a\\Nb\\nc"))
    assert "a\\Nb\\nc" in svg


def _svg(digraph: graphviz.Digraph) -> str:
    svg = render_svg(digraph)
    assert svg is not None
    return svg


def _node_line(source: str, key: str) -> str:
    return next(line for line in source.splitlines() if line.strip().startswith(f"{key} ["))


def _tags(root: ElementTree.Element, kind: str) -> int:
    return sum(element.get("class", "").split(" ")[0] == kind for element in root.iter())


if __name__ == "__main__":
    for key, draw_golden in GOLDEN.items():
        (HERE / "golden" / f"{key}.dot").write_text(draw_golden().source)
