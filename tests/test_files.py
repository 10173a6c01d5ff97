from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from bottleneck_opt.errors import FileError
from bottleneck_opt.files import as_path, folder_written_whole, read_bytes, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_in_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"b/a\.json: cannot be written: no such file or directory\. Choose a folder"):
        write_whole(tmp_path / "b" / "a.json", b"")


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json" / "inside").mkdir(parents=True)
    with pytest.raises(FileError, match=r"a\.json: cannot be written: .*\. Choose another place"):
        write_whole(tmp_path / "a.json", b"")
    assert names(tmp_path) == ["a.json"]


def test_an_interrupted_file_leaves_the_old_one_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def interrupted(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdopen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with folder_written_whole(target) as made:
        (made / "a").write_text("a")
        assert not target.exists()
    assert names(target) == ["a"]
    assert names(tmp_path) == ["out"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_files_of_a_folder_are_replaced_and_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "b").write_text("other")
    with folder_written_whole(target) as made:
        (made / "a").write_text("new")
        assert (target / "a").read_text() == "old"
    assert (target / "a").read_text() == "new"
    assert (target / "b").read_text() == "other"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failing_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with folder_written_whole(tmp_path / "out") as made:
            (made / "a").write_text("a")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == []


def test_a_folder_in_the_place_of_a_file_of_ours_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "b" / "inside").mkdir(parents=True)
    (target / "a").write_text("old")

    def write() -> None:
        with folder_written_whole(target) as made:
            for name in ("a", "b", "0"):
                (made / name).write_text("new")

    with pytest.raises(FileError, match=r"out: cannot be written: b is a folder there\. Choose another folder"):
        write()
    assert (target / "a").read_text() == "old"
    assert names(target) == ["a", "b"]
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_folder_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with folder_written_whole(tmp_path / "out") as made:
        (made / "a").write_text("a")
    assert names(tmp_path / "real") == ["a"]


def test_the_current_folder_may_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with folder_written_whole(Path()) as made:
        (made / "a").write_text("a")
    assert names(tmp_path / "here") == ["a"]


def test_reading_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"x: the plan cannot be read: no such file or directory\. Pass the folder"):
        read_bytes(tmp_path / "x", "the plan")
    with pytest.raises(FileError, match=r"the plan cannot be read: is a directory"):
        read_bytes(tmp_path, "the plan")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a\0b/c"])
def test_an_impossible_name_is_told(tmp_path: Path, name: str) -> None:
    def write() -> None:
        with folder_written_whole(tmp_path / name):
            raise AssertionError("there is no such folder")

    with pytest.raises(FileError, match=r"cannot be written: (file name too long|embedded null \w+)\. Choose a folder"):
        write()
    with pytest.raises(FileError, match=r"cannot be written: (file name too long|embedded null \w+)\. Choose a folder"):
        write_whole(tmp_path / name, b"")
    with pytest.raises(FileError, match=r"the plan cannot be read: (file name too long|embedded null \w+)\. Pass the"):
        read_bytes(tmp_path / name, "the plan")
    assert names(tmp_path) == []


def test_a_name_as_long_as_possible_is_written(tmp_path: Path) -> None:
    with folder_written_whole(tmp_path / ("x" * 255)) as made:
        (made / "a").write_text("a")
    assert names(tmp_path) == ["x" * 255]


@pytest.mark.parametrize("wrong", [None, 3, b"out"])
def test_what_is_no_name_is_refused(wrong: Any) -> None:
    with pytest.raises(FileError, match=rf"^save: got {type(wrong).__name__}; expected the name of a folder"):
        as_path(wrong, "save")
    assert as_path("out", "save") == as_path(Path("out"), "save") == Path("out")


def test_an_interrupt_right_after_the_folder_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def interrupted(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        mkdir(path, mode, parents, exist_ok)
        if not parents:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), folder_written_whole(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_an_interrupt_while_cleaning_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, calls = shutil.rmtree, list[Path]()

    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), folder_written_whole(tmp_path / "out") as made:
        (made / "a").write_text("a")
    assert names(tmp_path) == ["out"]
