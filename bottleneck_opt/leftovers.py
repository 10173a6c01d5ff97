"""Temporary files and folders that killed processes left behind: named so that they are known, and removed.

The name says which process made it: on which machine, its number, and when it started, as numbers are given again. Only
what belongs to a process that is surely gone is removed. What cannot be told, as on a system that does not list its
processes or for a folder that several machines share, is left alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from functools import lru_cache
from pathlib import Path

_STAMP = re.compile(r"\.([0-9a-f]{8})-([0-9]+)-([0-9]+)\.")
_PROCESSES = Path("/proc")
_UNKNOWN = 0


def stamp() -> str:
    """What names the process that runs: ``.1a2b3c4d-4242-987654.``.

    Example:
        >>> _STAMP.fullmatch(stamp()) is not None
        True
    """
    number = os.getpid()
    return f".{_hash_place()}-{number}-{_find_start(number)}."


def remove_leftovers(folder: Path, prefix: str) -> int:
    """Remove what processes that are gone left in a folder.

    Args:
        folder: Where to look; nothing below it is looked at, and it need not exist.
        prefix: What the names start with.

    Returns:
        How many files and folders were removed.
    """
    try:
        found = [each for each in folder.iterdir() if each.name.startswith(prefix) and _is_left(each)]
    except (OSError, ValueError):  # it is not there, or no folder of ours, or cannot have this name
        return 0
    return sum(map(_remove, found))


def _is_left(path: Path) -> bool:
    match = _STAMP.search(path.name)
    return match is not None and match[1] == _hash_place() and _is_gone(int(match[2]), int(match[3]))


def _is_gone(number: int, start: int) -> bool:
    """Whether there is no process of this number, or one that started at another time; False where nobody can tell."""
    if os.name != "posix":  # asking by a signal would end the process there
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return False
    now = _find_start(number)
    return _UNKNOWN not in (start, now) and now != start


def _find_start(number: int) -> int:
    """When a process started, in ticks of the machine's clock; 0 where the system does not tell."""
    try:
        status = (_PROCESSES / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
        return int(status.rpartition(")")[2].split()[19])  # the name before it may hold blanks and brackets
    except (OSError, ValueError, IndexError):
        return _UNKNOWN


@lru_cache(maxsize=1)
def _hash_place() -> str:
    """The machine, and the container where it is in one: numbers of processes mean nothing elsewhere."""
    try:
        container = str((_PROCESSES / "self" / "ns" / "pid").readlink())
    except OSError:
        container = ""
    return hashlib.sha256(f"{platform.node()} {container}".encode()).hexdigest()[:8]


def _remove(path: Path) -> bool:
    try:
        found = path.lstat()
        if hasattr(os, "getuid") and found.st_uid != os.getuid():
            return False
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:  # another process removed it first, or it is in use
        return False
    return True
