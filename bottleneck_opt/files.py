"""Write files whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bottleneck_opt.errors import FileError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it, so that no half of it is ever seen.

    Raises:
        FileError: The folder is missing or cannot be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written: {_reason(error)}. Choose a folder that exists and is yours."
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {_reason(error)}. Choose another place.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """A temporary folder to fill; when the block ends well its files become those of ``target``.

    A new or empty target appears by one rename. In a target that exists, files of the same names are replaced one by
    one and all others stay. When the block fails, the target is as it was.

    Raises:
        FileError: The target is a file or cannot be written.
    """
    temporary = _make_temporary(target)
    try:
        yield temporary
        _move(temporary, target)
    except OSError as error:
        raise FileError(f"{target}: cannot be written: {_reason(error)}. Choose another folder.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_temporary(target: Path) -> Path:
    if target.exists() and not target.is_dir():
        raise FileError(f"{target}: is a file; expected a folder to write to. Choose another name.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "permission denied")
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
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


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def read_bytes(path: Path, what: str) -> bytes:
    """A file's content.

    Raises:
        FileError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(
            f"{path}: {what} cannot be read: {_reason(error)}. Pass the folder that result.save() wrote."
        ) from error
