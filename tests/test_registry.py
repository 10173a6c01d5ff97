from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest

import bottleneck_opt as bo
from bottleneck_opt import registry
from bottleneck_opt.errors import PassError
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.passes.select import Select
from bottleneck_opt.passes.spatial import Spatial
from bottleneck_opt.passes.tucker import Tucker
from bottleneck_opt.registry import find_passes, list_passes
from bottleneck_opt.sites import Option, Pass, Site


@dataclass(frozen=True)
class Stranger:
    """A pass of somebody else's.

    More words.
    """

    name: ClassVar[str] = "stranger"
    strength: float = 0.5
    steps: int | None = None
    how: Literal["fast", "well"] = "well"
    quietly: bool = False

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}; expected at least 0")

    def propose(self, site: Site) -> Sequence[Option] | None:
        return None


class Nameless:
    """Not a pass."""

    def propose(self, site: Site) -> None:
        return None


@dataclass(frozen=True)
class Demanding(Stranger):
    """Cannot be made without being told something."""

    name: ClassVar[str] = "demanding"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)


def explode() -> Stranger:
    raise RuntimeError("cannot start")


def leave() -> Stranger:
    sys.exit("goodbye")


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value if ":" in value else f"tests.test_registry:{value}", registry.GROUP)


def install(monkeypatch: pytest.MonkeyPatch, *found: EntryPoint) -> None:
    """Let these be all entry points that there are, beside the built-in ``reduce``."""
    built_in = entry("reduce", "bottleneck_opt.passes.reduce:Reduce")
    monkeypatch.setattr(registry, "entry_points", lambda group: [*found, built_in])


BROKEN = {
    "broken": ("explode", "RuntimeError: cannot start"),
    "leaving": ("leave", "SystemExit: goodbye"),
    "missing": ("no_such_package:Pass", "ModuleNotFoundError: No module named 'no_such_package'"),
    "gone": ("no_such_name", "AttributeError: module 'tests.test_registry' has no attribute 'no_such_name'"),
    "odd": ("Nameless", "tests.test_registry:Nameless is a Nameless without a name"),
    "demanding": ("Demanding", "TypeError: .*missing 1 required positional argument: 'rank'"),
    "alias": ("Stranger", "it is installed as 'alias' but calls itself 'stranger'"),
}


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound plugin beside the built-in passes, and one for everything that can be wrong."""
    broken = [entry(name, value) for name, (value, _) in BROKEN.items()]
    install(monkeypatch, entry("stranger", "Stranger"), *broken)


def test_built_in_passes_come_from_the_entry_points() -> None:
    assert [type(each) for each in find_passes(None)] == [Expand, Reduce, Select, Spatial, Tucker]


def test_names_and_objects_may_be_mixed_and_keep_their_order() -> None:
    mine = Stranger(0.1)
    assert find_passes(["reduce", mine, "expand"]) == (Reduce(), mine, Expand())
    assert find_passes("expand, reduce") == (Expand(), Reduce())
    assert isinstance(mine, Pass)


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(
        PassError,
        match=r"^passes: got 'redcue'; expected one of expand, reduce, select, shared, spatial, tucker\. "
        r"Did you mean 'reduce'\?",
    ):
        find_passes(["redcue"])
    with pytest.raises(PassError, match=r"got 'zzzz'; expected one of .*tucker\. Install the plugin"):
        find_passes(["zzzz"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "the list is empty"),
        ([Reduce], r"is a class; expected a pass object\. Write Reduce\(\)"),
        ([Nameless()], "is a Nameless without a name or a propose method"),
        ([3], "is a int without a name"),
        ([None], "is a NoneType without a name"),
    ],
)
def test_what_is_no_pass_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        find_passes(wrong)


def test_two_passes_of_one_name_are_refused() -> None:
    with pytest.raises(PassError, match="expected each once"):
        find_passes(["reduce", Reduce()])


@pytest.mark.usefixtures("plugins")
def test_plugins_run_only_when_they_are_named_and_broken_ones_break_no_other() -> None:
    assert find_passes(None) == (Reduce(),)
    assert find_passes(["reduce", "stranger"]) == (Reduce(), Stranger())


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_says_why_in_the_list_and_when_it_is_asked_for(name: str) -> None:
    listed = {each.name: each for each in list_passes()}
    assert re.match(BROKEN[name][1], listed[name].error)
    assert [each.name for each in listed.values() if not each.error] == ["reduce", "stranger"]
    with pytest.raises(PassError, match=rf"^pass '{name}' cannot be used: {BROKEN[name][1]}.*Mend or uninstall"):
        find_passes([name])


def test_no_plugin_takes_the_name_of_a_built_in_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, entry("reduce", "Stranger"))
    assert find_passes(["reduce"]) == (Reduce(),)
    assert [each.error for each in list_passes()] == ["", "'reduce' is the name of a built-in pass"]


def test_of_two_plugins_with_one_name_neither_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, entry("stranger", "Stranger"), entry("stranger", "Demanding"))
    errors = [each.error for each in list_passes() if each.name == "stranger"]
    assert len(errors) == 2
    assert all(error.startswith("'stranger' is also the name of tests.test_registry:") for error in errors)
    with pytest.raises(PassError, match="neither is used"):
        find_passes(["stranger"])


@pytest.mark.usefixtures("plugins")
def test_the_list_shows_options_and_where_a_pass_is_defined() -> None:
    listed = {each.name: each for each in list_passes()}
    assert next(iter(listed)) == "reduce"
    found = listed["stranger"]
    assert (found.summary, found.defined) == ("A pass of somebody else's.", "tests.test_registry:Stranger")
    assert list(map(str, found.options)) == [
        "strength: float = 0.5",
        "steps: int | None = None",
        "how: Literal['fast', 'well'] = 'well'",
        "quietly: bool = False",
    ]
    assert listed["reduce"].default
    assert not found.default


def test_installed_passes_say_where_they_are_from() -> None:
    built_in = [each for each in list_passes() if each.defined.startswith("bottleneck_opt.")]
    assert {(each.origin, each.version) for each in built_in} == {("bottleneck-opt", bo.__version__)}


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("stranger:strength=2", Stranger(2.0)),
        ("stranger: steps = 4 : how=fast", Stranger(steps=4, how="fast")),
        ("stranger:steps=none:quietly=true", Stranger(quietly=True)),
        ("reduce, stranger:strength=1e-3", Stranger(0.001)),
    ],
)
def test_options_are_set_by_name(asked: str, expected: Stranger) -> None:
    assert find_passes(asked)[-1] == expected
    assert find_passes(asked.split(","))[-1] == expected


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("stranger:strenght=1", r"got the option 'strenght'; expected one of strength, .*Did you mean 'strength'\?"),
        ("reduce:rank=1", r"pass 'reduce': got the option 'rank'; expected none, it has no options"),
        ("stranger:steps=many", r"got steps=many; expected a value for 'steps: int \| None = None'\. .*valid integer"),
        ("stranger:how=badly", r"got how=badly; expected a value for 'how: .*'fast' or 'well'"),
        ("stranger:quietly=perhaps", r"got quietly=perhaps; expected a value for 'quietly: bool = False'"),
        ("stranger:strength=-1", r"pass 'stranger' does not take strength=-1: strength is -1\.0; expected at least 0"),
        ("stranger:steps", r"got 'stranger:steps'; expected name:option=value"),
        ("stranger:steps=", r"expected name:option=value"),
        ("stranger:steps=1:steps=2", r"each option once"),
    ],
)
def test_wrong_options_are_told(asked: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        find_passes(asked)
