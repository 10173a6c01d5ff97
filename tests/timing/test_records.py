from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from bottleneck_opt.timing.records import FOLDER_VARIABLE, Records, timings_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "times.sqlite"


def test_what_was_kept_is_found_again_by_another_process(file: Path) -> None:
    assert Records(file).keep("conv", 1200) == 1200
    assert Records(file).find("conv") == 1200
    assert Records(file).find("linear") is None


def test_the_first_to_write_decides(file: Path) -> None:
    one, other = Records(file), Records(file)
    one.keep("conv", 1200)
    assert other.keep("conv", 1300) == 1200
    assert other.find("conv") == 1200


def _keep_many(file: Path, value: int) -> None:
    records = Records(file)
    for number in range(50):
        records.keep(str(number), value)


def test_processes_that_write_at_once_agree(file: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_keep_many, args=(file, value)) for value in (1, 2)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    records = Records(file)
    assert {records.find(str(number)) for number in range(50)} <= {1, 2}


@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_file_that_is_no_database_is_left_alone_and_told(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    records = Records(file)
    assert records.keep("conv", 1200) == 1200
    assert records.find("conv") == 1200
    assert bool(records.fault) == bool(content)
    assert content in file.read_bytes()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    records = Records(tmp_path / "file" / "times.sqlite")
    assert "cannot be used" in records.fault
    assert records.keep("conv", 3) == records.find("conv") == 3


@pytest.mark.parametrize("stored", ["'soon'", "0", "-5", "NULL"])
def test_what_is_no_time_is_not_believed(file: Path, stored: str) -> None:
    Records(file).keep("conv", 1200)
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE times")
        connection.execute("CREATE TABLE times (what TEXT PRIMARY KEY, nanoseconds)")
        connection.execute(f"INSERT INTO times VALUES ('conv', {stored})")
    connection.close()
    assert Records(file).find("conv") is None


def test_nothing_is_written_without_a_file() -> None:
    records = Records(None)
    assert records.keep("conv", 7) == records.find("conv") == 7


def test_a_variable_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert timings_file().parent == tmp_path
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert timings_file().parent.name == "bottleneck_opt"
