"""Find passes by name: the built-in ones and those of installed plugins come from one entry-point group."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bottleneck_opt.errors import PassError
from bottleneck_opt.sites import AnyPass, ChannelPass, Pass, SharingPass

GROUP = "bottleneck_opt.passes"


@dataclass(frozen=True)
class Listed:
    """One pass as ``bottleneck-opt passes`` shows it; ``error`` says why it cannot be used, if it cannot."""

    name: str
    summary: str
    origin: str
    options: tuple[str, ...]
    error: str = ""


def find_passes(chosen: Sequence[str | AnyPass] | None) -> tuple[AnyPass, ...]:
    """The passes to run.

    Args:
        chosen: Names and pass objects; None stands for the built-in ones that keep the model's class, so that
            installing a plugin changes no result by itself.

    Raises:
        PassError: A name is unknown or given twice, an object is no pass, a plugin cannot be loaded, none is left.

    Example:
        >>> [each.name for each in find_passes(["reduce"])]
        ['reduce']
    """
    if chosen is None:
        chosen = [name for name, entry in _entries().items() if _is_built_in(entry) and _keeps_class(entry)]
    if isinstance(chosen, str):
        chosen = [name.strip() for name in chosen.split(",")]
    if not chosen:
        raise PassError("passes: the list is empty; expected at least one. Leave passes= out to use the built-in ones.")
    found = tuple(_find(each) for each in chosen)
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise PassError(f"passes: got the names {names}; expected each once, so that a plan can tell them apart.")
    return found


def _find(chosen: str | AnyPass) -> AnyPass:
    if not isinstance(chosen, str):
        return _check(chosen, repr(chosen))
    entries = _entries()
    if chosen not in entries:
        close = difflib.get_close_matches(chosen, list(entries), n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "Install the plugin that has it, or use one of these."
        raise PassError(f"passes: got '{chosen}'; expected one of {', '.join(sorted(entries))}. {hint}")
    loaded = _load(entries[chosen])
    if isinstance(loaded, str):
        raise PassError(f"pass '{chosen}' cannot be used: {loaded}. Mend or uninstall the plugin.")
    return loaded


def list_passes() -> tuple[Listed, ...]:
    """Every installed pass with its options and origin; broken ones with their error."""
    return tuple(_describe(entry) for entry in _entries().values())


def _entries() -> dict[str, EntryPoint]:
    """Entry points by name, built-in ones first; no plugin can take a built-in pass's name."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: (_is_built_in(entry), entry.name))
    named = {entry.name: entry for entry in found}
    return dict(sorted(named.items(), key=lambda item: (not _is_built_in(item[1]), item[0])))


def _is_built_in(entry: EntryPoint) -> bool:
    return entry.value.startswith("bottleneck_opt.")


def _keeps_class(entry: EntryPoint) -> bool:
    return not isinstance(_load(entry), SharingPass)


def _load(entry: EntryPoint) -> AnyPass | str:
    """The pass, or why it cannot be loaded: a broken plugin must not break the tool."""
    try:
        return _check(entry.load()(), entry.value)
    except PassError as error:
        return str(error)
    except Exception as error:  # importing a stranger's module can raise anything
        return f"{type(error).__name__}: {error}"


def _check(candidate: Any, origin: str) -> AnyPass:
    if isinstance(candidate, type):
        raise PassError(f"{origin} is a class; expected a pass object. Write {candidate.__name__}() with its options.")
    if not isinstance(candidate, Pass | ChannelPass | SharingPass) or not isinstance(candidate.name, str):
        raise PassError(
            f"{origin} is a {type(candidate).__name__} without a name or a propose method; expected a pass. "
            "Give it both: name = '...' and propose(site), or eliminate(site) and counts to drop channels, or "
            "share(sites, most) and subsets to share a bottleneck."
        )
    return candidate


def _describe(entry: EntryPoint) -> Listed:
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
    loaded = _load(entry)
    if isinstance(loaded, str):
        return Listed(entry.name, "", origin, (), loaded)
    summary = (type(loaded).__doc__ or "").strip().partition("\n")[0]
    return Listed(entry.name, summary, origin, _options(loaded))


def _options(loaded: AnyPass) -> tuple[str, ...]:
    if not is_dataclass(loaded):
        return ()
    return tuple(
        f"{field.name}: {field.type}" + ("" if field.default is MISSING else f" = {field.default!r}")
        for field in fields(loaded)
    )
