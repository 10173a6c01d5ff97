"""What killed processes left is removed; what a living one uses, or what cannot be told, is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bottleneck_opt import leftovers
from bottleneck_opt.files import folder_written_whole, write_whole
from bottleneck_opt.leftovers import remove_leftovers, stamp
from bottleneck_opt.spilling import Storage

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes cannot be asked for there")


@pytest.fixture(scope="module")
def gone() -> str:
    """The stamp of a process that has ended."""
    code = "from bottleneck_opt.leftovers import stamp; print(stamp())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_and_folders_of_a_process_that_is_gone_are_removed(tmp_path: Path, gone: str) -> None:
    (tmp_path / f"x{gone}a").write_text("left")
    (tmp_path / f"x{gone}b").mkdir()
    (tmp_path / f"x{gone}b" / "0.bin").write_text("left")
    assert remove_leftovers(tmp_path, "x") == 2
    assert names(tmp_path) == []


def test_those_of_this_process_stay(tmp_path: Path) -> None:
    (tmp_path / f"x{stamp()}a").write_text("in use")
    assert remove_leftovers(tmp_path, "x") == 0


def test_a_number_that_was_given_again_is_told_by_the_start(tmp_path: Path) -> None:
    place, rest = stamp().strip(".").split("-", 1)
    number, start = rest.split("-")
    if start == "0":
        pytest.skip("the system does not tell when a process started")
    (tmp_path / f"x.{place}-{number}-{int(start) - 1}.a").write_text("left")
    assert remove_leftovers(tmp_path, "x") == 1


@pytest.mark.parametrize("name", ["x", "x.a-1-2.b", "other{gone}a", "x.00000000-{number}-1.a"])
def test_what_cannot_be_told_stays(tmp_path: Path, gone: str, name: str) -> None:
    (tmp_path / name.format(gone=gone, number=gone.split("-")[1])).write_text("somebody's")
    assert remove_leftovers(tmp_path, "x") == 0
    assert len(names(tmp_path)) == 1


def test_where_the_system_does_not_tell_no_process_is_gone(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = int(gone.split("-")[1])
    assert leftovers._is_gone(number, 1)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal ends the process there"))
    monkeypatch.setattr(os, "name", "nt")
    assert not leftovers._is_gone(number, 1)


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path, gone: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / f"x{gone}a").symlink_to(tmp_path / "mine")
    remove_leftovers(tmp_path, "x")
    assert names(tmp_path) == ["mine"]
    assert names(tmp_path / "mine") == ["file"]


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "none", "x") == 0


def test_writing_a_file_clears_what_was_left_beside_it(tmp_path: Path, gone: str) -> None:
    (tmp_path / f".a.json{gone}x").write_text("half")
    (tmp_path / f".b.json{gone}x").write_text("of another file")
    write_whole(tmp_path / "a.json", b"{}")
    assert names(tmp_path) == [f".b.json{gone}x", "a.json"]


def test_writing_a_folder_clears_what_was_left_beside_it(tmp_path: Path, gone: str) -> None:
    (tmp_path / f".out{gone}x").mkdir()
    with folder_written_whole(tmp_path / "out") as made:
        (made / "a").write_text("a")
    assert names(tmp_path) == ["out"]


def test_a_storage_clears_the_folders_of_processes_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, signal; from bottleneck_opt.spilling import Storage; storage = Storage(0); "
        "storage.allocate([4]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "TMPDIR": str(tmp_path)})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(names(tmp_path)) == 1
    with Storage(0) as storage:
        assert names(tmp_path) == []
        storage.allocate([4])
        Storage(0)
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []
