"""Write files whole or not at all, and remove what a process that was killed meanwhile left beside them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bottleneck_opt.errors import FileError
from bottleneck_opt.leftovers import remove_leftovers, stamp

_KNOWN = 40  # characters of a name by which its temporary files are known again


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, so that no half of it is ever seen.

    Raises:
        FileError: The folder is missing or cannot be written.
    """
    with file_written_whole(path) as file:
        file.write(content)


@contextmanager
def file_written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path`` to write to; when the block ends well it takes its place.

    Raises:
        FileError: The folder is missing or cannot be written.
    """
    prefix = f".{path.name[:_KNOWN]}"
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # a name that nothing can have is told before anything is written
        remove_leftovers(path.parent, prefix)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{prefix}{stamp()}")
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path}: cannot be written: {_reason(error)}. Choose a folder that exists and is yours."
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {_reason(error)}. Choose another place.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def as_path(given: object, what: str) -> Path:
    """A path from a name.

    Raises:
        FileError: It is no name.
    """
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        raise FileError(
            f"{what}: got {type(given).__name__}; expected the name of a folder as text or pathlib.Path. "
            "Pass for instance 'out'."
        )
    return Path(given)


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder to fill; when the block ends well its files become those of ``target``.

    A new or empty target appears by one rename. In a target that exists, files of the same names are replaced one by
    one and all others stay. When the block fails, the target is as it was.

    Raises:
        FileError: The target is a file or cannot be written.
    """
    prefix = f".{target.name[:_KNOWN]}"
    temporary = target.parent / f"{prefix}{stamp()}{uuid.uuid4().hex}"
    try:  # from before the folder exists: an interrupt at any moment finds what to remove
        remove_leftovers(target.parent, prefix)
        _make_temporary(temporary, target)
        yield temporary
        _move(temporary, target)
    except OSError as error:
        raise FileError(f"{target}: cannot be written: {_reason(error)}. Choose another folder.") from error
    finally:
        _remove(temporary)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # interrupted: finish before it goes on
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _make_temporary(temporary: Path, target: Path) -> None:
    try:
        if target.exists() and not target.is_dir():
            raise FileError(f"{target}: is a file; expected a folder to write to. Choose another name.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "permission denied")
        temporary.mkdir(mode=0o700)
    except (OSError, ValueError) as error:
        raise FileError(f"{target}: cannot be written: {_reason(error)}. Choose a folder that is yours.") from error


def _move(temporary: Path, target: Path) -> None:
    temporary.chmod(0o755)
    if target.exists():
        _replace_files(temporary, target)
    else:
        temporary.replace(target)


def _replace_files(temporary: Path, target: Path) -> None:
    """Move files into a folder; what they replace is kept until all have moved, and put back when one cannot."""
    files = sorted(temporary.iterdir())
    kept = Path(tempfile.mkdtemp(dir=temporary))
    try:
        for file in files:
            place = target / file.name
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{file.name} is a folder there")
            if place.exists():
                place.replace(kept / file.name)
            file.replace(place)
    except BaseException:
        for file in files:
            _put_back(kept / file.name, target / file.name, moved=not file.exists())
        raise


def _put_back(kept: Path, place: Path, *, moved: bool) -> None:
    if kept.exists():
        kept.replace(place)
    elif moved:
        place.unlink()


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def read_bytes(path: Path, what: str) -> bytes:
    """A file's content.

    Raises:
        FileError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path}: {what} cannot be read: {_reason(error)}. Pass the folder that result.save() wrote."
        ) from error
