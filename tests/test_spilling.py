from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bottleneck_opt import FileError, InputError, spilling
from bottleneck_opt.spilling import Spilled, Storage, find_free_memory, open_matrix, read_memory


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary folders are made in here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_smallest_matrices_stay_in_memory() -> None:
    with Storage(limit=8 * (9 + 16)) as storage:
        made = storage.allocate([5, 3, 4, 6])
        assert [isinstance(each, Spilled) for each in made] == [True, False, False, True]
        assert [each.shape[0] for each in made] == [5, 3, 4, 6]
        assert storage.spilled == 2


def test_without_a_limit_nothing_is_written(temporary: Path) -> None:
    Storage().allocate([100])
    assert list(temporary.iterdir()) == []


def test_a_spilled_matrix_starts_with_zeros_and_keeps_what_is_written_to_it() -> None:
    with Storage(limit=0) as storage:
        (matrix,) = storage.allocate([3])
        opened = open_matrix(matrix)
        assert float(opened.abs().max()) == 0
        opened += torch.arange(9.0).view(3, 3)
        del opened
        assert torch.equal(open_matrix(matrix), torch.arange(9.0, dtype=torch.float64).view(3, 3))


def test_the_folder_goes_when_the_storage_is_closed(temporary: Path) -> None:
    def fail() -> None:
        with Storage(limit=0) as storage:
            storage.allocate([3])
            assert len(list(temporary.iterdir())) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(temporary.iterdir()) == []


def test_a_closed_storage_keeps_no_matrix_in_memory() -> None:
    with Storage(limit=8 * 9) as storage:
        kept, spilled = storage.allocate([3, 4])
        alias = open_matrix(kept)
        storage.close()
        assert alias.untyped_storage().nbytes() == 0
        with pytest.raises((FileError, RuntimeError)):
            open_matrix(spilled)


def test_the_folder_goes_with_the_last_matrix(temporary: Path) -> None:
    kept = Storage(limit=0).allocate([3])
    gc.collect()
    assert len(list(temporary.iterdir())) == 1
    kept.clear()
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with Storage(limit=0) as storage, pytest.raises(FileError, match=r"3 x 3 .*no space left on device.*TMPDIR"):
        storage.allocate([3])


def test_room_is_reserved_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with Storage(limit=0) as storage:
        (matrix,) = storage.allocate([400])
        assert isinstance(matrix, Spilled)
        assert matrix.path.stat().st_size == 8 * 400**2


@pytest.mark.parametrize(
    ("given", "expected"), [("2GB", 2 * 10**9), ("2 g", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("7", 7), (0, 0), (9, 9)]
)
def test_sizes_are_read(given: object, expected: int) -> None:
    assert read_memory(given) == expected


@pytest.mark.parametrize("given", ["", "much", "-1GB", "2 parsecs", -1, 1.5, True])
def test_what_is_no_size_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"^memory: got .*expected a size"):
        read_memory(given)


def test_half_of_what_is_free_is_shared_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "find_free_memory", lambda: 1000)
    assert read_memory(None) == 500
    assert read_memory(None, processes=4) == 125
    monkeypatch.setattr(spilling, "find_free_memory", lambda: None)
    assert read_memory(None) is None


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert find_free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert find_free_memory() != 3000
