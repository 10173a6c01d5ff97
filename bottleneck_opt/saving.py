"""Save a result as plain files, and load it into a fresh instance of the same model. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn

from bottleneck_opt.diagrams import draw_after, draw_before, draw_diff, graph_json, node_data_json, render_svg
from bottleneck_opt.errors import FileError, RewriteError
from bottleneck_opt.files import as_path, folder_written_whole, read_bytes
from bottleneck_opt.graph_view import to_graph_module
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.plan import Plan
from bottleneck_opt.recorded_call import make_call
from bottleneck_opt.report import render_html, report_json
from bottleneck_opt.rewriting import choose_layout, is_channels_last, rewrite_structure
from bottleneck_opt.tensor_bytes import bytes_of
from bottleneck_opt.working_copy import unwrap_model

FORMAT = 1
PLAN, WEIGHTS = "plan.json", "model.safetensors"
_KEY = "bottleneck_opt"  # of the one metadata entry: several would be written in any order
_AGAIN = "Save the result again, or copy plan.json and model.safetensors together."


def save_outcome(outcome: Outcome, model: nn.Module, folder: str | Path) -> Path:
    """Write plan, weights, reports and pictures to a folder, all of them or none.

    Files: plan.json, model.safetensors, report.html, report.json, before.svg, after.svg, diff.svg,
    model_explorer_graph.json and model_explorer.json (a graph for Model Explorer, and costs and ranks on its nodes).

    Args:
        outcome: The numbers and graphs.
        model: The rewritten model.
        folder: Where to; files of other names in it are kept.

    Returns:
        The folder.

    Raises:
        FileError: The folder cannot be written, or the model has state that cannot be saved without pickle.
    """
    target = as_path(folder, "save")
    with folder_written_whole(target) as made:
        plan_text = outcome.plan.to_json()
        (made / PLAN).write_text(plan_text, encoding="utf-8", newline="\n")
        _save_weights(model, made / WEIGHTS, plan_text)
        diff = _save_pictures(outcome, made)
        (made / "report.html").write_text(render_html(outcome, diff), encoding="utf-8", newline="\n")
        (made / "report.json").write_text(report_json(outcome), encoding="utf-8", newline="\n")
        (made / "model_explorer.json").write_text(node_data_json(outcome), encoding="utf-8", newline="\n")
        (made / "model_explorer_graph.json").write_text(graph_json(outcome), encoding="utf-8", newline="\n")
    return target


def _save_pictures(outcome: Outcome, folder: Path) -> str | None:
    """Write the three pictures; return the diff as SVG text, or None where only DOT could be written."""
    drawings = {"before": draw_before(outcome), "after": draw_after(outcome), "diff": draw_diff(outcome)}
    svgs = {name: render_svg(drawing) for name, drawing in drawings.items()}
    for name, svg in svgs.items():
        suffix, text = ("dot", drawings[name].source) if svg is None else ("svg", svg)
        (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8", newline="\n")
    return svgs["diff"]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class _Seal:
    """What the weights file says about itself, beside the tensors.

    Attributes:
        plan_sha256, weights_sha256: Of the plan's text and of all tensors.
        aliases: For every further name of a tensor, the name it is stored under.
        channels_last: Names of the tensors that lie in memory in that order.
    """

    plan_sha256: str
    weights_sha256: str
    aliases: dict[str, str]
    channels_last: tuple[str, ...]
    format: int = FORMAT


def _save_weights(model: nn.Module, path: Path, plan_text: str) -> None:
    state = _tensor_state(model)
    stored, aliases = _split_aliases(state)
    turned = tuple(name for name, tensor in state.items() if is_channels_last(tensor))
    seal = _Seal(_hash_text(plan_text), _hash_tensors(stored), aliases, turned)
    try:
        safetensors.torch.save_file(stored, path, metadata={_KEY: json.dumps(asdict(seal), sort_keys=True)})
    except safetensors.SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    path.chmod(0o644)  # safetensors makes it private; all files of a result are read by the same people


def _tensor_state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    foreign = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise FileError(
            f"the model's state holds values that are no tensors ({', '.join(foreign[:3])}); only tensors can be saved "
            "without pickle. Keep such state in buffers, or save result.model.state_dict() yourself."
        )
    return {name: value.detach().cpu() for name, value in state.items()}


def _split_aliases(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under one name each, and for every further name of the same tensor the first."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        known = first.get(key) if tensor.numel() else None
        if known is None:
            first[key] = name
            stored[name] = tensor.contiguous().clone()
        else:
            aliases[name] = known
    return stored, aliases


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def load(folder: str | Path, model: nn.Module, inputs: Any = None) -> nn.Module:
    """The saved model: structure from plan.json, weights from model.safetensors, checked against each other.

    Args:
        folder: What ``result.save()`` wrote; only plan.json and model.safetensors are read.
        model: A fresh instance of the model that was optimised, with any weights. It is not changed.
        inputs: Only for a result that is a GraphModule: one example call to record the model with. None makes one of
            the shapes in the plan.

    Returns:
        A model of the same class (a GraphModule where the result was one) that gives the saved model's outputs bit for
        bit, in ``model``'s train or eval mode.

    Raises:
        FileError: A file is missing, truncated, changed, or not of this format.
        RewriteError: The plan or the weights do not fit this model.
        ModelError, InputError: The model cannot be recorded as a graph, where the result was one.
    """
    source = as_path(folder, "load")
    plan_text = decode(read_bytes(source / PLAN, "the plan"), source / PLAN)
    plan = Plan.from_json(plan_text)
    state, seal = _load_weights(source / WEIGHTS, plan_text)
    original = unwrap_model(model)
    if plan.arguments is not None:
        original = to_graph_module(original, make_call(plan) if inputs is None else inputs)
    built = rewrite_structure(original, plan)
    _check_state(built, state)
    built.load_state_dict(state, strict=True)
    _lay_out(built, seal.channels_last)
    return built


def _lay_out(model: nn.Module, channels_last: Sequence[str]) -> None:
    """Put the tensors into memory as the saved ones were: their order decides the order of additions."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() in (4, 5):
            turned = choose_layout(tensor, channels_last=name in channels_last)
            tensor.data = tensor.data.contiguous(memory_format=turned)


