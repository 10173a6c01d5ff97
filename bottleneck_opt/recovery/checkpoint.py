"""A recovery on disk: everything needed to go on after an interruption, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.errors import FileError
from bottleneck_opt.files import write_whole
from bottleneck_opt.recovery.options import Recovery
from bottleneck_opt.recovery.weights import copy_tensors
from bottleneck_opt.tensor_bytes import bytes_of

FORMAT = 4
_KEY = "bottleneck_opt"
_NOW, _MEAN, _BEST, _ADAM = "now/", "mean/", "best/", "adam/"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: fingerprints of both models and the data, and the options."""

    student: str
    teacher: str
    data: str
    options: str


@dataclass(frozen=True)
class Progress:
    """Where training is: what is needed, beside the weights and the optimiser's own tensors, to go on from here.

    Attributes:
        step: Steps taken.
        rate: The largest step size, as it was chosen before training.
        start_loss, best_loss: Held-out loss before training, and the smallest one seen.
        best_step: When that was.
        stopped: Why training ended early; empty when it did not.
        in_vain: Steps of a first try that brought nothing, before training began again in smaller ones; 0 in the first.
        best: The weights then, by name.
    """

    step: int
    rate: float
    start_loss: float
    best_loss: float
    best_step: int
    stopped: str
    in_vain: int
    best: Mapping[str, Tensor]


@dataclass(frozen=True)
class Moving:
    """What every step changes beside the weights themselves.

    Attributes:
        adam: The optimiser, with its own tensors.
        mean: The running mean of the weights, by name; it is what is judged and kept.
    """

    adam: torch.optim.Adam
    mean: Mapping[str, Tensor]


@with_config(ConfigDict(extra="forbid", ser_json_inf_nan="constants"))
@dataclass(frozen=True)
class _Header:
    """What a checkpoint says beside its tensors."""

    identity: Identity
    step: int
    rate: float
    start_loss: float
    best_loss: float
    best_step: int
    stopped: str
    in_vain: int
    format: int = FORMAT


