"""The options of a pass: the fields of its dataclass, described for people and set from text."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from bottleneck_opt.errors import PassError

_PLAIN = (bool, int, float, str)
_NOTHING = "none"
_Configured = TypeVar("_Configured")


@dataclass(frozen=True)
class PassOption:
    """One option of a pass.

    Attributes:
        name: The field's name.
        type: Its type as Python writes it: ``int``.
        default: Its default as text; empty where there is none.
    """

    name: str
    type: str
    default: str

    def __str__(self) -> str:
        """As a dataclass field is written: ``steps: int = 8``."""
        return f"{self.name}: {self.type}" + (f" = {self.default}" if self.default else "")


def list_options(owner: object) -> tuple[PassOption, ...]:
    """The options of a pass, in the order of its fields; none where it is no dataclass.

    Example:
        >>> from bottleneck_opt.passes.tucker import Tucker
        >>> [str(option) for option in list_options(Tucker())]
        ['steps: int = 8']
    """
    return tuple(
        PassOption(field.name, _write_type(field.type), "" if field.default is MISSING else repr(field.default))
        for field in _fields(owner)
    )


def _write_type(annotation: object) -> str:
    """A field's type as it is written; it is a class where the pass's file does not postpone its annotations.

    Example:
        >>> _write_type(int), _write_type("int | None"), _write_type(int | None)
        ('int', 'int | None', 'int | None')
    """
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def split_request(text: str) -> tuple[str, dict[str, str]]:
    """The name and the option values of a pass as it is asked for: ``name`` or ``name:option=value:option=value``.

    Raises:
        PassError: A part is no ``option=value``, or an option is given twice.

    Example:
        >>> split_request("tucker:steps=4")
        ('tucker', {'steps': '4'})
    """
    name, *parts = (part.strip() for part in text.split(":"))
    values: dict[str, str] = {}
    for part in parts:
        option, equals, value = (each.strip() for each in part.partition("="))
        if not (option and equals and value) or option in values:
            raise PassError(
                f"passes: got '{text}'; expected name:option=value, each option once, as in tucker:steps=4. "
                "Write it so; several passes are separated by commas."
            )
        values[option] = value
    return name, values


def set_options(owner: _Configured, name: str, values: Mapping[str, str]) -> _Configured:
    """A copy of a pass with some options set from text.

    Args:
        owner: The pass; it is not changed.
        name: What it is called.
        values: Text by option: ``4``, ``0.5``, ``true``, ``none``.

    Raises:
        PassError: There is no such option, the text is no value of its type, or the pass refuses it.

    Example:
        >>> from bottleneck_opt.passes.tucker import Tucker
        >>> set_options(Tucker(), "tucker", {"steps": "4"})
        Tucker(steps=4)
    """
    if not values:
        return owner
    parsed = {option: _parse(owner, name, option, text) for option, text in values.items()}
    try:
        return typing.cast(_Configured, dataclasses.replace(typing.cast(Any, owner), **parsed))
    except Exception as error:  # a stranger's own check of the values can raise anything
        given = ", ".join(f"{option}={text}" for option, text in values.items())
        raise PassError(
            f"pass '{name}' does not take {given}: {error}. Give it other values, or leave them out."
        ) from error


def find_option_fault(owner: object) -> str:
    """Why the options of a pass cannot be told and set by name, in words; empty when they can."""
    if not dataclasses.is_dataclass(owner) or isinstance(owner, type):
        return "it is no dataclass, so its options cannot be told"
    if not type(owner).__dataclass_params__.frozen:  # type: ignore[attr-defined]  # known to dataclasses only
        return "its dataclass is not frozen"
    try:
        hints = _hints(owner)
    except Exception as error:  # annotations can name anything
        return f"the types of its fields cannot be read ({type(error).__name__}: {error})"
    return next((fault for field in _fields(owner) if (fault := _find_field_fault(field, hints[field.name]))), "")


def _find_field_fault(field: Field[Any], hint: Any) -> str:
    if field.default is MISSING:
        return f"its field '{field.name}' has no plain default value"
    if not _is_plain(hint):
        return f"its field '{field.name}' is a {_write_type(field.type)}, which cannot be written on a command line"
    try:
        TypeAdapter(hint).validate_python(field.default, strict=True)
    except ValidationError:
        written = f"{field.name}: {_write_type(field.type)}"
        return f"its field '{written}' has the default {field.default!r}, which is of another type"
    return ""


def _is_plain(hint: Any) -> bool:
    """Whether a type has values that are one word: a plain one, a Literal of these, or any of several."""
    if get_origin(hint) is Literal:
        return all(type(each) in _PLAIN for each in get_args(hint))
    if get_origin(hint) in (typing.Union, types.UnionType):
        return all(_is_plain(each) for each in get_args(hint))
    return hint in (*_PLAIN, types.NoneType)


def _parse(owner: object, name: str, option: str, text: str) -> Any:
    known = [field.name for field in _fields(owner)]
    if option not in known:
        close = difflib.get_close_matches(option, known, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "bottleneck-opt passes lists them."
        raise PassError(f"pass '{name}': got the option '{option}'; expected {_one_of(known)}. {hint}")
    wanted = _hints(owner)[option]
    if text.lower() == _NOTHING and types.NoneType in get_args(wanted):
        return None
    try:
        return TypeAdapter(wanted).validate_strings(text)
    except ValidationError as error:
        shown = next(str(each) for each in list_options(owner) if each.name == option)
        raise PassError(
            f"pass '{name}': got {option}={text}; expected a value for '{shown}'. {error.errors()[0]['msg']}."
        ) from error


def _one_of(known: list[str]) -> str:
    return f"one of {', '.join(known)}" if known else "none, it has no options"


def _fields(owner: object) -> tuple[Field[Any], ...]:
    known = dataclasses.is_dataclass(owner) and not isinstance(owner, type)
    return tuple(field for field in dataclasses.fields(typing.cast(Any, owner)) if field.init) if known else ()


def _hints(owner: object) -> dict[str, Any]:
    return typing.get_type_hints(type(owner))
