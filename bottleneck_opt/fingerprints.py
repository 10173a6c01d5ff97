"""Tell whether two things are the same: models with their code, data, sites, passes.

A fingerprint is a SHA-256 over everything that decides a result. It is taken over values, not over names: the same
model in another file has the same fingerprint, one with a single other weight has not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import sys
import types
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bottleneck_opt.spilling import Spilled, Stored, open_matrix
from bottleneck_opt.tensor_bytes import bytes_of
from bottleneck_opt.version import __version__

LENGTH = 32
_ROWS = 256
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.memory_format)
_OWN = "bottleneck_opt"
_VERSIONED = ("torch", "builtins", "typing", "abc")  # their versions tell what their classes do


def fingerprint(*parts: object) -> str:
    """A short text that differs wherever anything in the parts does.

    Values, tensors, containers, dataclasses, modules, functions and classes are looked into, whatever they hold. Of
    any other object only its class and its plain attributes count.

    Args:
        parts: What to tell apart.

    Example:
        >>> one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> other.load_state_dict(one.state_dict())
        <All keys matched successfully>
        >>> fingerprint(one) == fingerprint(other), fingerprint(one, 1) == fingerprint(one, 2)
        (True, False)
    """
    digest = _Digest()
    for part in parts:
        digest.tell(part)
    return digest.text()


def describe_surroundings(device: torch.device) -> tuple[str, ...]:
    """What decides the last bits of a result beside model, data and options: versions, device, threads.

    Args:
        device: Where the model runs.
    """
    return (
        __version__, hash_package(_OWN), torch.__version__, platform.python_version(), platform.machine(),
        torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads()), str(device),
        torch.cuda.get_device_name(device) if device.type == "cuda" else "",
    )  # fmt: skip


def describe_pass(each: object) -> tuple[object, ...]:
    """A pass with its options and its code: that of its whole package, or of its class where it is in a script."""
    package = type(each).__module__.partition(".")[0]
    return (each, type(each), "" if package == "__main__" else hash_package(package))


@lru_cache(maxsize=64)
def hash_package(name: str) -> str:
    """SHA-256 over the Python files of an imported package or module; empty where it has none."""
    module = sys.modules.get(name)
    places = [Path(each) for each in getattr(module, "__path__", ())]
    files = [file for place in places for file in sorted(place.rglob("*.py"))]
    if not places and getattr(module, "__file__", None):
        files = [Path(str(module.__file__))]  # type: ignore[union-attr]  # it has a file
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


class _Digest:
    """Walks through values. Modules, classes and functions are walked through once, and known again after that."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._known: dict[int, tuple[int, object]] = {}
        self._inside: list[int] = []

    def text(self) -> str:
        return self._digest.hexdigest()[:LENGTH]

    def tell(self, value: Any) -> None:
        """Add a value."""
        if isinstance(value, _PLAIN):
            self._add(type(value).__name__, repr(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, Spilled | Stored):
            self._add_rows(open_matrix(value))
        elif id(value) in self._known:
            self._add("known", str(self._known[id(value)][0]))
        elif id(value) in self._inside:
            self._add("around", str(self._inside.index(id(value))))
        else:
            self._enter(value)

    def _enter(self, value: Any) -> None:
        if isinstance(value, nn.Module | type | types.FunctionType):  # of other kinds, equal ones may or may not be one
            self._known[id(value)] = (len(self._known), value)  # held, so that nothing else gets its number
        self._inside.append(id(value))
        self._walk(value)
        self._inside.pop()

    def _walk(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._tell_all("mapping", (each for pair in sorted(value.items(), key=_by_name) for each in pair))
        elif isinstance(value, list | tuple):
            self._tell_all("sequence", value)
        elif isinstance(value, set | frozenset):
            self._tell_all("set", sorted(map(repr, value)))
        elif isinstance(value, np.ndarray):
            self._tell_all("array", (str(value.dtype), value.shape, value.tobytes()))
        elif isinstance(value, types.FunctionType):
            self._tell_function(value)
        elif isinstance(value, types.MethodType):
            self._tell_all("method", (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._tell_all("partial", (value.func, value.args, value.keywords))
        elif isinstance(value, types.CodeType):
            self._tell_all("code", (value.co_code, value.co_names, value.co_consts))
        elif isinstance(value, type):
            self._tell_class(value)
        else:
            self._tell_object(value)

    def _tell_object(self, value: Any) -> None:
        self.tell(type(value))
        self.tell(_list_held(value))

    def _tell_function(self, value: types.FunctionType) -> None:
        cells = [_read_cell(cell) for cell in value.__closure__ or ()]
        self._tell_all("function", (value.__code__, value.__defaults__, value.__kwdefaults__, cells))

    def _tell_class(self, value: type) -> None:
        self._add("class", f"{value.__module__}.{value.__qualname__}")
        for each in value.__mro__:
            if each.__module__.partition(".")[0] in _VERSIONED:
                continue
            held = {name: _unwrap(each) for name, each in vars(each).items()}
            self.tell({name: each for name, each in held.items() if isinstance(each, types.FunctionType)})
            self.tell({name: each for name, each in held.items() if not name.startswith("__") and _is_plain(each)})

    def _tell_all(self, what: str, values: Iterable[object]) -> None:
        listed = list(values)
        self._add(what, str(len(listed)))
        for value in listed:
            self.tell(value)

    def _add_tensor(self, value: Tensor) -> None:
        if value.is_meta:
            self._add("shape", f"{value.dtype} {tuple(value.shape)}")
            return
        self._add("tensor", f"{value.dtype} {tuple(value.shape)}")
        plain = value.detach() if value.layout == torch.strided else value.detach().to_dense()
        self._digest.update(bytes_of(plain.resolve_conj().resolve_neg()))

    def _add_rows(self, matrix: Tensor) -> None:
        """As for the tensor of these values, without reading all of it at once."""
        self._add("tensor", f"{matrix.dtype} {tuple(matrix.shape)}")
        for rows in matrix.split(_ROWS):
            self._digest.update(bytes_of(rows))

    def _add(self, what: str, text: str) -> None:
        content = text.encode("utf-8", errors="backslashreplace")
        self._digest.update(f"{what} {len(content)} ".encode() + content)


def _list_held(value: Any) -> dict[str, object]:
    """What an object holds that counts, by name."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    held: dict[str, Any] = getattr(value, "__dict__", {})
    if isinstance(value, nn.Module):
        return {name: list(each.values()) if "_hooks" in name else each for name, each in held.items()}
    return {name: each for name, each in held.items() if _is_plain(each)}


def _by_name(pair: tuple[object, object]) -> str:
    return repr(pair[0])


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _unwrap(held: Any) -> Any:
    """The function behind a property, a static or a class method."""
    if isinstance(held, property):
        return held.fget
    if isinstance(held, functools.cached_property):
        return held.func
    return held.__func__ if isinstance(held, staticmethod | classmethod) else held


def _read_cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
