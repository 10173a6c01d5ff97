"""Turn a figure into SVG, PNG and PDF with whatever renderer there is, within a time limit."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import graphviz

from bottleneck_opt.diagrams.cards import Figure, centered
from bottleneck_opt.diagrams.dot import write_dot
from bottleneck_opt.diagrams.plain import write_plain
from bottleneck_opt.diagrams.png import choose_dpi
from bottleneck_opt.errors import FileError
from bottleneck_opt.files import write_whole

_SECONDS = 20
_HASTY = ("-Gnslimit=0.1", "-Gnslimit1=0.1", "-Gsplines=line")
_HASTY_NOTE = f"laid out in haste: the careful layout took more than {_SECONDS} s"
_PLAIN_NOTE = f"plain layout: Graphviz took more than {_SECONDS} s, twice"
_MISSING_NOTE = "plain layout: Graphviz is not installed here"
_FONTS = "Arial, Helvetica, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_FORMATS = ("svg", "png", "pdf", "dot")


@dataclass(frozen=True)
class Rendered:
    """A picture.

    Attributes:
        data: The content of the file.
        note: What was not as good as it could be; empty when it was. The picture says so too.
    """

    data: bytes
    note: str


def renderer() -> str | None:
    """Name of what renders pictures here: ``dot``, ``pygraphviz``, or None when there is neither."""
    if shutil.which("dot"):
        return "dot"
    return "pygraphviz" if importlib.util.find_spec("pygraphviz") else None


def render_svg(digraph: graphviz.Digraph) -> str | None:
    """The picture as SVG text.

    Where Graphviz is missing or takes too long, a picture that was drawn here gets a plain layered layout; its
    subtitle says so. None is for another digraph, of which only the text is known.
    """
    rendered = _render_svg(digraph)
    return None if rendered is None else rendered.data.decode("utf-8")


def render_file(digraph: graphviz.Digraph, path: str | os.PathLike[str]) -> str:
    """Write the picture to a file: ``.svg``, ``.png``, ``.pdf`` or ``.dot``. It is written whole or not at all.

    Returns:
        What a reader should know about it, such as that it was laid out in haste or scaled down; empty when nothing.

    Raises:
        FileError: The suffix is another one, there is no renderer, the picture is too large for a PNG, or the file
            cannot be written.
    """
    path = Path(path)
    rendered = _render(digraph, path, check_format(path))
    write_whole(path, rendered.data)
    return rendered.note


def check_format(path: Path) -> str:
    """The format that a picture's file name asks for, such as ``svg``. Raises FileError when there is no such."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise FileError(
            f"picture {path}: got the suffix '{path.suffix}', expected one of .svg, .png, .pdf, .dot. "
            "Give the file a name that ends in one of these."
        )
    return suffix


def _render(digraph: graphviz.Digraph, path: Path, suffix: str) -> Rendered:
    if suffix == "dot":
        return Rendered(str(digraph.source).encode("utf-8"), "")
    if suffix == "svg":
        svg = _render_svg(digraph)
        if svg is None:
            raise FileError(_why_not(path))
        return svg
    options, scaled = tuple[str, ...](), ""
    if suffix == "png":
        dpi, scaled = choose_dpi(_measure(digraph, path), path)
        options = (f"-Gdpi={dpi:.0f}",)
    drawn = next(_attempts(digraph, suffix, options), None)
    if drawn is None:
        raise FileError(_why_not(path))
    return replace(drawn, note="; ".join(filter(None, [drawn.note, scaled])))


def _measure(digraph: graphviz.Digraph, path: Path) -> str:
    """The picture as SVG, whose head says how large it is."""
    drawn = next(_attempts(digraph, "svg"), None)
    if drawn is None:
        raise FileError(_why_not(path))
    return drawn.data.decode("utf-8")


def _render_svg(digraph: graphviz.Digraph) -> Rendered | None:
    drawn = next(_attempts(digraph, "svg"), None)
    if drawn is not None:
        return Rendered(_finish_svg(drawn.data.decode("utf-8")).encode("utf-8"), drawn.note)
    figure = _figure_of(digraph)
    if figure is None:
        return None
    note = _MISSING_NOTE if renderer() is None else _PLAIN_NOTE
    return Rendered(_finish_svg(write_plain(_with_note(figure, note))).encode("utf-8"), note)


def _figure_of(digraph: graphviz.Digraph) -> Figure | None:
    return getattr(digraph, "figure", None)


def _with_note(figure: Figure, note: str) -> Figure:
    """The figure with a note under its title."""
    title, *rest = figure.heading
    return replace(figure, heading=(title, centered(note, quiet=True), *rest))


def _write(figure: Figure) -> str:
    digraph = graphviz.Digraph("bottleneck_opt")
    write_dot(figure, digraph)
    return str(digraph.source)


def _attempts(digraph: graphviz.Digraph, suffix: str, options: tuple[str, ...] = ()) -> Iterator[Rendered]:
    """The picture by Graphviz: at its best, then in haste."""
    found = renderer()
    if found == "pygraphviz":
        data = _run_pygraphviz(digraph.source, suffix, *options)
        if data is not None:
            yield Rendered(data, "")
    if found != "dot":
        return
    data = _run_dot(digraph.source, suffix, *options)
    if data is not None:
        yield Rendered(data, "")
    figure = _figure_of(digraph)
    source = digraph.source if figure is None else _write(_with_note(figure, _HASTY_NOTE))
    data = _run_dot(source, suffix, *options, *_HASTY)
    if data is not None:
        yield Rendered(data, _HASTY_NOTE)


def _run_dot(source: str, suffix: str, *options: str) -> bytes | None:
    command = ["dot", f"-T{suffix}", *options]
    try:
        done = subprocess.run(command, input=source.encode("utf-8"), capture_output=True, timeout=_SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return None
    return done.stdout if done.returncode == 0 and done.stdout else None


def _run_pygraphviz(source: str, suffix: str, *options: str) -> bytes | None:
    import pygraphviz  # an extra; imported only where it is used  # noqa: PLC0415

    graph = pygraphviz.AGraph(string=source)
    for option in options:
        name, _, value = option.removeprefix("-G").partition("=")
        graph.graph_attr[name] = value
    data = graph.draw(format=suffix, prog="dot")
    return data if isinstance(data, bytes) else None


def _why_not(path: Path) -> str:
    if renderer() is None:
        return (
            f"picture {path}: found no renderer, expected Graphviz's 'dot' on PATH or the Python package pygraphviz. "
            "Install Graphviz (apt install graphviz, brew install graphviz), or pip install 'bottleneck-opt[render]', "
            "or write a .svg or .dot file instead."
        )
    return (
        f"picture {path}: {renderer()} did not finish the layout, although it was tried twice. "
        "Write a .svg file, which then gets a plain layout, or draw with less detail."
    )


def _finish_svg(svg: str) -> str:
    """Name several fonts: the layout was made for the metrics of the first, all of them are alike."""
    return svg.replace('font-family="Arial"', f'font-family="{_FONTS}"')
