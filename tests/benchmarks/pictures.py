"""What pictures cost and how large they get: ``python -m tests.benchmarks.pictures`` (ten minutes on two cores).

Real networks with random weights are rewritten on noise, which takes most of the time and is not counted; networks of
a thousand and of five thousand operations are made up. The diff of each is drawn, and written as SVG and PNG to
``out/pictures``. Look at them: does a stranger see in ten seconds what was changed and what it saved?
"""

from __future__ import annotations

import argparse
import importlib
import random
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import DigitsResNet
from bottleneck_opt.diagrams import Look, draw_diff, render_file, render_svg
from bottleneck_opt.diagrams.plain import write_plain
from bottleneck_opt.outcome import Outcome
from tests.samples import residual_outcome
from tests.torchvision_models import build
from tests.zoo.entries import Entry

RECIPE = bo.Recipe(refit=False, rounds=0, joint=0)
EXAMPLES = 2


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        operations: Of both models, drawn or folded.
        boxes: In the picture.
        write, render, plain: Seconds for the DOT text, for Graphviz, and for the plain layout.
        points: Width and height of the SVG.
        kilobytes: Of the SVG.
        note: What had to be given up.
    """

    name: str
    operations: int
    boxes: int
    write: float
    render: float
    plain: float
    points: tuple[int, int]
    kilobytes: int
    note: str


def rewrite(make: Callable[[], tuple[nn.Module, Any]]) -> Outcome:
    """A network at half its multiply-adds, cheaply."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, inputs = make()
        return bo.optimize(
            model, inputs, calibration_limit=EXAMPLES, budget=0.5, recipe=RECIPE, allow_slower=True, progress=False
        )  # fmt: skip


def vision(name: str, size: int = 64) -> tuple[nn.Module, Any]:
    """A classifier of torchvision's and an image."""
    return build(name), torch.zeros(1, 3, size, size)


def zoo(family: str, name: str) -> tuple[nn.Module, Any]:
    """A network of the zoo and its inputs."""
    entries = importlib.import_module(f"tests.zoo.families.{family}").entries()
    entry: Entry = next(entry for entry in entries if entry.model == name)
    model = entry.build()
    return model, entry.inputs(model)


def synthetic(blocks: int) -> Outcome:
    """Residual blocks of which some layers were rewritten, at different ranks, so that hardly two are alike."""
    draw = random.Random(0)
    paths = [f"blocks.{index}.conv{number}" for index in range(blocks) for number in (1, 2)]
    return residual_outcome({path: draw.choice((2, 4, 6)) for path in paths if draw.random() < 0.4}, blocks=blocks)


OUTCOMES: Mapping[str, Callable[[], Outcome]] = {
    "digits": partial(rewrite, lambda: (DigitsResNet().eval(), torch.zeros(1, 1, 16, 16))),
    "resnet18": partial(rewrite, partial(vision, "resnet18")),
    "resnet50": partial(rewrite, partial(vision, "resnet50")),
    "googlenet": partial(rewrite, partial(vision, "googlenet")),
    "densenet121": partial(rewrite, partial(vision, "densenet121")),
    "unet2d_condition": partial(rewrite, partial(zoo, "diffusers", "unet2d_condition")),
    "fasterrcnn": partial(rewrite, partial(zoo, "torchvision", "fasterrcnn_resnet50_fpn")),
    "synthetic1000": partial(synthetic, 142),
    "synthetic5000": partial(synthetic, 714),
}


def measure(name: str, outcome: Outcome, folder: Path, look: Look) -> Row:
    """Draw, render and write one diff."""
    started = time.perf_counter()
    drawing = draw_diff(outcome, look)
    written = time.perf_counter()
    svg = render_svg(drawing) or ""
    rendered = time.perf_counter()
    write_plain(drawing.figure)
    plain = time.perf_counter()
    render_file(drawing, folder / f"{name}.svg")
    note = render_file(drawing, folder / f"{name}.png")
    size = ElementTree.fromstring(svg)
    width, height = (int(size.get(side, "0pt").removesuffix("pt")) for side in ("width", "height"))
    operations = sum(len(traced.structure.nodes) for traced in (outcome.before, outcome.after))
    return Row(
        name, operations, len(drawing.figure.cards), written - started, rendered - written, plain - rendered,
        (width, height), len(svg) // 1000, note,
    )  # fmt: skip


def main() -> None:
    """Draw all pictures and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *OUTCOMES], help="which networks; all by default")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    parser.add_argument("--theme", default="light", choices=["light", "dark"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    look = Look(theme=arguments.theme)
    rows = [measure(name, OUTCOMES[name](), arguments.out, look) for name in arguments.names or OUTCOMES]
    table = Table("diff of", "operations", "boxes", "DOT text s", "Graphviz s", "plain s", "points", "kB", "note")
    for row in rows:
        table.add_row(
            row.name, str(row.operations), str(row.boxes), f"{row.write:.2f}", f"{row.render:.2f}",
            f"{row.plain:.2f}", "{} x {}".format(*row.points), str(row.kilobytes), row.note,
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