@dataclass(frozen=True)
class Checkpoint:
    """A file and what it belongs to.

    Attributes:
        path: The file; it need not exist.
        identity: What it belongs to.
        trained: The parameters under training, by name.
    """

    path: Path
    identity: Identity
    trained: Mapping[str, Tensor]

    def write(self, progress: Progress, moving: Moving) -> None:
        """Write the file, whole.

        Raises:
            FileError: It cannot be written.
        """
        tensors = {f"{_NOW}{name}": each for name, each in self.trained.items()}
        tensors |= {f"{_MEAN}{name}": each for name, each in moving.mean.items()}
        tensors |= {f"{_BEST}{name}": each for name, each in progress.best.items()}
        for name, parameter in self.trained.items():
            tensors |= {f"{_ADAM}{key}/{name}": each for key, each in moving.adam.state.get(parameter, {}).items()}
        header = _Header(
            self.identity, progress.step, progress.rate, progress.start_loss, progress.best_loss, progress.best_step,
            progress.stopped, progress.in_vain,
        )  # fmt: skip
        stored = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
        text = TypeAdapter(_Header).dump_json(header).decode()
        write_whole(self.path, safetensors.torch.save(stored, metadata={_KEY: text}))

    def restore(self, moving: Moving) -> Progress | None:
        """Put weights, their mean and the optimiser where they were when the file was written; None without a file.

        Raises:
            FileError: It cannot be read, or belongs to another run. Nothing was changed.
        """
        if not self.path.exists():
            return None
        header, tensors = _load(self.path)
        _check_identity(self.path, header.identity, self.identity)
        now, mean, best = (self._pick(tensors, part) for part in (_NOW, _MEAN, _BEST))
        copy_tensors(now, self.trained)
        copy_tensors(mean, moving.mean)
        for name in (name for name in tensors if name.startswith(_ADAM)):
            key, _, owner = name.removeprefix(_ADAM).partition("/")
            parameter, value = self.trained[owner], tensors[name]
            placed = value if key == "step" else torch.empty_like(parameter).copy_(value).detach()  # as torch keeps it
            moving.adam.state[parameter][key] = placed
        return Progress(
            header.step,
            header.rate,
            header.start_loss,
            header.best_loss,
            header.best_step,
            header.stopped,
            header.in_vain,
            best,
        )

    def _pick(self, tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
        """The tensors of one part, checked against the parameters."""
        found = {name: tensors.get(f"{part}{name}") for name in self.trained}
        for name, like in self.trained.items():
            tensor = found[name]
            if tensor is None or tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise FileError(f"{self.path}: the checkpoint's tensors of '{name}' are missing or changed. Delete it.")
        return {name: each.to(self.trained[name].device) for name, each in found.items() if each is not None}


@dataclass(frozen=True)
class Spare:
    """A checkpoint that nobody asked for by name: training does without it where it cannot be read or written.

    Attributes:
        path: The file; it need not exist.
        tell_read: Called with the step that training goes on from.
        tell_lost: Called with what went wrong, each time.
    """

    path: Path
    tell_read: Callable[[int], None]
    tell_lost: Callable[[FileError], None]


@dataclass(frozen=True)
class _SpareCheckpoint(Checkpoint):
    """A checkpoint at a spare place."""

    spare: Spare

    def write(self, progress: Progress, moving: Moving) -> None:
        """Write the file, whole, where that can be done."""
        try:
            super().write(progress, moving)
        except FileError as error:
            self.spare.tell_lost(error)

    def restore(self, moving: Moving) -> Progress | None:
        """Put everything where it was; None, with nothing changed, where the file does not tell."""
        try:
            found = super().restore(moving)
        except FileError as error:
            self.spare.tell_lost(error)
            return None
        if found is not None:
            self.spare.tell_read(found.step)
        return found


def find_checkpoint(
    teacher: nn.Module, student: nn.Module, data: CalibrationData, recovery: Recovery, trained: Mapping[str, Tensor],
    spare: Spare | None = None,
) -> Checkpoint | None:  # fmt: skip
    """The checkpoint that the options name, else the spare one; None where there is neither."""
    if recovery.checkpoint is None and spare is None:
        return None
    identity = Identity(
        _fingerprint(student.state_dict()), _fingerprint(teacher.state_dict()), _fingerprint_data(data),
        json.dumps(recovery.describe(), sort_keys=True),
    )  # fmt: skip
    if recovery.checkpoint is None and spare is not None:
        return _SpareCheckpoint(spare.path, identity, trained, spare)
    return Checkpoint(Path(str(recovery.checkpoint)), identity, trained)


def _load(path: Path) -> tuple[_Header, dict[str, Tensor]]:
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        header = TypeAdapter(_Header).validate_json(metadata[_KEY])
    except (OSError, KeyError, ValueError, ValidationError, safetensors.SafetensorError) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise FileError(
            f"{path}: is not a checkpoint of a recovery ({type(error).__name__}: {first}). "
            "Name another file for checkpoint=, or delete this one to start anew."
        ) from error
    if header.format != FORMAT:
        raise FileError(f"{path}: has format {header.format}; this version reads format {FORMAT}. Delete it.")
    return header, tensors


def _check_identity(path: Path, found: Identity, wanted: Identity) -> None:
    words = {"student": "another rewritten model", "teacher": "another original", "data": "other data"}
    words["options"] = f"other options ({found.options}; expected {wanted.options})"
    differing = [text for name, text in words.items() if getattr(found, name) != getattr(wanted, name)]
    if differing:
        raise FileError(
            f"{path}: is the checkpoint of a recovery of {' and '.join(differing)}. "
            "Give everything as before to go on, or name another file for checkpoint=."
        )


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(name for name, value in tensors.items() if isinstance(value, Tensor)):
        _add_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def _fingerprint_data(data: CalibrationData) -> str:
    digest = hashlib.sha256()
    for batch in data.batches:
        for index, tensor in enumerate(batch.tensors()):
            _add_tensor(digest, str(index), tensor)
    return digest.hexdigest()


def _add_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(bytes_of(tensor))
