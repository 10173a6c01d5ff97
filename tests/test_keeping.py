"""What stages made is kept and read back, for the very same question only; a full disk loses nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt import fingerprints, keeping
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.sites import Option, Site, Skip
from tests.resuming import X, network, run

STAGES = ("calibrate", "propose", "fit", "fit together", "recover")
Files = tuple[str, dict[str, torch.Tensor]]


def made(result: bo.Result) -> Files:
    """What decides plan.json and model.safetensors."""
    return result.plan.to_json(), result.model.state_dict()


def same(one: bo.Result, other: bo.Result) -> bool:
    (plan, weights), (other_plan, others) = made(one), made(other)
    return plan == other_plan and all(torch.equal(value, others[name]) for name, value in weights.items())


def read_back(result: bo.Result) -> set[str]:
    """The stages that a result says were not done again."""
    notes = [note for note in result.notes if note.startswith("cache: went on from what an earlier run kept in ")]
    return {stage for stage in STAGES for note in notes if f" {stage} (" in note}


def timeless(result: bo.Result) -> list[str]:
    """The notes but those that tell how long something took."""
    return [note for note in result.notes if not note.startswith("slower than the original here")]


def complaints(result: bo.Result) -> list[str]:
    return [note for note in result.notes if note.startswith("cache: what '")]


@pytest.fixture(scope="module")
def plain() -> bo.Result:
    """The run without a folder."""
    return run()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not broken off."""
    folder = tmp_path_factory.mktemp("kept") / "cache"
    assert timeless(run(folder)) == timeless(run())
    return folder


