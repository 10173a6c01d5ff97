"""Turn DOT text into SVG, PNG and PDF with whatever renderer there is."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import graphviz

from bottleneck_opt.errors import FileError
from bottleneck_opt.files import write_whole

_SECONDS = 20
_HASTY = ("-Gnslimit=0.1", "-Gnslimit1=0.1", "-Gsplines=line")
_FONTS = "Arial, Helvetica, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_PNG_DPI = 144.0
_PNG_SIDE = 16_000
_PNG_PIXELS = 40_000_000
_PNG_SMALLEST = 0.6
_FORMATS = ("svg", "png", "pdf", "dot")


def renderer() -> str | None:
    """Name of what renders pictures here: ``dot``, ``pygraphviz``, or None when there is neither."""
    if shutil.which("dot"):
        return "dot"
    return "pygraphviz" if importlib.util.find_spec("pygraphviz") else None


def render_svg(digraph: graphviz.Digraph) -> str | None:
    """The picture as SVG text, or None when there is no renderer."""
    data = _render(digraph.source, "svg")
    return None if data is None else _finish_svg(data.decode("utf-8"))


def render_file(digraph: graphviz.Digraph, path: str | os.PathLike[str]) -> None:
    """Write the picture to a file: ``.svg``, ``.png``, ``.pdf`` or ``.dot``. It is written whole or not at all.

    Raises:
        FileError: The suffix is another one, there is no renderer, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise FileError(
            f"picture {path}: got the suffix '{path.suffix}', expected one of .svg, .png, .pdf, .dot. "
            "Give the file a name that ends in one of these."
        )
    write_whole(path, _file_content(digraph, path, suffix))


def _file_content(digraph: graphviz.Digraph, path: Path, suffix: str) -> bytes:
    if suffix == "dot":
        return str(digraph.source).encode("utf-8")
    svg = render_svg(digraph)
    if svg is None:
        raise FileError(_why_not(path))
    if suffix == "svg":
        return svg.encode("utf-8")
    options = (f"-Gdpi={_png_dpi(svg, path):.0f}",) if suffix == "png" else ()
    data = _render(digraph.source, suffix, *options)
    if data is None:
        raise FileError(_why_not(path))
    return data


def _why_not(path: Path) -> str:
    if renderer() is None:
        return (
            f"picture {path}: found no renderer, expected Graphviz's 'dot' on PATH or the Python package pygraphviz. "
            "Install Graphviz (apt install graphviz, brew install graphviz), or pip install 'bottleneck-opt[render]', "
            "or write a .dot file instead."
        )
    return (
        f"picture {path}: {renderer()} did not finish the layout, although it was tried twice. "
        "Write a .dot file instead and lay it out with another engine, such as sfdp."
    )


def _render(source: str, suffix: str, *options: str) -> bytes | None:
    found = renderer()
    if found == "dot":
        return _run_dot(source, suffix, *options) or _run_dot(source, suffix, *options, *_HASTY)
    return _run_pygraphviz(source, suffix, *options) if found == "pygraphviz" else None


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


def _finish_svg(svg: str) -> str:
    """Name several fonts: the layout was made for the metrics of the first, all of them are alike."""
    return svg.replace('font-family="Arial"', f'font-family="{_FONTS}"')


def _png_dpi(svg: str, path: Path) -> float:
    """Dots an inch that keep a PNG within what viewers open."""
    size = re.search(r'<svg[^>]*?width="(\d+)pt"[^>]*?height="(\d+)pt"', svg, re.DOTALL)
    width, height = (int(size[1]), int(size[2])) if size else (1, 1)
    pixels = (width * _PNG_DPI / 72, height * _PNG_DPI / 72)
    scale = min(1.0, _PNG_SIDE / max(pixels), math.sqrt(_PNG_PIXELS / (pixels[0] * pixels[1])))
    if scale < _PNG_SMALLEST:
        raise FileError(
            f"picture {path}: it would be {pixels[0]:.0f} x {pixels[1]:.0f} pixels, expected at most {_PNG_SIDE} "
            f"a side and {_PNG_PIXELS // 1_000_000} million in all. Write a .svg or .pdf file instead."
        )
    return _PNG_DPI * scale
