"""Options from a TOML file, for ``bottleneck-opt optimize`` and what shares them; the command line wins."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bottleneck_opt.errors import FileError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = "pyproject.toml"
TABLE = "bottleneck-opt"


@dataclass(frozen=True)
class Known:
    """An option that a file may set.

    Attributes:
        name: Its parameter's name.
        spelled: How it is spelled in a file: as on the command line, without the dashes in front.
        repeated: Whether it may be given several times.
    """

    name: str
    spelled: str
    repeated: bool


def read_config(path: Path | None, known: Sequence[Known]) -> dict[str, Any]:
    """The options in a file, by parameter name.

    Args:
        path: A TOML file with the options, or a pyproject.toml with a table ``[tool.bottleneck-opt]``. None looks for
            that table in the pyproject.toml of the current folder, which may lack it.
        known: What may be set.

    Raises:
        FileError: The file cannot be read, or sets something unknown or of the wrong kind.
    """
    source = Path(PROJECT) if path is None else path
    if path is None and not source.is_file():
        return {}
    document = _read(source)
    if source.name == PROJECT:
        tools = document.get("tool", {})
        if path is not None and TABLE not in tools:
            raise FileError(f"{source}: has no table [tool.{TABLE}]. Add it, or pass a file with nothing but options.")
        document = tools.get(TABLE, {})
    if not isinstance(document, dict):
        raise FileError(f"{source}: [tool.{TABLE}] is no table. Write the options below a line [tool.{TABLE}].")
    options = {each.spelled: each for each in known}
    return {
        (option := _find(key, options, source)).name: _read_value(value, option, source)
        for key, value in document.items()
    }


def _read(source: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"--config {source}: cannot be read: {error}. Name a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"--config {source}: is not TOML: {error}. Write lines such as budget = 0.5.") from error
    return document


def _find(key: str, options: Mapping[str, Known], source: Path) -> Known:
    spelled = key.replace("_", "-")
    if spelled in options:
        return options[spelled]
    close = difflib.get_close_matches(spelled, list(options), n=1)
    hint = f"Did you mean '{close[0]}'?" if close else "Leave it out."
    raise FileError(f"--config {source}: unknown option '{key}'; expected one of {', '.join(sorted(options))}. {hint}")


def _read_value(value: Any, option: Known, source: Path) -> Any:
    """The value as the command line has it: text, a number or a switch; a list of them where it may be repeated.

    Example:
        >>> _read_value({"macs": 0.5, "params": "10M"}, Known("budget", "budget", False), Path("my.toml"))
        'macs=0.5,params=10M'
    """
    if option.repeated:
        return [_read_plain(each, option, source) for each in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        return ",".join(str(_read_plain(each, option, source)) for each in value)
    if isinstance(value, dict):
        return ",".join(f"{key}={_read_plain(each, option, source)}" for key, each in value.items())
    return _read_plain(value, option, source)


def _read_plain(value: Any, option: Known, source: Path) -> str | int | float | bool:
    if isinstance(value, str | int | float):
        return value
    raise FileError(
        f"--config {source}: {option.spelled}: got {value!r}; expected text or a number. "
        f"Write it as on the command line, after --{option.spelled}."
    )
