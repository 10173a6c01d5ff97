"""A model's per-layer table and its picture, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import graphviz
from torch import nn

from bottleneck_opt.diagrams import Look, draw_model
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import is_without_values
from bottleneck_opt.latency import time_modules
from bottleneck_opt.report import ModelSummary, render_keras, render_profile, summarize_model
from bottleneck_opt.tracing import prepare_trace, trace, trace_working, with_notes
from bottleneck_opt.working_copy import undisturbed, unwrap_model


@dataclass(frozen=True, repr=False)
class Profile:
    """Where a model's cost is; print it for the table.

    Attributes:
        traced: The recorded run with costs per node.
        milliseconds: Median milliseconds in each leaf module over all its calls, by path; empty when not timed.
        summary: The layers with their weights.
        untimed: Why it was not timed; empty when it was.
    """

    traced: Traced
    milliseconds: Mapping[str, float]
    summary: ModelSummary
    untimed: str = ""

    def keras(self) -> str:
        """The layers, output shapes and parameters in the look of Keras's ``model.summary()``."""
        return render_keras(self.summary)

    def __str__(self) -> str:
        if self.untimed:
            return f"{render_profile(self.traced, None)}not timed: {self.untimed}\n"
        return render_profile(self.traced, self.milliseconds)

    __repr__ = __str__


def profile(model: nn.Module, inputs: Any = None, *, timed: bool = True) -> Profile:
    """MACs, parameters, share of the total and measured milliseconds for each layer.

    Args:
        model: Any module; a copy is run, in eval mode.
        inputs: One example call; None infers it.
        timed: Whether to measure milliseconds.

    Raises:
        ModelError, InputError: As for :func:`trace`.

    Example:
        >>> import torch
        >>> table = profile(nn.Sequential(nn.Conv2d(3, 2, 3)), torch.zeros(1, 3, 6, 6))
        >>> table.traced.cost.macs, list(table.milliseconds)
        (864, ['0'])
    """
    with undisturbed():
        working, example, notes = prepare_trace(model, inputs)
        traced = with_notes(trace_working(working, example), notes)
        summary = summarize_model(unwrap_model(model), working, traced)
        if not timed:
            return Profile(traced, {}, summary, "not asked for")
        if is_without_values(working):
            return Profile(traced, {}, summary, "a model on the meta device holds no values to compute with")
        paths = sorted({node.path for node in traced.structure.nodes if node.kind == "module"})
        return Profile(traced, time_modules(working, example, paths), summary)


def draw(
    model: nn.Module,
    inputs: Any = None,
    *,
    detail: Literal["auto", "stage", "block", "layer", "operation"] = "auto",
    heat: Literal["macs", "params", "ms"] = "macs",
    theme: Literal["light", "dark"] = "light",
) -> graphviz.Digraph:
    """A picture of any model: one box for each convolution with its normalisation and activation, heat by cost.

    Args:
        model: Any module; a copy is run.
        inputs: One example call; None infers it.
        detail: How much is folded: one box a stage, a block, a layer or an operation. ``auto`` is the finest that fits
            on a page. Equal blocks in a row are drawn once, with their number.
        heat: What fill and bars measure: multiply-adds, parameters, or milliseconds, which are measured for it.
        theme: The colours.

    Returns:
        A digraph that notebooks show; :func:`bottleneck_opt.diagrams.render_file` writes it as SVG, PNG, PDF or DOT.

    Raises:
        ModelError, InputError: As for :func:`trace`; also where ``heat="ms"`` and the model cannot be timed.

    Example:
        >>> import torch
        >>> picture = draw(nn.Sequential(nn.Conv2d(3, 2, 3)), torch.zeros(1, 3, 6, 6), theme="dark")
        >>> "864 MAC" in picture.source
        True
    """
    look = Look(detail, "macs" if heat == "ms" else heat, theme)  # says what is wrong before anything is run
    title = type(unwrap_model(model)).__name__
    if heat != "ms":
        return draw_model(trace(model, inputs), title=title, look=look)
    timed = profile(model, inputs)
    if timed.untimed:
        raise InputError(f"heat='ms': {timed.untimed}. Choose heat='macs' or 'params'.")
    times = (timed.milliseconds, timed.milliseconds)
    return draw_model(timed.traced, title=title, look=replace(look, heat=heat, milliseconds=times))
