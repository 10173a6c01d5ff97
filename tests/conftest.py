"""One thread: tests of tiny networks are slower, and much slower on a busy machine, with more.

Nothing is timed while choosing, so that plans do not depend on the machine, except in tests marked ``clocked``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bottleneck_opt.clock import Clock
from bottleneck_opt.timing.records import FOLDER_VARIABLE

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _stop_the_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "clocked" not in request.keywords:
        monkeypatch.setattr(Clock, "find_slower", lambda self, choice: [])


@pytest.fixture(autouse=True)
def _keep_times_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder: Path = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
