from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bottleneck_opt.diagrams import renderer
from tests.examples.running import NOTEBOOK, list_outputs, read_notebook, run_notebook

MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The notebook run anew, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("tour")
    return run_notebook(folder), folder


def printed(notebook: Any) -> str:
    return "".join(output.text for output in list_outputs(notebook) if output.output_type == "stream")


def test_every_cell_runs_and_nothing_is_told_on_standard_error(toured: tuple[Any, Path]) -> None:
    notebook, _ = toured
    kinds = {(output.output_type, output.get("name")) for output in list_outputs(notebook)}
    assert kinds == {("stream", "stdout"), ("execute_result", None)}


def test_budgets_are_kept_and_accuracy_too(toured: tuple[Any, Path]) -> None:
    table = re.findall(r"^ +([\d.]+) +([\d,]+) +[\d,]+ +([\d.]+)%$", printed(toured[0]), re.MULTILINE)
    ratios, macs = [float(row[0]) for row in table], [int(row[1].replace(",", "")) for row in table]
    accuracy = [float(row[2]) for row in table]
    assert ratios == [1, 0.5, 0.25, 0.1]
    assert macs[0] == 3_744_384
    assert [number <= ratio * macs[0] for number, ratio in zip(macs, ratios, strict=True)] == [True] * 4
    assert accuracy[0] > 96
    assert accuracy[2] > accuracy[0] - 2


def test_the_result_comes_back_and_the_report_is_there(toured: tuple[Any, Path]) -> None:
    notebook, folder = toured
    assert "the same outputs: True" in printed(notebook)
    assert "Rewritten layers" in (folder / "out" / "tour" / "report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(renderer() != "dot", reason="notebooks show pictures by Graphviz's dot, which is not here")
def test_pictures_are_shown(toured: tuple[Any, Path]) -> None:
    pictures = [output.data["image/svg+xml"] for output in list_outputs(toured[0]) if "data" in output]
    assert ["% fewer multiply" in picture for picture in pictures] == [False, True]


def test_the_committed_notebook_is_this_one_run_from_top_to_bottom(toured: tuple[Any, Path]) -> None:
    committed, fresh = read_notebook(), toured[0]
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = [[output.output_type for output in list_outputs(notebook)] for notebook in (committed, fresh)]
    assert kinds[0] == kinds[1]
    assert NOTEBOOK.stat().st_size < MOST_BYTES
