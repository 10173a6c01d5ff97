"""Keep square matrices in memory up to a limit, and the largest of them in files beyond it.

A spilled matrix is mapped into memory while it is read or added to and at no other time, so that the process never
holds more than one or two of them. Its values are the same bits in a file as in memory: the limit changes no result.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open
from torch import Tensor

from bottleneck_opt.errors import FileError, InputError
from bottleneck_opt.leftovers import remove_leftovers, stamp

_BYTES = 8
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"([0-9]+\.?[0-9]*)\s*([kmgt]i?|)b?", re.IGNORECASE)
_PREFIX = "bottleneck-opt"
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Spilled:
    """A float64 matrix ``(width, width)`` in a file.

    Attributes:
        path: The file.
        width: Rows and columns.
        storage: Whose folder the file is in; the folder lives as long as somebody may read it.
    """

    path: Path
    width: int
    storage: Storage

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.width, self.width)

    def open(self) -> Tensor:
        """The matrix, mapped: what is written to it is written to the file."""
        flat = torch.from_file(
            str(self.path), shared=True, size=self.width**2, dtype=torch.float64, device=torch.device("cpu")
        )
        return flat.view(self.width, self.width)


@dataclass(frozen=True)
class Stored:
    """A float64 matrix ``(width, width)`` in a safetensors file that somebody keeps.

    Attributes:
        path: The file.
        name: The tensor's name in it.
        width: Rows and columns.
        stamp: Size and time of the file when it was checked.
    """

    path: Path
    name: str
    width: int
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path, name: str, width: int) -> Stored:
        """The matrix of this name in a file as it is now."""
        return cls(path, name, width, _stamp(path))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.width, self.width)

    def open(self) -> Tensor:
        """The matrix, mapped for reading. Raises FileError when the file was changed or removed since."""
        if _stamp(self.path) != self.stamp:
            raise FileError(f"{self.path}: was changed or removed while it was used. Run again.")
        with safe_open(self.path, framework="pt") as file:
            matrix: Tensor = file.get_tensor(self.name)
        return matrix


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


Matrix = Tensor | Spilled | Stored


def open_matrix(matrix: Matrix) -> Tensor:
    """The values, in memory or mapped. Keep no reference: a mapping stays as long as there is one."""
    return matrix if isinstance(matrix, Tensor) else matrix.open()


class Storage:
    """Where matrices are kept: in memory while they fit, the rest in files of a temporary folder.

    The folder is made when the first matrix does not fit, under ``TMPDIR``. It is removed by :meth:`close`, by leaving
    the ``with`` block, and otherwise with the last matrix in it or with the process. What a process that was killed
    left there is removed when the next storage with a limit is made.

    Args:
        limit: Bytes that the matrices may take in memory; None sets no limit.

    Example:
        >>> with Storage(limit=100) as storage:
        ...     small, large = storage.allocate([3, 4])
        ...     type(small).__name__, open_matrix(large).shape
        ('Tensor', torch.Size([4, 4]))
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit, self._used, self._count = limit, 0, 0
        self._held: list[Tensor] = []
        self._folder: Path | None = None
        self._remove: weakref.finalize | None = None  # type: ignore[type-arg]  # generic in the stubs only
        if limit is not None:
            with suppress(OSError):  # where there is no temporary folder, nothing is left in it
                remove_leftovers(Path(tempfile.gettempdir()), _PREFIX)

    @property
    def spilled(self) -> int:
        """How many matrices are in files."""
        return self._count

    def allocate(self, widths: Sequence[int]) -> list[Matrix]:
        """A matrix of zeros for each width; the smallest are kept in memory, as many as fit.

        Raises:
            FileError: The disk is full, or there is no folder to write to.
        """
        made: dict[int, Matrix] = {}
        for index in sorted(range(len(widths)), key=lambda each: widths[each]):
            size = _BYTES * widths[index] ** 2
            fits = self._limit is None or self._used + size <= self._limit
            made[index] = self._zeros(widths[index]) if fits else self._spill(widths[index])
        return [made[index] for index in range(len(widths))]

    def _zeros(self, width: int) -> Tensor:
        self._used += _BYTES * width**2
        self._held.append(torch.zeros(width, width, dtype=torch.float64, device="cpu"))
        return self._held[-1]

    def _spill(self, width: int) -> Spilled:
        try:
            path = self._open_folder() / f"{self._count}.bin"
            _reserve(path, _BYTES * width**2)
        except OSError as error:
            raise FileError(
                f"memory: a {width} x {width} covariance does not fit into the limit and cannot be written to "
                f"{self._folder or tempfile.gettempdir()}: {(error.strerror or str(error)).lower()}. "
                "Set TMPDIR to a folder with more room, or raise memory=."
            ) from error
        self._count += 1
        return Spilled(path, width, self)

    def _open_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{stamp()}"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def close(self) -> None:
        """Let go of all matrices, whoever still knows them: none can be read again."""
        for matrix in self._held:
            matrix.set_(torch.UntypedStorage())
        self._held.clear()
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reserve(path: Path, size: int) -> None:
    """A file of zeros that really has its room on the disk: writing to a mapping cannot report that there is none."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        block = bytes(2**20)
        for start in range(0, size, len(block)):
            file.write(block[: size - start])


def read_memory(given: object, *, processes: int = 1) -> int | None:
    """Bytes that statistics may take in memory.

    Args:
        given: ``"2GB"``, ``"500 MiB"``, a number of bytes, or None for half of the memory that is free now.
        processes: How many share the free memory.

    Returns:
        The bytes; None where nothing was given and the machine does not tell what is free.

    Raises:
        InputError: It is something else.

    Example:
        >>> read_memory("2GB"), read_memory("1.5 MiB"), read_memory(1000)
        (2000000000, 1572864, 1000)
    """
    if given is None:
        free = find_free_memory()
        return None if free is None else free // (2 * processes)
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    match = _SIZE.fullmatch(given.strip()) if isinstance(given, str) else None
    if match is None:
        raise InputError(
            f"memory: got {given!r}; expected a size such as '2GB', '500MiB' or a whole number of bytes. "
            "Write for instance memory='2GB', or leave it out to use half of what is free."
        )
    return int(float(match[1]) * _SCALES[match[2].lower()])


def find_free_memory() -> int | None:
    """Bytes of memory that this process may still take: what the machine has free, or its control group if less."""
    found = [free for free in (_read_meminfo(), _read_group()) if free is not None]
    return min(found) if found else None


def _read_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _read_group() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return max(int(limit) - int(used), 0) if limit.isdigit() else None
