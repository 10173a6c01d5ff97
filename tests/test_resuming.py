"""A run that was killed goes on from what it kept, to the same plan and the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import resuming

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no process is killed like this there")
FILES = ("plan.json", "model.safetensors")
EVERYWHERE = {
    "stage:calibrate": [],
    "step:calibrate:2": [],
    "file:calibrate": [],
    "step:propose:2": ["calibrate", "propose"],
    "file:propose": ["calibrate"],
    "stage:fit": ["calibrate", "propose"],
    "file:fit-": ["calibrate", "propose"],
    "step:fit together:3": ["calibrate", "propose", "fit"],
    "file:fit-together": ["calibrate", "propose", "fit"],
    "stage:rewrite": ["calibrate", "propose", "fit", "fit together"],
    "step:recover:3": ["calibrate", "propose", "fit", "fit together", "recover"],
    "file:recover": ["calibrate", "propose", "fit", "fit together"],
    "stage:verify": ["calibrate", "propose", "fit", "fit together", "recover"],
    "file:out": ["calibrate", "propose", "fit", "fit together", "recover"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing broke off, which kept nothing."""
    folder = resuming.run().save(tmp_path_factory.mktemp("whole") / "out")
    return {name: (folder / name).read_bytes() for name in FILES}


def start(folder: Path, where: str, how: str = "SIGKILL") -> subprocess.CompletedProcess[str]:
    """Start the run in a process that is struck somewhere."""
    command = [sys.executable, "-m", "tests.resuming", str(folder / "cache"), str(folder / "out"), where, how]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def check_resumed(folder: Path, whole: dict[str, bytes], stages: list[str]) -> None:
    """Go on with the run, and see what it read back, what it made and what it left."""
    result = resuming.run(folder / "cache")
    notes = [note for note in result.notes if note.startswith("cache: went on from")]
    assert [note.count(f" {stage} (") for note in notes for stage in stages] == [1] * len(stages)
    assert len(notes) == bool(stages)
    saved = result.save(folder / "out")
    assert {name: (saved / name).read_bytes() for name in FILES} == whole
    assert [path.name for path in (*folder.iterdir(), *(folder / "cache").iterdir()) if path.name[0] == "."] == []


@pytest.mark.slow
@pytest.mark.parametrize(("where", "stages"), EVERYWHERE.items())
def test_a_run_that_is_killed_anywhere_goes_on(
    tmp_path: Path, whole: dict[str, bytes], where: str, stages: list[str]
) -> None:
    killed = start(tmp_path, where)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    check_resumed(tmp_path, whole, stages)


def test_a_run_that_is_killed_goes_on(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert start(tmp_path, "file:fit-together").returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name[0] == "."] != []
    check_resumed(tmp_path, whole, ["calibrate", "propose", "fit"])


@pytest.mark.slow
def test_a_run_that_is_interrupted_says_where_it_is_kept(tmp_path: Path, whole: dict[str, bytes]) -> None:
    stopped = start(tmp_path, "step:recover:3", "SIGINT")
    assert stopped.returncode == -signal.SIGINT
    assert (
        f"what was done until now is kept in {tmp_path / 'cache'}: the same call goes on from there" in stopped.stderr
    )
    check_resumed(tmp_path, whole, ["calibrate", "propose", "fit", "fit together", "recover"])
