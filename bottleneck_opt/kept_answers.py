"""Keep what passes answer about sites: asking them is the longest part of most runs.

An answer is kept by the fingerprint of the pass, with its options and its code, and of everything the pass can see of
the site. So it serves any later run that asks the same, with another budget too. What an option's ``fill`` would
compute is not kept: when a run that went on from kept answers chooses an option, its pass is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from bottleneck_opt.answers_file import (
    PlainAnswer,
    PlainOption,
    PlainOrder,
    describe_answer,
    describe_option,
    describe_order,
    list_options,
    read_answers,
    write_answers,
)
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.errors import FileError, PassError
from bottleneck_opt.fingerprints import describe_pass, fingerprint
from bottleneck_opt.keeping import Cache
from bottleneck_opt.sites import AnyPass, ChannelPass, Option, Pass, SharingPass, Site, Skip, Weights

STAGE = "propose"
EVERY = 10.0
"""Seconds between two writings of the file."""


@dataclass
class Answers:
    """The answers of a run and the file they are kept in.

    Attributes:
        cache: Whose file it is.
        place: The file of this process.
        found: Answers by fingerprint, those of earlier runs among them.
    """

    cache: Cache
    place: Path
    found: dict[str, PlainAnswer] = field(default_factory=dict)
    _sites: dict[int, tuple[Site, str]] = field(default_factory=dict)
    _used: int = 0
    _written: tuple[int, float] = (0, 0.0)

    def find(self, owner: str, site: Site) -> tuple[str, PlainAnswer | None]:
        """The fingerprint of a question, and the answer to it where that is known."""
        key = fingerprint(owner, self._identify(site))
        answer = self.found.get(key)
        if answer is not None:
            self._used += 1
            self.cache.note_read(STAGE, f"answers of passes: {self._used}")
        return key, answer

    def add(self, key: str, answer: PlainAnswer) -> None:
        """Keep an answer; the file is written again when some time has passed."""
        self.found[key] = answer
        if time.monotonic() - self._written[1] > EVERY:
            self.write()

    def write(self) -> None:
        """Write the file where there is something new; a run goes on without it where it cannot be written."""
        if len(self.found) == self._written[0]:
            return
        self._written = (len(self.found), time.monotonic())
        try:
            write_answers(self.place, self.found)
        except FileError as error:
            self.cache.tell_lost(STAGE, f"could not be kept: {error}")

    def _identify(self, site: Site) -> str:
        """The fingerprint of a site; large covariances take some time, so that of each site is taken once."""
        known = self._sites.get(id(site))
        if known is None:
            whole = None if site.whole is None else self._identify(site.whole)
            timeless = replace(site, pacer=None, cost=replace(site.cost, latency=0))
            rest = [getattr(timeless, each.name) for each in fields(site) if each.name != "whole"]
            known = self._sites[id(site)] = (site, fingerprint(whole, rest))  # held, so that its number stays its own
        return known[1]


def remember_answers(cache: Cache, passes: Sequence[AnyPass]) -> tuple[AnyPass, ...]:
    """The passes, as ones that are asked only what no earlier run asked them; themselves where nothing is kept.

    Those that share a bottleneck between layers are asked every time.

    Args:
        cache: The folder.
        passes: The passes.
    """
    place = cache.find_place(STAGE, "", f"-{cache.ranks.rank}.json")
    if place is None:
        return tuple(passes)
    answers = Answers(cache, place)
    for file in sorted(place.parent.glob(f"{place.stem.rpartition('-')[0]}-*.json")):
        try:
            answers.found |= read_answers(file)
        except FileError as error:
            cache.tell_lost(STAGE, f"was kept but could not be used and was made again: {error}")
    answers._written = (len(answers.found), time.monotonic())
    if answers.found:
        cache.stages.announce(f"{STAGE}: goes on from {len(answers.found)} answers, read back from {place}")
    cache.write_between(answers.write)
    return tuple(_wrap(each, answers) for each in passes)


def identify_pass(each: AnyPass) -> str:
    """The fingerprint of a pass, of the one that is asked where it is remembered what it said."""
    if isinstance(each, RememberingPass | RememberingChannelPass):
        return each.owner
    return fingerprint(*describe_pass(each))


def _wrap(each: AnyPass, answers: Answers) -> AnyPass:
    kinds = [kind for kind in (Pass, ChannelPass, SharingPass) if isinstance(each, kind)]
    owner = identify_pass(each)
    if kinds == [Pass]:
        return RememberingPass(each, owner, answers)  # type: ignore[arg-type]  # it is one
    if kinds == [ChannelPass]:
        return RememberingChannelPass(each, owner, answers)  # type: ignore[arg-type]  # it is one
    return each


@dataclass(frozen=True)
class RememberingPass:
    """A pass that does not work out again what is known.

    Attributes:
        asked: The pass.
        owner: Its fingerprint.
        answers: What is known.
    """

    asked: Pass
    owner: str
    answers: Answers

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.asked.name

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """The pass's answer, or the one that is known."""
        key, known = self.answers.find(self.owner, site)
        if known is not None:
            return known.skip if known.options is None else [_revive(each, self.asked, site) for each in known.options]
        answer = self.asked.propose(site)
        plain = describe_answer(answer)
        if plain is not None:
            self.answers.add(key, plain)
        return answer


@dataclass(frozen=True)
class RememberingChannelPass:
    """The same for a pass that drops channels."""

    asked: ChannelPass
    owner: str
    answers: Answers

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.asked.name

    @property
    def counts(self) -> int:
        """How many numbers of channels to weigh against each other."""
        return self.asked.counts

    def eliminate(self, site: Site) -> Elimination | Skip | None:
        """The pass's answer, or the one that is known."""
        key, known = self.answers.find(self.owner, site)
        if known is not None:
            return known.skip if known.order is None else _revive_order(known.order)
        answer = self.asked.eliminate(site)
        plain = describe_order(answer)
        if plain is not None:
            self.answers.add(key, plain)
        return answer


@dataclass(frozen=True)
class _Refill:
    """Computes an option's weights by asking the pass again."""

    asked: Pass
    site: Site
    wanted: PlainOption

    def __call__(self) -> Sequence[Weights]:
        with self.site.remembering():
            answer = self.asked.propose(self.site)
            alike = [each for each in list_options(answer) if describe_option(each) == self.wanted]
            if not alike:
                raise PassError(
                    f"pass '{self.asked.name}' on '{self.site.path}': got another answer than an earlier run, without "
                    f"ranks {self.wanted.ranks}; expected the same to the same question. Run without cache=."
                )
            return alike[0].fill()


def _revive(each: PlainOption, asked: Pass, site: Site) -> Option:
    return Option(
        each.form, each.ranks, each.full_ranks, each.layers, each.predicted_loss, _Refill(asked, site, each)
    )  # fmt: skip


def _revive_order(kept: PlainOrder) -> Elimination:
    order = torch.tensor(kept.order, dtype=torch.int64, device="cpu")
    return Elimination(order, torch.tensor(kept.losses, dtype=torch.float64, device="cpu"))
