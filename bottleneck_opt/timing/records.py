"""Measured times kept on disk, so that a layer is timed once on a machine, and the same plan is found again."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import platformdirs

FORMAT = 2  # one more whenever the same thing would be timed in another way
FOLDER_VARIABLE = "BOTTLENECK_OPT_CACHE"
_MAKE = "CREATE TABLE IF NOT EXISTS times (what TEXT PRIMARY KEY, nanoseconds INTEGER NOT NULL) WITHOUT ROWID"
_READ = "SELECT nanoseconds FROM times WHERE what = ?"
_ADD = "INSERT OR IGNORE INTO times VALUES (?, ?)"
_FAST = "PRAGMA synchronous = OFF"  # a time that a power failure takes is measured again
_SECONDS = 5.0


class Records:
    """Nanoseconds by what was timed. The first process that writes a value decides it; all others read that one.

    A file that cannot be used is left alone: times are then remembered as long as this object lives, and ``fault``
    says why.

    Attributes:
        path: The file; None to keep nothing on disk.
        fault: Why nothing is kept on disk; empty where it is.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.fault = ""
        self._known: dict[str, int] = {}
        self._ask(_MAKE)

    def find(self, what: str) -> int | None:
        """The time of something, or None where it is not known."""
        if what not in self._known:
            found = next((row[0] for row in self._ask(_READ, (what,))), None)
            if isinstance(found, int) and found > 0:
                self._known[what] = found
        return self._known.get(what)

    def keep(self, what: str, nanoseconds: int) -> int:
        """Write a time down, unless another process has done so; what is known from now on."""
        self._ask(_ADD, (what, nanoseconds))
        return self._known.setdefault(what, self.find(what) or nanoseconds)

    def _ask(self, statement: str, values: tuple[str | int, ...] = ()) -> list[tuple[object, ...]]:
        """Run a statement in a transaction of its own; nothing where the file cannot be used."""
        if self.path is None:
            return []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_SECONDS)) as connection, connection:
                connection.execute(_FAST)
                return connection.execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:  # a full or read-only disk, a lock that is not let go, no database
            self.fault = f"{self.path} cannot be used: {error}; delete it, or free its folder"
            self.path = None
            return []


def timings_file() -> Path:
    """Where times are kept: in the user's cache folder, or the one that ``BOTTLENECK_OPT_CACHE`` names."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else Path(platformdirs.user_cache_dir("bottleneck_opt", appauthor=False))
    return folder / f"timings-{FORMAT}.sqlite"
