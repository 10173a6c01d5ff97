"""Run the examples as a reader does: as scripts with their folder on the path, the notebook in a kernel of its own."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
PICTURES = EXAMPLES / "pictures"
NOTEBOOK = EXAMPLES / "tour.ipynb"
SCRIPTS = (
    "filter_sizes", "bottleneck", "network_in_network", "inception", "shared_bottleneck", "self_attention",
)  # fmt: skip


def load_example(name: str) -> ModuleType:
    """An example as a module, without running its main part."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def read_notebook() -> Any:
    """The notebook as it is committed."""
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def run_notebook(folder: Path) -> Any:
    """The notebook run anew from top to bottom, in a folder that gets what it writes, with this checkout's package.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    notebook = read_notebook()
    metadata = dict(notebook.metadata)
    client = NotebookClient(
        notebook, kernel_name="python3", timeout=300, record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    notebook.metadata = metadata  # without this machine's version of Python
    for output in list_outputs(notebook):
        data = output.get("data", {})
        if "text/plain" in data:
            data["text/plain"] = re.sub(" at 0x[0-9a-f]+", "", data["text/plain"])
    return notebook


def list_outputs(notebook: Any) -> list[Any]:
    """What the cells printed and showed, in order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
