from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest

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

    def propose(self, site: Site) -> Sequence[Option] | None:
        return None


class Nameless:
    """Not a pass."""

    def propose(self, site: Site) -> None:
        return None


def explode() -> Stranger:
    raise RuntimeError("cannot start")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three plugins beside the built-in passes: one sound, one that fails, one that is missing."""
    found = [
        EntryPoint("zz", "tests.test_registry:Stranger", registry.GROUP),
        EntryPoint("broken", "tests.test_registry:explode", registry.GROUP),
        EntryPoint("missing", "no_such_package:Pass", registry.GROUP),
        EntryPoint("odd", "tests.test_registry:Nameless", registry.GROUP),
        EntryPoint("reduce", "bottleneck_opt.passes.reduce:Reduce", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


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
    assert find_passes(["reduce", "zz"]) == (Reduce(), Stranger())


def test_no_plugin_takes_the_name_of_a_built_in_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("reduce", "bottleneck_opt.passes.reduce:Reduce", registry.GROUP),
        EntryPoint("reduce", "tests.test_registry:Stranger", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    assert find_passes(["reduce"]) == (Reduce(),)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "RuntimeError: cannot start"),
        ("missing", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("odd", "tests.test_registry:Nameless is a Nameless without a name"),
    ],
)
def test_a_broken_plugin_that_is_asked_for_says_why(name: str, reason: str) -> None:
    with pytest.raises(PassError, match=rf"^pass '{name}' cannot be used: {reason}.*Mend or uninstall"):
        find_passes([name])


@pytest.mark.usefixtures("plugins")
def test_the_list_shows_options_and_errors() -> None:
    listed = {each.name: each for each in list_passes()}
    assert next(iter(listed)) == "reduce"
    assert listed["zz"].summary == "A pass of somebody else's."
    assert listed["zz"].options == ("strength: float = 0.5",)
    assert "cannot start" in listed["broken"].error
    assert listed["reduce"].error == ""


def test_installed_passes_say_where_they_are_from() -> None:
    assert {each.origin.split()[0] for each in list_passes()} == {"bottleneck-opt"}