@pytest.fixture
def copied(kept: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for file in kept.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


# -- the same again -----------------------------------------------------------------------------------------------


def test_each_stage_has_a_file(kept: Path) -> None:
    assert sorted(file.name.rsplit("-", 1)[0] for file in kept.glob("*.safetensors")) == [
        "calibrate", "fit", "fit-together", "recover",
    ]  # fmt: skip
    assert len(list(kept.glob("propose-*-0.json"))) == 1
    assert len(list(kept.iterdir())) == 5


def test_the_same_call_reads_everything_back(kept: Path, plain: bo.Result, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    result = run(kept, progress=True)
    assert same(result, plain)
    assert read_back(result) == set(STAGES)
    assert not {"calibrate", "fit", "refit", "fit together"} & dict(result.seconds).keys()
    assert {file: file.stat().st_mtime_ns for file in kept.iterdir()} == before
    assert f"fit together: done before, read back from {kept}" in capsys.readouterr().err


def test_the_notes_are_otherwise_the_same(kept: Path, plain: bo.Result) -> None:
    assert [note for note in timeless(run(kept)) if not note.startswith("cache: ")] == timeless(plain)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keeping, "fingerprint", None)
    run()
    assert list(tmp_path.iterdir()) == []


# -- something else -----------------------------------------------------------------------------------------------


class Doubled(nn.Sequential):
    """A network with the same weights that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(2 * x)
        return x


def test_another_budget_reads_back_what_does_not_depend_on_it(copied: Path) -> None:
    result = run(copied, budget=0.6, recover=None)
    assert read_back(result) == {"calibrate", "propose"}
    assert same(result, run(budget=0.6, recover=None))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seed": 1}, set()),
        ({"calibration": X[:10]}, set()),
        ({"calibration": X + 1e-3}, set()),
        ({"exclude": "0"}, set()),
        ({"passes": ["reduce"], "recover": None}, {"calibrate", "propose"}),
        ({"passes": ["tucker:steps=2"], "recover": None}, {"calibrate"}),
        ({"recipe": bo.Recipe(joint=2), "recover": None}, {"calibrate", "propose"}),
        ({"recipe": bo.Recipe(curvature=False), "recover": None}, {"calibrate"}),
        ({"recipe": bo.Recipe(mixes=0), "recover": None}, set()),
        ({"recover": 3}, {"calibrate", "propose", "fit", "fit together"}),
    ],
)
def test_what_differs_is_made_anew(copied: Path, options: dict[str, Any], expected: set[str]) -> None:
    result = run(copied, **options)
    assert read_back(result) == expected
    assert same(result, run(**options))


def test_another_network_reads_nothing(copied: Path) -> None:
    other = network()
    with torch.no_grad():
        other.get_parameter("0.weight")[0, 0, 0, 0] += 1e-5
    for net in (other, Doubled(*network().children())):
        result = run(copied, of=net, recover=None)
        assert read_back(result) == set()
        assert same(result, run(of=net, recover=None))


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [(keeping, "FORMAT", 99), (fingerprints, "__version__", "9.9"), (fingerprints, "hash_package", lambda name: "new")],
)
def test_another_version_reads_nothing(
    copied: Path, plain: bo.Result, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, value: Any
) -> None:
    monkeypatch.setattr(where, name, value)
    result = run(copied)
    assert read_back(result) == set()
    assert same(result, plain)


def test_a_loss_of_ones_own_is_not_kept(tmp_path: Path) -> None:
    recovery = bo.Recovery(steps=2, batch=4, loss=lambda got, expected, batch: (got - expected).square().mean())
    result = run(tmp_path, recover=recovery)
    assert complaints(result) == [
        "cache: what 'recover' made is not kept: loss= is a function of yours, of which nobody can tell whether it is "
        "still the same"
    ]
    assert not list(tmp_path.glob("recover*"))


def test_a_checkpoint_that_was_named_is_used(tmp_path: Path) -> None:
    recovery = bo.Recovery(steps=2, batch=4, checkpoint=tmp_path / "mine.safetensors")
    run(tmp_path / "cache", recover=recovery)
    assert (tmp_path / "mine.safetensors").exists()
    assert not list((tmp_path / "cache").glob("recover*"))


# -- other ways to run --------------------------------------------------------------------------------------------


def test_calibrate_and_optimize_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = bo.calibrate(network(), X[:1], calibration=X, cache=tmp_path, progress=False)
    monkeypatch.setattr("bottleneck_opt.calibrating.collect_statistics", None)
    again = bo.calibrate(network(), X[:1], calibration=X, cache=tmp_path, progress=False)
    assert again.origin == statistics.origin
    assert read_back(run(tmp_path, recover=None)) == {"calibrate"}


def test_given_statistics_are_told_apart(tmp_path: Path) -> None:
    def go(data: torch.Tensor, cache: Path | None) -> bo.Result:
        statistics = bo.calibrate(network(), X[:1], calibration=data, progress=False)
        return run(cache, statistics=statistics, recover=None)

    first, second, third = go(X, tmp_path), go(X, tmp_path), go(X[:8], tmp_path)
    assert read_back(first) == set()
    assert read_back(second) == {"propose", "fit", "fit together"}
    assert same(first, second)
    assert read_back(third) == set()
    assert same(third, go(X[:8], None))


def test_a_search_above_a_floor_goes_on(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(X) - network()(X)).square().mean())

    options: dict[str, Any] = {"budget": None, "max_drop": 1e-4, "evaluate": evaluate}
    results = [run(cache, **options) for cache in (None, tmp_path, tmp_path)]
    assert len(list(tmp_path.glob("recover*"))) > 1
    assert read_back(results[2]) == set(STAGES)
    assert all(same(each, results[0]) and each.promise == results[0].promise for each in results)


def test_halfway_models_are_not_mixed_up_with_the_original(tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": bo.Recipe(steps=2), "recover": None}
    results = [run(cache, **options) for cache in (None, tmp_path, tmp_path)]
    assert read_back(results[2]) == set(STAGES) - {"recover"}
    assert all(same(each, results[0]) for each in results)


ASKED: list[str] = []


class Odd:
    """A pass whose answers cannot be kept: its options are of a class of its own."""

    name = "odd"

    def propose(self, site: Site) -> list[Option] | Skip | None:
        class Mine(Option):
            pass

        answer = Reduce().propose(site)
        ASKED.append(site.path)
        return [Mine(**vars(each)) for each in answer] if isinstance(answer, list) else answer  # type: ignore[return-value]


def test_an_answer_that_cannot_be_kept_is_asked_for_again(tmp_path: Path) -> None:
    ASKED.clear()
    results = [run(cache, passes=[Odd()], recover=None) for cache in (None, tmp_path, tmp_path)]
    for step in results[0].plan.steps:
        assert ASKED.count(step.path) == 3
    assert all(same(each, results[0]) for each in results)


class Fickle(Reduce):
    """A pass that does not answer the same twice."""

    def propose(self, site: Site) -> Any:
        answer = super().propose(site)
        count = len(ASKED)
        ASKED.append(site.path)
        return answer if count < 4 or not isinstance(answer, list) else answer[:1]


def test_a_pass_that_contradicts_itself_is_told(tmp_path: Path) -> None:
    ASKED.clear()
    run(tmp_path, passes=[Fickle()], recover=None, budget=0.7)
    with pytest.raises(bo.PassError, match=r"pass 'reduce' on '\d': got another answer than an earlier run, without"):
        run(tmp_path, passes=[Fickle()], recover=None, budget=0.6)


# -- broken files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [lambda old: old[:-9], lambda old: b"", lambda old: old[:-2] + b"\1\1"])
@pytest.mark.parametrize("stage", ["calibrate", "propose", "fit", "fit together"])
def test_a_file_that_was_spoiled_is_made_again(
    copied: Path, plain: bo.Result, stage: str, spoil: Callable[[bytes], bytes]
) -> None:
    (file,) = copied.glob(f"{stage.replace(' ', '-')}-{'?' * fingerprints.LENGTH}[.-]*")
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    result = run(copied, progress=False)
    assert same(result, plain)
    assert stage not in read_back(result)
    assert [stage in note and "could not be used and was made again" in note for note in complaints(result)] == [True]
    if stage != "propose":  # what was read back later on left nothing to ask
        assert file.read_bytes() == whole
    assert complaints(run(copied)) == []


def test_a_training_that_was_spoiled_starts_again(copied: Path, plain: bo.Result) -> None:
    (file,) = copied.glob("recover-*")
    file.write_bytes(file.read_bytes()[:-9])
    result = run(copied)
    assert same(result, plain)
    assert read_back(result) == set(STAGES) - {"recover"}
    assert ["could not be kept or used" in note for note in complaints(result)] == [True]


# -- full disks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk on which files can be made and nothing written into them."""
    opened = os.fdopen

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fdopen(descriptor: int, *arguments: Any) -> Any:
        file: Any = opened(descriptor, *arguments)
        file.close()

        class Full:
            write = staticmethod(refuse)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                return None

        return Full()

    monkeypatch.setattr(os, "fdopen", fdopen)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("full")
def test_a_full_disk_loses_what_is_kept_and_nothing_else(tmp_path: Path, plain: bo.Result) -> None:
    result = run(tmp_path)
    assert same(result, plain)
    assert {note.split("'")[1] for note in complaints(result)} == set(STAGES)
    assert all("no space left on device" in note for note in complaints(result))
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_loses_what_is_kept_and_nothing_else(
    tmp_path: Path, plain: bo.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    result = run(tmp_path / "cache")
    assert same(result, plain)
    assert len(complaints(result)) == len(STAGES)
    with pytest.raises(bo.FileError, match=r"out: cannot be written: no space left on device\. Choose another folder"):
        result.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_result_that_cannot_be_written_is_told_and_leaves_nothing(
    tmp_path: Path, plain: bo.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(bo.FileError, match=r"out: cannot be written: no space left on device"):
        plain.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("bottleneck_opt.optimizer.prepare_subject", None)
    with pytest.raises(bo.FileError, match=r"^cache: .*file cannot be made: file exists\. Name a folder"):
        run(tmp_path / "file")
    with pytest.raises(bo.FileError, match=r"^cache: got int; expected the name of a folder"):
        run(3)  # type: ignore[arg-type]
