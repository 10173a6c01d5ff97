"""Find passes by name: the built-in ones and those of installed plugins come from one entry-point group."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bottleneck_opt.errors import PassError
from bottleneck_opt.pass_options import PassOption, list_options, set_options, split_request
from bottleneck_opt.sites import AnyPass, ChannelPass, Pass, SharingPass

GROUP = "bottleneck_opt.passes"


@dataclass(frozen=True)
class Listed:
    """One installed pass, as ``bottleneck-opt passes`` shows it.

    Attributes:
        name: What it is asked for by.
        summary: The first line of its docstring.
        origin: The distribution that it came with.
        version: The distribution's version.
        defined: Where its class is: ``package.module:Class``.
        default: Whether it is used where no passes are named.
        options: Its options, in order.
        error: Why it cannot be used; empty when it can.
    """

    name: str
    summary: str
    origin: str
    version: str
    defined: str
    default: bool
    options: tuple[PassOption, ...]
    error: str = ""


def find_passes(chosen: Sequence[str | AnyPass] | None) -> tuple[AnyPass, ...]:
    """The passes to run.

    Args:
        chosen: Names and pass objects; None stands for the built-in ones that keep the model's class, so that
            installing a plugin changes no result by itself. A name may set options: ``"tucker:steps=4"``. One string
            names several passes between commas.

    Raises:
        PassError: A name or an option is unknown or given twice, an object is no pass, a plugin cannot be loaded, none
            is left.

    Example:
        >>> find_passes(["reduce", "tucker:steps=4"])
        (Reduce(), Tucker(steps=4))
    """
    if chosen is None:
        chosen = [listed.name for listed in list_passes() if listed.default]
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
        return check_pass_kind(chosen, repr(chosen))
    name, values = split_request(chosen)
    entries = _find_entries()
    known = sorted({entry.name for entry in entries})
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "Install the plugin that has it, or use one of these."
        raise PassError(f"passes: got '{name}'; expected one of {', '.join(known)}. {hint}")
    loaded = _load(next(entry for entry in entries if entry.name == name), entries)
    if isinstance(loaded, str):
        raise PassError(f"pass '{name}' cannot be used: {loaded}. Mend or uninstall the plugin.")
    return set_options(loaded, name, values)


def list_passes() -> tuple[Listed, ...]:
    """Every installed pass with its options and origin, built-in ones first; broken ones with their error."""
    entries = _find_entries()
    return tuple(_describe(entry, entries) for entry in entries)


def _find_entries() -> list[EntryPoint]:
    """Entry points, built-in ones first; of those that share a name all are there."""
    found = entry_points(group=GROUP)
    return sorted(found, key=lambda entry: (not _is_built_in(entry), entry.name, entry.value))


def _is_built_in(entry: EntryPoint) -> bool:
    return entry.value.startswith("bottleneck_opt.")


def _load(entry: EntryPoint, entries: Sequence[EntryPoint]) -> AnyPass | str:
    """The pass, or why it cannot be loaded: a broken plugin must not break the tool."""
    taken = _find_namesake(entry, entries)
    if taken:
        return taken
    try:
        loaded = check_pass_kind(entry.load()(), entry.value)
        name = loaded.name
    except PassError as error:
        return str(error)
    except (Exception, SystemExit) as error:  # importing a stranger's module can raise anything
        return f"{type(error).__name__}: {error}"
    if name != entry.name:
        return f"it is installed as '{entry.name}' but calls itself '{name}': name and entry point must be the same"
    return loaded


def _find_namesake(entry: EntryPoint, entries: Sequence[EntryPoint]) -> str:
    """Who else has an entry's name, in words; empty for the built-in passes, whose names nobody can take."""
    others = [each for each in entries if each.name == entry.name and each is not entry]
    if _is_built_in(entry) or not others:
        return ""
    if any(map(_is_built_in, others)):
        return f"'{entry.name}' is the name of a built-in pass"
    return f"'{entry.name}' is also the name of {others[0].value} ({_origin(others[0])[0]}): neither is used"


def check_pass_kind(candidate: Any, origin: str) -> AnyPass:
    """The candidate, if it is a pass of any kind.

    Args:
        candidate: Anything.
        origin: What to call it in the error.

    Raises:
        PassError: It is no pass.
    """
    if isinstance(candidate, type):
        raise PassError(f"{origin} is a class; expected a pass object. Write {candidate.__name__}() with its options.")
    if not isinstance(candidate, Pass | ChannelPass | SharingPass) or not isinstance(candidate.name, str):
        raise PassError(
            f"{origin} is a {type(candidate).__name__} without a name or a propose method; expected a pass. "
            "Give it both: name = '...' and propose(site), or eliminate(site) and counts to drop channels, or "
            "share(sites, most) and subsets to share a bottleneck."
        )
    return candidate


def _describe(entry: EntryPoint, entries: Sequence[EntryPoint]) -> Listed:
    origin, version = _origin(entry)
    loaded = _load(entry, entries)
    if isinstance(loaded, str):
        return Listed(entry.name, "", origin, version, entry.value, default=False, options=(), error=loaded)
    summary = (type(loaded).__doc__ or "").strip().partition("\n")[0]
    default = _is_built_in(entry) and not isinstance(loaded, SharingPass)
    return Listed(entry.name, summary, origin, version, entry.value, default, list_options(loaded))


def _origin(entry: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point came with."""
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")