def decode(content: bytes, path: Path) -> str:
    """The text in a file of a result. Raises FileError when it is not UTF-8."""
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is not UTF-8 text. {_AGAIN}") from error


def _load_weights(path: Path, plan_text: str) -> tuple[dict[str, Tensor], _Seal]:
    content = read_bytes(path, "the weights file")
    try:
        tensors = safetensors.torch.load(content)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise FileError(f"{path}: is not a whole safetensors file ({error}). {_AGAIN}") from error
    seal = _read_seal(path, metadata)
    _check_seal(path, seal, plan_text, tensors)
    return {**tensors, **{name: tensors[first] for name, first in seal.aliases.items()}}, seal


def _read_seal(path: Path, metadata: Mapping[str, str]) -> _Seal:
    if _KEY not in metadata:
        raise FileError(f"{path}: was not written by result.save(). {_AGAIN}")
    try:
        return TypeAdapter(_Seal).validate_json(metadata[_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise FileError(f"{path}: its metadata were changed: {where}: {first['msg']}. {_AGAIN}") from error


def _check_seal(path: Path, seal: _Seal, plan_text: str, tensors: Mapping[str, Tensor]) -> None:
    if seal.format != FORMAT:
        raise FileError(f"{path}: has format {seal.format}; this version reads format {FORMAT}. {_AGAIN}")
    if seal.plan_sha256 != _hash_text(plan_text):
        raise FileError(f"{path}: was saved with another plan.json than the one beside it. {_AGAIN}")
    if seal.weights_sha256 != _hash_tensors(tensors):
        raise FileError(f"{path}: its weights were changed after saving. {_AGAIN}")
    if not set(seal.aliases.values()) <= set(tensors):
        raise FileError(f"{path}: its list of shared tensors names tensors it does not hold. {_AGAIN}")


def _check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = {name: _describe(value) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    got = {name: _describe(value) for name, value in state.items()}
    wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if wrong:
        name = wrong[0]
        raise RewriteError(
            f"the saved weights do not fit this model: '{name}' is {got.get(name, 'missing')} in the file, "
            f"{expected.get(name, 'missing')} in the model ({len(wrong)} differ). "
            "Pass a model built with the same arguments, in the same precision."
        )


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
