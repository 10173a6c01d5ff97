import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import graphviz
import pytest

from bottleneck_opt.diagrams import draw_diff, draw_model, png, render_file, render_svg, renderer
from bottleneck_opt.errors import FileError
from tests.samples import residual_outcome, residual_run

needs_renderer = pytest.mark.skipif(renderer() is None, reason="neither dot nor pygraphviz")


@pytest.fixture
def digraph() -> graphviz.Digraph:
    return draw_model(residual_run(1).traced())


@pytest.fixture
def no_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@needs_renderer
@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_a_file_is_of_the_kind_its_suffix_says(
    digraph: graphviz.Digraph, tmp_path: Path, suffix: str, start: bytes
) -> None:
    render_file(digraph, tmp_path / f"model{suffix}")
    assert (tmp_path / f"model{suffix}").read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"]


def test_a_dot_file_needs_no_renderer(digraph: graphviz.Digraph, tmp_path: Path, no_renderer: None) -> None:
    render_file(digraph, tmp_path / "model.dot")
    assert (tmp_path / "model.dot").read_text() == digraph.source


def test_without_a_renderer_the_svg_has_a_plain_layout_and_says_so(
    digraph: graphviz.Digraph, no_renderer: None
) -> None:
    assert renderer() is None
    svg = render_svg(digraph)
    assert svg is not None
    assert "plain layout: Graphviz is not installed here" in svg


def test_without_a_renderer_another_digraph_has_no_svg(no_renderer: None) -> None:
    assert render_svg(graphviz.Digraph()) is None


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_missing_renderer_is_an_error_that_says_what_to_do(
    digraph: graphviz.Digraph, tmp_path: Path, no_renderer: None, suffix: str
) -> None:
    with pytest.raises(FileError, match="Install Graphviz"):
        render_file(digraph, tmp_path / f"model{suffix}")
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_an_error_that_lists_the_known_ones(digraph: graphviz.Digraph, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"\.svg, \.png, \.pdf, \.dot"):
        render_file(digraph, tmp_path / "model.jpg")


def test_a_folder_that_does_not_exist_is_an_error(digraph: graphviz.Digraph, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="folder"):
        render_file(digraph, tmp_path / "missing" / "model.dot")


def test_a_failed_write_leaves_the_old_file_and_no_other(
    digraph: graphviz.Digraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.dot").write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FileError, match="no space left"):
        render_file(digraph, tmp_path / "model.dot")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@needs_renderer
def test_fonts_have_stand_ins_for_machines_without_arial(digraph: graphviz.Digraph) -> None:
    svg = render_svg(digraph)
    assert svg is not None
    assert "sans-serif" in svg
    assert 'font-family="Arial"' not in svg


@pytest.mark.skipif(importlib.util.find_spec("pygraphviz") is None, reason="pygraphviz is an extra")
def test_pygraphviz_draws_when_dot_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert renderer() == "pygraphviz"
    svg = render_svg(draw_diff(residual_outcome()))
    assert svg is not None
    assert "+ NEW" in svg
    render_file(draw_diff(residual_outcome()), tmp_path / "diff.png")
    assert (tmp_path / "diff.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("dot") is None, reason="dot is not installed")
def test_a_layout_that_takes_too_long_is_tried_again_in_haste(
    digraph: graphviz.Digraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commands = subprocess.run, []

    def slow(command: list[str], **options: Any) -> Any:
        commands.append(command)
        if len(commands) == 1:
            raise subprocess.TimeoutExpired(command, 20)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", slow)
    svg = render_svg(digraph)
    assert svg is not None
    assert "-Gsplines=line" in commands[1]
    assert "laid out in haste" in svg


@needs_renderer
def test_a_png_too_large_to_open_is_refused(
    digraph: graphviz.Digraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "_SIDE", 200)
    with pytest.raises(FileError, match=r"\.svg or \.pdf"):
        render_file(digraph, tmp_path / "model.png")


@needs_renderer
def test_a_png_that_is_scaled_down_says_so(
    digraph: graphviz.Digraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svg = render_svg(digraph)
    assert svg is not None
    size = re.search(r'height="(\d+)pt"', svg)
    assert size is not None
    monkeypatch.setattr(png, "_SIDE", int(1.5 * int(size[1])))  # 144 dots an inch are 2 a point
    assert "scaled to 75 %" in render_file(digraph, tmp_path / "model.png")
    monkeypatch.setattr(png, "_SIDE", 16_000)
    assert render_file(digraph, tmp_path / "model.png") == ""


@pytest.mark.skipif(shutil.which("dot") is None, reason="dot is not installed")
def test_a_layout_that_takes_too_long_twice_is_a_plain_one(
    digraph: graphviz.Digraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(subprocess, "run", slow)
    note = render_file(digraph, tmp_path / "model.svg")
    assert note.startswith("plain layout")
    assert note in (tmp_path / "model.svg").read_text()
    with pytest.raises(FileError, match=r"Write a \.svg file"):
        render_file(digraph, tmp_path / "model.png")


def test_a_notebook_shows_the_picture_without_graphviz_too(digraph: graphviz.Digraph, no_renderer: None) -> None:
    assert "<svg" in digraph._repr_mimebundle_()["image/svg+xml"]
