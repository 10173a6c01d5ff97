"""Run all examples and put their pictures and the notebook's outputs in the place of the committed ones.

Run: python -m tests.examples.refresh
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat

from bottleneck_opt.files import write_whole
from tests.examples.running import NOTEBOOK, PICTURES, SCRIPTS, load_example, run_notebook


def refresh(names: tuple[str, ...]) -> None:
    """Make everything that is committed anew, or only these."""
    for name in names or (*SCRIPTS, NOTEBOOK.stem):
        print(f"-- {name}")
        if name != NOTEBOOK.stem:
            load_example(name).main(PICTURES)
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = nbformat.writes(run_notebook(Path(folder)))  # type: ignore[no-untyped-call]
        write_whole(NOTEBOOK, f"{text.rstrip()}\n".encode())


if __name__ == "__main__":
    refresh(tuple(sys.argv[1:]))
