"""How large report.html is, how long it takes to write, and how long until a browser has it ready.

``python -m tests.benchmarks.report_page [NAME ...]``; all take 15 minutes, nearly all to optimise.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from playwright.sync_api import Browser
from torch import nn

from bottleneck_opt import optimize
from bottleneck_opt.demo.digits import DigitsResNet
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.report.tables import format_table
from tests.report.browser import open_page, running_browser, write_page
from tests.report.outcomes import many_changes
from tests.torchvision_models import build

QUICK = Recipe(refit=False, joint=0, rounds=0)
BLOCKS = 715  # of seven nodes each
OPENINGS = 3


@dataclass(frozen=True)
class Row:
    """What was measured of one page."""

    name: str
    nodes: int
    kilobytes: float
    writing: float
    opening: float


def _optimised(make: Callable[[], nn.Module], *shape: int) -> Outcome:
    torch.manual_seed(0)
    return optimize(make(), torch.randn(1, *shape), calibration_limit=8, recipe=QUICK, progress=False)


def _torchvision(name: str) -> Callable[[], Outcome]:
    return lambda: _optimised(lambda: build(name), 3, 64, 64)


OUTCOMES: Mapping[str, Callable[[], Outcome]] = {
    "digits": lambda: _optimised(DigitsResNet, 1, 16, 16),
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "googlenet": _torchvision("googlenet"),
    "densenet121": _torchvision("densenet121"),
    "resnet152": _torchvision("resnet152"),
    "synthetic": lambda: many_changes(BLOCKS),
}


def measure(name: str, outcome: Outcome, browser: Browser, folder: Path) -> Row:
    """Write the page, picture included, and open it."""
    file = folder / f"{name}.html"
    started = time.perf_counter()
    write_page(outcome, file)
    writing = time.perf_counter() - started
    opening = min(_open(browser, file) for _ in range(OPENINGS))
    return Row(name, len(outcome.before.structure.nodes), file.stat().st_size / 1000, writing, opening)


def _open(browser: Browser, file: Path) -> float:
    started = time.perf_counter()
    opened = open_page(browser, file)
    opened.page.keyboard.press("n")
    opened.page.wait_for_selector(".node.selected", state="attached")
    seconds = time.perf_counter() - started
    opened.page.context.close()
    return seconds


def main(names: list[str]) -> None:
    """Print a line for each model as soon as it is known, and a table at the end."""
    torch.set_num_threads(1)
    rows = []
    with running_browser() as browser, tempfile.TemporaryDirectory() as folder:
        for name in names or OUTCOMES:
            rows.append(measure(name, OUTCOMES[name](), browser, Path(folder)))
            print(rows[-1], file=sys.stderr, flush=True)
    cells = [
        [row.name, str(row.nodes), f"{row.kilobytes:.0f}", f"{row.writing:.2f}", f"{row.opening:.2f}"] for row in rows
    ]
    header = ["model", "nodes", "kB", "s to write", "s until a change is selected"]
    print("\n".join(format_table(header, cells, right="lrrrr")))


if __name__ == "__main__":
    main(sys.argv[1:])
