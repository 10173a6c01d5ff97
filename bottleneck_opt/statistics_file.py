"""The file that statistics are kept in: safetensors, with one metadata entry that says what they belong to.

The file is written and read piece by piece, because the covariances of all layers may not fit into memory together.
Format (safetensors): eight bytes with the length of a JSON header, the header, the tensors' bytes one after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor

from bottleneck_opt.errors import FileError
from bottleneck_opt.files import file_written_whole
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.moments import LayerStatistics, Moments, OutputScale
from bottleneck_opt.spilling import Matrix, Stored, open_matrix

FORMAT = 1
_KEY = "bottleneck_opt_statistics"
_AGAIN = "Write it again with calibrate."
_ROWS = 256


@dataclass(frozen=True)
class Origin:
    """Of which model and which data statistics are.

    Attributes:
        model: Qualified class name of the model.
        weights_sha256: Of all its weights and buffers.
        layers: What each observed layer computes, by module path.
        data: The calibration data in words.
        noise: They were made up.
        seed: Of noise, positions and output directions.
    """

    model: str
    weights_sha256: str
    layers: dict[str, LayerSpec]
    data: str
    noise: bool
    seed: int


@dataclass(frozen=True)
class Record:
    """All that is in the file."""

    layers: dict[str, LayerStatistics]
    examples: int
    scales: tuple[OutputScale, ...]
    origin: Origin
    undifferentiable: str


@dataclass(frozen=True)
class _Sums:
    """The numbers of :class:`Moments`; its tensors are in the file's body."""

    count: int
    squares: float
    outer: bool


@dataclass(frozen=True)
class _Layer:
    """The numbers of :class:`LayerStatistics`."""

    inputs: _Sums
    outputs: _Sums
    probes: int


@dataclass(frozen=True)
class _Header:
    """The metadata entry."""

    origin: Origin
    examples: int
    scales: tuple[OutputScale, ...]
    layers: dict[str, _Layer]
    sha256: str
    undifferentiable: str = ""
    format: int = FORMAT


def write_record(path: Path, record: Record) -> None:
    """Write the file, whole or not at all. Raises FileError when it cannot be written."""
    tensors = {name: tensor for path, layer in record.layers.items() for name, tensor in _list_tensors(path, layer)}
    layers = {path: _describe(layer) for path, layer in record.layers.items()}
    header = _Header(
        record.origin, record.examples, record.scales, layers, _hash(tensors), record.undifferentiable
    )  # fmt: skip
    text = _encode_header(tensors, json.dumps(asdict(header), sort_keys=True, allow_nan=False))
    with file_written_whole(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            for piece in _pieces(tensor):
                file.write(piece)


def _list_tensors(path: str, layer: LayerStatistics) -> Iterator[tuple[str, Matrix]]:
    for side, moments in (("inputs", layer.inputs), ("outputs", layer.outputs)):
        yield f"{path}/{side}/total", moments.total
        if moments.outer is not None:
            yield f"{path}/{side}/outer", moments.outer
    yield f"{path}/curvature", layer.curvature


def _describe(layer: LayerStatistics) -> _Layer:
    sums = [_Sums(each.count, each.squares, each.outer is not None) for each in (layer.inputs, layer.outputs)]
    return _Layer(sums[0], sums[1], layer.probes)


def _encode_header(tensors: Mapping[str, Matrix], metadata: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {_KEY: metadata}}
    start = 0
    for name, tensor in tensors.items():
        shape = [tensor.shape[0]] * len(tensor.shape)
        end = start + 8 * (shape[0] ** len(shape))
        entries[name] = {"dtype": "F64", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)


def _pieces(tensor: Matrix) -> Iterator[memoryview]:
    for rows in open_matrix(tensor).split(_ROWS):
        yield memoryview(rows.contiguous().numpy()).cast("B")


def _hash(tensors: Mapping[str, Matrix]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        for piece in _pieces(tensors[name]):
            digest.update(piece)
    return digest.hexdigest()


def read_record(path: Path) -> Record:
    """Read the file; its matrices stay there and are opened when they are used.

    Raises:
        FileError: It is missing, truncated, changed, or not of this format.
    """
    if not path.is_file():
        raise FileError(f"{path}: there is no such file. Write it with calibrate.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no dict
            vectors = {name: file.get_tensor(name).clone() for name, shape in shapes.items() if len(shape) == 1}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise FileError(f"{path}: is not a whole safetensors file ({error}). {_AGAIN}") from error
    header = _read_header(path, metadata)
    matrices = {name: Stored.of(path, name, shape[0]) for name, shape in shapes.items() if len(shape) == 2}
    tensors: dict[str, Matrix] = {**vectors, **matrices}
    _check_tensors(path, header, shapes)
    if _hash(tensors) != header.sha256:
        raise FileError(f"{path}: its sums were changed after saving. {_AGAIN}")
    layers = {name: _build(name, layer, tensors) for name, layer in header.layers.items()}
    return Record(layers, header.examples, header.scales, header.origin, header.undifferentiable)


def _read_header(path: Path, metadata: Mapping[str, str]) -> _Header:
    if _KEY not in metadata:
        raise FileError(f"{path}: holds no statistics. Pass the file that calibrate wrote.")
    try:
        header = TypeAdapter(_Header).validate_json(metadata[_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise FileError(f"{path}: its metadata were changed: {where}: {first['msg']}. {_AGAIN}") from error
    if header.format != FORMAT:
        raise FileError(f"{path}: has format {header.format}; this version reads format {FORMAT}. {_AGAIN}")
    return header


def _check_tensors(path: Path, header: _Header, shapes: Mapping[str, tuple[int, ...]]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, layer in header.layers.items():
        spec = header.origin.layers.get(name)
        if spec is None:
            raise FileError(f"{path}: does not say what '{name}' computes. {_AGAIN}")
        for side, sums, width in (
            ("inputs", layer.inputs, spec.offsets * spec.in_channels),
            ("outputs", layer.outputs, spec.out_channels),
        ):
            expected[f"{name}/{side}/total"] = (width,)
            if sums.outer:
                expected[f"{name}/{side}/outer"] = (width, width)
        expected[f"{name}/curvature"] = (spec.out_channels, spec.out_channels)
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise FileError(f"{path}: '{name}' has shape {shapes.get(name)}; expected {expected.get(name)}. {_AGAIN}")


def _build(path: str, layer: _Layer, tensors: Mapping[str, Matrix]) -> LayerStatistics:
    def moments(side: str, sums: _Sums) -> Moments:
        total = open_matrix(tensors[f"{path}/{side}/total"])
        return Moments(sums.count, total, sums.squares, tensors.get(f"{path}/{side}/outer"))

    curvature: Tensor = open_matrix(tensors[f"{path}/curvature"]).clone()
    return LayerStatistics(moments("inputs", layer.inputs), moments("outputs", layer.outputs), curvature, layer.probes)


for _kind in (Origin, OutputScale, _Sums, _Layer, _Header):
    with_config(ConfigDict(extra="forbid"))(_kind)
