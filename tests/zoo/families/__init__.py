"""The models, one module a family; each has ``entries()``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from tests.zoo.entries import Entry

FAMILIES = (
    "hand_written", "networks", "yolo", "torchvision", "timm", "smp", "transformers", "diffusers", "monai",
)  # fmt: skip


def entries_of(family: str) -> Iterator[Entry]:
    """The entries of one family.

    Raises:
        ModuleNotFoundError: The package that has these models is not installed.
    """
    try:
        module = importlib.import_module(f"tests.zoo.families.{family}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the zoo's family {family!r} needs the package {error.name!r}, which is not installed here. "
            "Install the versions of constraints.txt as the Makefile does: make .venv/.dev"
        ) from error
    yield from module.entries()


def find_entry(name: str) -> Entry:
    """The entry of that name. Raises KeyError when there is none."""
    family = name.partition("/")[0]
    if family not in FAMILIES:
        raise KeyError(f"{name!r}: got family {family!r}; expected one of {', '.join(FAMILIES)}")
    found = next((entry for entry in entries_of(family) if entry.name == name), None)
    if found is None:
        raise KeyError(f"{name!r}: the family has no such model; python -m tests.zoo --list shows them")
    return found


def list_names(patterns: Iterable[str] = ("*",)) -> list[str]:
    """Names of all entries that one of the patterns matches, family by family."""
    chosen = tuple(patterns)
    names = (entry.name for family in FAMILIES for entry in entries_of(family))
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in chosen)]
