"""How fitted weights are kept: those of each layer by itself, and those of all layers together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import safetensors
import safetensors.torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor

from bottleneck_opt.errors import FileError
from bottleneck_opt.files import write_whole
from bottleneck_opt.joint import Joint
from bottleneck_opt.keeping import Form
from bottleneck_opt.outcome import Correction
from bottleneck_opt.refitting import Refitted
from bottleneck_opt.sites import Weights
from bottleneck_opt.tensor_bytes import bytes_of

_KEY = "bottleneck_opt_weights"
_FORMAT = 1
_AGAIN = "It is made again."
T = TypeVar("T")


@with_config(ConfigDict(extra="forbid", ser_json_inf_nan="constants"))
@dataclass(frozen=True)
class _Fitted:
    """What is known of :class:`Refitted` beside the weights; ``counts`` says how many layers each path has."""

    counts: dict[str, int]
    corrections: tuple[Correction, ...]
    skipped: dict[str, str]


@with_config(ConfigDict(extra="forbid", ser_json_inf_nan="constants"))
@dataclass(frozen=True)
class _Together:
    """What is known of :class:`Joint` beside the weights."""

    counts: dict[str, int]
    before: float
    after: float
    iterations: int
    skipped: str
    examples: int


def _write_fitted(path: Path, refitted: Refitted) -> None:
    counts = {name: len(each) for name, each in refitted.weights.items()}
    facts = _Fitted(counts, refitted.corrections, dict(refitted.skipped))
    _write_weights(path, refitted.weights, TypeAdapter(_Fitted).dump_json(facts).decode())


def _read_fitted(path: Path) -> Refitted:
    tensors, text = _read_weights(path)
    facts = _read_facts(path, _Fitted, text)
    return Refitted(_collect(path, facts.counts, tensors), facts.corrections, facts.skipped)


def _write_joint(path: Path, joint: Joint) -> None:
    weights = {name: [each] for name, each in joint.weights.items()}
    facts = _Together(
        dict.fromkeys(weights, 1), joint.before, joint.after, joint.iterations, joint.skipped, joint.examples
    )
    _write_weights(path, weights, TypeAdapter(_Together).dump_json(facts).decode())


def _read_joint(path: Path) -> Joint:
    tensors, text = _read_weights(path)
    facts = _read_facts(path, _Together, text)
    weights = {name: each[0] for name, each in _collect(path, facts.counts, tensors).items()}
    return Joint(weights, facts.before, facts.after, facts.iterations, facts.skipped, facts.examples)


FITTED = Form(".safetensors", _read_fitted, _write_fitted)
JOINT = Form(".safetensors", _read_joint, _write_joint)


def _write_weights(path: Path, weights: Mapping[str, Sequence[Weights]], facts: str) -> None:
    tensors = {
        f"{name}/{number}/{part}": value.detach().cpu().contiguous().clone()
        for name, layers in weights.items()
        for number, layer in enumerate(layers)
        for part, value in (("weight", layer.weight), ("bias", layer.bias))
        if value is not None
    }
    header = {"format": _FORMAT, "facts": facts, "sha256": _hash(tensors, facts)}
    write_whole(path, safetensors.torch.save(tensors, metadata={_KEY: json.dumps(header, sort_keys=True)}))


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        whole = header["format"] == _FORMAT and header["sha256"] == _hash(tensors, header["facts"])
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise FileError(f"{path}: is no whole file of fitted weights ({type(error).__name__}). {_AGAIN}") from error
    if not whole:
        raise FileError(f"{path}: was changed since it was written. {_AGAIN}")
    return tensors, header["facts"]


def _hash(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def _read_facts(path: Path, kind: type[T], text: str) -> T:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise FileError(f"{path}: says something else of its weights than expected. {_AGAIN}") from error


def _collect(path: Path, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> dict[str, list[Weights]]:
    try:
        return {
            name: [
                Weights(tensors[f"{name}/{number}/weight"], tensors.get(f"{name}/{number}/bias"))
                for number in range(count)
            ]
            for name, count in counts.items()
        }
    except KeyError as error:
        raise FileError(f"{path}: lacks the weights {error}. {_AGAIN}") from error
