"""What one optimisation works on: the caller's model, the copy that may be run, its recording and its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bottleneck_opt.calibration_data import CalibrationData, choose_noise_examples, read_calibration
from bottleneck_opt.eligibility import Candidates, find_candidates
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.rehearsing import rehearse
from bottleneck_opt.tracing import build_lazy_layers, choose_inputs, runs_on, trace_working
from bottleneck_opt.working_copy import copy_to_device


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


@dataclass(frozen=True)
class Subject:
    """The model under work: the caller's own (never run), the copy that is, its recording and its data."""

    original: nn.Module
    working: nn.Module
    traced: Traced
    data: CalibrationData
    candidates: Candidates
    notes: tuple[str, ...]

    @property
    def example(self) -> Inputs:
        """The example call, as the working copy takes it."""
        return self.traced.inputs


def prepare_subject(original: nn.Module, request: Request) -> Subject:
    """Copy, record and read the data.

    Raises:
        ModelError, InputError, PatternError: What was asked for cannot be used.
    """
    original = build_lazy_layers(original, request.inputs)
    working = copy_to_device(original, request.device)
    example, notes = choose_inputs(working, request.inputs)
    traced = trace_working(working, example)
    data = read_calibration(
        request.calibration,
        example,
        given=request.inputs,
        limit=request.limit,
        seed=request.seed,
        runs=lambda call: runs_on(working, call),
        noise_examples=choose_noise_examples(traced.cost.macs / max(1, batch_size(example)), _count_positions(example)),
    )
    candidates = find_candidates(working, traced, include=request.include, exclude=request.exclude)
    refused = rehearse(working, example, candidates)
    return Subject(original, working, traced, data, candidates.without(refused), notes)


def _count_positions(example: Inputs) -> int:
    """Pixels or time steps of one example: the axes after batch and channels of the first tensor that has any."""
    sized = (tensor.shape[2:] for tensor in example.tensors() if tensor.dim() > 2)
    return next((shape.numel() for shape in sized), 1)
