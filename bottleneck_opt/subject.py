"""What one optimisation works on: the caller's model, the copy that may be run, its recording and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bottleneck_opt.calibration_data import (
    CalibrationData,
    choose_noise_examples,
    list_first,
    place_batch,
    read_calibration,
    read_examples,
)
from bottleneck_opt.eligibility import Candidates, find_candidates
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Traced
from bottleneck_opt.graph_view import record_as_module
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.layers import class_name
from bottleneck_opt.mixing import Mixed, mix
from bottleneck_opt.plan import Argument
from bottleneck_opt.recorded_call import describe_arguments
from bottleneck_opt.rehearsing import rehearse
from bottleneck_opt.sources import read_calibration_path
from bottleneck_opt.tracing import build_lazy_layers, choose_inputs, find_fault, runs_on, trace_working
from bottleneck_opt.working_copy import copy_to_device, model_device, working_inputs

_NO_GRAPH = (
    "A shared bottleneck stands between modules and needs this graph: leave 'shared' out of passes=, which keeps the "
    "model as it is."
)


@dataclass(frozen=True)
class Request:
    """What the caller asked to be looked at, as it was given."""

    inputs: Any
    calibration: Any
    limit: int
    device: str | torch.device | None
    seed: int
    include: Sequence[str] | str | None
    exclude: Sequence[str] | str | None
    mixes: int | None = None


@dataclass(frozen=True)
class Subject:
    """The model under work: the caller's own (never run), the copy that is, its recording and its data.

    Attributes:
        name: Qualified class name of the caller's model.
        original: The caller's model, or its recorded graph over a copy of its weights.
        fitting: What layers are fitted to: the data, and mixes of its examples where they are few.
        arguments: The call that this graph was recorded with; None where ``original`` is the caller's model.
    """

    name: str
    original: nn.Module
    working: nn.Module
    traced: Traced
    data: CalibrationData
    fitting: CalibrationData
    candidates: Candidates
    notes: tuple[str, ...]
    arguments: tuple[Argument, ...] | None = None

    @property
    def example(self) -> Inputs:
        """The example call, as the working copy takes it."""
        return self.traced.inputs


def prepare_subject(original: nn.Module, request: Request, *, as_graph: bool = False) -> Subject:
    """Copy, record and read the data.

    Args:
        original: The caller's model.
        request: What the caller asked for.
        as_graph: Work on the model's recorded graph instead of the model.

    Raises:
        ModelError, InputError, PatternError, FileError: What was asked for cannot be used.
    """
    name = class_name(original)
    request = _open_calibration(original, request)
    data = _read_data_alone(request)
    original = build_lazy_layers(original, request.inputs if data is None else list_first(data)[0])
    working = copy_to_device(original, request.device)
    example, notes = choose_inputs(working, request.inputs) if data is None else _choose_from_data(working, data)
    whole = working
    if as_graph:
        recorded = record_as_module(original, working, example, _NO_GRAPH)
        notes = (*notes, *_tell_about_graph(original, recorded, example))
        original, working = recorded, copy_to_device(recorded, request.device)
    traced = trace_working(working, example)
    data = data or read_calibration(
        request.calibration,
        example,
        given=request.inputs,
        limit=request.limit,
        seed=request.seed,
        runs=lambda call: runs_on(working, call),
        noise_examples=choose_noise_examples(traced.cost.macs / max(1, batch_size(example)), _count_positions(example)),
    )
    if as_graph:
        _check_batches(whole, working, data, example)
    candidates = find_candidates(working, traced, include=request.include, exclude=request.exclude)
    refused = rehearse(working, example, candidates)
    arguments = describe_arguments(example) if as_graph else None
    macs = traced.cost.macs / max(1, batch_size(example))
    mixed = mix(data, working, macs, request.mixes, seed=request.seed)
    notes = (*notes, *data.notes, *_tell_about_mixes(mixed))
    left = candidates.without(refused)
    return Subject(name, original, working, traced, data, mixed.data, left, notes, arguments)


def _open_calibration(original: nn.Module, request: Request) -> Request:
    """The request with what is in a folder or file that it names."""
    given = request.calibration
    if not isinstance(given, str | Path):
        return request
    read = read_calibration_path(given, original, inputs=request.inputs, limit=request.limit)
    return replace(request, calibration=read)


def _read_data_alone(request: Request) -> CalibrationData | None:
    """The data, where it comes without an example call: it tells what a call looks like. None elsewhere."""
    if request.inputs is not None or request.calibration is None:
        return None
    return read_examples(request.calibration, limit=request.limit)


def _choose_from_data(working: nn.Module, data: CalibrationData) -> tuple[Inputs, tuple[str, ...]]:
    """The first example of the data, or its first batch where the model does not run on one alone.

    Raises:
        InputError: The model runs on neither.
    """
    calls = [working_inputs(call, working, model_device(working)) for call in list_first(data)]
    faults = []
    for call, words in zip(calls, ("example", "batch"), strict=True):
        faults.append(find_fault(working, call, what="calibration"))
        if not faults[-1]:
            return call, (f"inputs: {call.describe()}, the first {words} of the calibration data",)
    raise InputError(faults[0])


def _check_batches(whole: nn.Module, recorded: nn.Module, data: CalibrationData, example: Inputs) -> None:
    """Raise InputError when the model runs on the data and its recording, which may hold the example's sizes, does not.

    Args:
        whole: The model's working copy.
        recorded: Its recording.
        data: What both must run on.
        example: The call that was recorded.
    """
    like = next(recorded.parameters(), torch.zeros((), device="cpu"))
    batch = place_batch(data.batches[0], device=like.device, dtype=like.dtype)
    if not runs_on(recorded, batch) and runs_on(whole, batch):
        raise InputError(
            f"inputs: the graph recorded with {example.describe()} holds its sizes and fails on the calibration's "
            f"batches, {batch.describe()}; expected the same sizes. Pass a batch of the calibration data as inputs=."
        )


def _tell_about_graph(original: nn.Module, recorded: nn.Module, example: Inputs) -> list[str]:
    """What a careful user should know about a graph in the place of the model."""
    notes = [
        f"result.model is a torch.fx.GraphModule, not a {type(original).__name__}: a shared bottleneck stands between "
        f"modules. It was recorded with {example.describe()} in eval mode and holds for inputs of these shapes; for "
        "others compare it with the model first"
    ]
    whole, used = (sum(each.numel() for each in model.parameters()) for model in (original, recorded))
    if used < whole:
        notes.append(f"the recorded run uses {used:,} of the model's {whole:,} parameters: the others are not in it")
    return notes


def _tell_about_mixes(mixed: Mixed) -> list[str]:
    if mixed.skipped:
        return [f"fitted to the examples alone, to no mixes of them: {mixed.skipped}"]
    real, mixes = mixed.data.real, mixed.data.mixes
    return [f"fitted to the {real} examples and, as they are few, to {mixes} mixes of two of them"] if mixes else []


def _count_positions(example: Inputs) -> int:
    """Pixels or time steps of one example: the axes after batch and channels of the first tensor that has any."""
    sized = (tensor.shape[2:] for tensor in example.tensors() if tensor.dim() > 2)
    return next((shape.numel() for shape in sized), 1)
