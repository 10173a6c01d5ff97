"""``cache=``: keep what each expensive stage of a run made, so that a later run goes on from there.

Every stage has a file of its own in the folder, named for the stage and for the fingerprint of all that it depends on:
the model, the data, the options, the versions (:mod:`bottleneck_opt.fingerprints`). What a later run would make
differently has another name there, so nothing is ever mixed up, and runs of different models may share a folder. A file
is whole or not there. One that cannot be read is made again; one that cannot be written is done without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import torch

from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.errors import FileError
from bottleneck_opt.files import as_path
from bottleneck_opt.fingerprints import describe_surroundings, fingerprint
from bottleneck_opt.leftovers import remove_leftovers
from bottleneck_opt.progress import Stages
from bottleneck_opt.subject import Subject
from bottleneck_opt.working_copy import model_device

FORMAT = 1
_HIDDEN = "."
T = TypeVar("T")


@dataclass(frozen=True)
class Form(Generic[T]):
    """How the outcome of a stage is kept.

    Attributes:
        suffix: Of the file.
        read: Reads a file; raises FileError where it is not whole, or not of this form.
        write: Writes one, whole or not at all; raises FileError where it cannot. What it returns is not looked at.
    """

    suffix: str
    read: Callable[[Path], T]
    write: Callable[[Path, T], object]


@dataclass
class Cache:
    """The folder of one run, and what came of it.

    Attributes:
        folder: Where things are kept; None keeps nothing.
        seed: Of the run.
        stages: Where to announce what was read back.
        ranks: Who shares the run; the first writes.
        identity: Fingerprint of what the run works on, from :meth:`identify`.
    """

    folder: Path | None = None
    seed: int = 0
    stages: Stages = field(default_factory=lambda: Stages(shown=False))
    ranks: Ranks = ALONE
    identity: str = ""
    _writing: list[Callable[[], None]] = field(default_factory=list)
    _read: dict[str, str] = field(default_factory=dict)
    _lost: dict[str, str] = field(default_factory=dict)

    def identify(self, subject: Subject) -> None:
        """Say what the run works on: all that is kept from now on belongs to it."""
        if self.folder is None:
            return
        candidates, traced, data = subject.candidates, subject.traced, subject.fitting
        self.identity = fingerprint(
            FORMAT, describe_surroundings(model_device(subject.working)), self.seed, subject.name, subject.working,
            str(traced.graph), traced.constants, traced.inputs, data.batches, data.examples, data.mixes, data.noise,
            list(candidates.layers.items()), candidates.names,
        )  # fmt: skip

    def find_place(self, stage: str, key: str, suffix: str) -> Path | None:
        """The file for what a stage makes of what ``key`` tells; None where nothing is kept."""
        if self.folder is None:
            return None
        return self.folder / f"{stage.replace(' ', '-')}-{fingerprint(self.identity, stage, key)}{suffix}"

    def take(self, stage: str, key: str, form: Form[T], make: Callable[[], T]) -> T:
        """What a stage makes: read back where an earlier run kept it, else made now and kept.

        Random numbers start anew before and after it, so that what follows does not depend on which it was.

        Args:
            stage: Its name.
            key: Fingerprint of all it depends on beside the model, the data and the seed.
            form: How it is kept.
            make: Makes it.
        """
        self._write_all()
        place = self.find_place(stage, key, form.suffix)
        torch.manual_seed(self.seed)
        found = None if place is None else self._find(stage, place, form)
        if found is None:
            found = make()
            if place is not None:
                self._keep(stage, place, form, found)
        torch.manual_seed(self.seed)
        return found

    def _find(self, stage: str, place: Path, form: Form[T]) -> T | None:
        """What is kept; None where that is nothing that can be used, or where not all ranks have it."""
        found = None
        if place.exists():
            try:
                found = form.read(place)
            except FileError as error:
                self.tell_lost(stage, f"was kept but could not be used and was made again: {error}")
        if not all(self.ranks.collect(found is not None)):
            return None
        self.tell_read(stage, place)
        return found

    def _keep(self, stage: str, place: Path, form: Form[T], made: T) -> None:
        if not self.ranks.is_first:
            return
        try:
            form.write(place, made)
        except FileError as error:
            self.tell_lost(stage, f"could not be kept: {error}")

    def tell_read(self, stage: str, place: Path, words: str = "done before") -> None:
        """Announce, and note for the result, that a stage was read back."""
        self.note_read(stage, words)
        self.stages.announce(f"{stage}: {words}, read back from {place}")

    def note_read(self, stage: str, words: str) -> None:
        """Note for the result what of a stage was read back; the last words of each stage stand."""
        self._read[stage] = words

    def tell_lost(self, stage: str, reason: str) -> None:
        """Announce, and note for the result, that something was not kept or could not be used; once for each stage."""
        if stage not in self._lost:
            self._lost[stage] = reason
            self.stages.announce(f"{stage}: {reason}")

    def write_between(self, action: Callable[[], None]) -> None:
        """Have something written before each stage that is kept, and when the run ends or breaks off."""
        self._writing.append(action)

    def _write_all(self) -> None:
        for action in self._writing:
            action()

    def list_notes(self) -> tuple[str, ...]:
        """What was read back and what could not be kept, in sentences for the report."""
        lost = tuple(f"cache: what '{stage}' made {reason}" for stage, reason in self._lost.items())
        if not self._read:
            return lost
        stages = ", ".join(f"{stage} ({words})" for stage, words in self._read.items())
        return (f"cache: went on from what an earlier run kept in {self.folder}: {stages}", *lost)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_all()
        if self.folder is not None and isinstance(error, KeyboardInterrupt) and self.ranks.is_first:
            print(
                f"what was done until now is kept in {self.folder}: the same call goes on from there",
                file=sys.stderr, flush=True,
            )  # fmt: skip


def open_cache(given: str | Path | None, *, seed: int, stages: Stages, ranks: Ranks = ALONE) -> Cache:
    """The folder of a run, made where it is missing, without what killed runs left half-written.

    Args:
        given: The folder; None keeps nothing.
        seed: Of the run.
        stages: Where to announce what was read back.
        ranks: Who shares the run.

    Raises:
        FileError: It is no folder that can be written to.
    """
    if given is None:
        return Cache(None, seed, stages, ranks)
    folder = as_path(given, "cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise FileError(f"cache: {folder} cannot be made: {reason}. Name a folder that is yours.") from error
    remove_leftovers(folder, _HIDDEN)
    return Cache(folder, seed, stages, ranks)
