"""What ``optimize`` returns."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import graphviz
import torch.fx
from torch import nn

from bottleneck_opt.calibrating import hash_weights
from bottleneck_opt.diagrams import Look, draw_after, draw_before, draw_diff, draw_rewrite, render_svg
from bottleneck_opt.errors import InputError
from bottleneck_opt.exporting import Exported, export
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.profiling import Profile
from bottleneck_opt.report import render_text
from bottleneck_opt.saving import save_outcome

_CHANGED = (
    "the weights were changed after they were measured, as by training result.model: the saved ones are those of now; "
    "the change of the output, the metric and the refits are those of before. Costs and structure still hold"
)
_DRAWINGS = {"before": draw_before, "after": draw_after, "diff": draw_diff}


@dataclass(frozen=True, repr=False)
class Result(Outcome):
    """The rewritten model with everything that is known about it.

    Attributes:
        model: A copy of the caller's model, of the same class, with the chosen layers replaced. With the pass
            ``shared`` a ``torch.fx.GraphModule`` of its recorded run, for the recorded shapes.
        graph_module: The same parameters behind a ``torch.fx.GraphModule``, for the recorded shapes; None where the
            recorded graph does not reproduce the model, with the reason in ``notes``.
        measured_sha256: Of the weights that were measured.
    """

    model: nn.Module
    graph_module: torch.fx.GraphModule | None
    measured_sha256: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Remember which weights were measured: the model may be trained in place."""
        object.__setattr__(self, "measured_sha256", hash_weights(self.model))

    def draw(
        self,
        which: Literal["before", "after", "diff", "pass"] = "diff",
        path: str | None = None,
        *,
        detail: Literal["auto", "stage", "block", "layer", "operation"] = "auto",
        heat: Literal["macs", "params", "ms"] = "macs",
        theme: Literal["light", "dark"] = "light",
        profiles: tuple[Profile, Profile] | None = None,
    ) -> graphviz.Digraph:
        """The model before, after, both in one picture that shows what changed, or one rewrite close up.

        Args:
            which: ``before``, ``after``, ``diff``, or ``pass`` for the rewrite of the layer at ``path``.
            path: Module path of a rewritten layer, or of a shared bottleneck; only for ``pass``.
            detail: How much is folded: one box a stage, a block, a layer or an operation. ``auto`` is the finest that
                fits on a page.
            heat: What fill and bars measure: multiply-adds, parameters or milliseconds.
            theme: The colours.
            profiles: For ``heat="ms"``: what :func:`bottleneck_opt.profile` measured of the original model and of
                ``result.model``. Nothing is timed here.

        Raises:
            InputError: An argument is something else, the layer at ``path`` was not rewritten, or timings are missing.

        Example:
            ``result.draw("pass", "layer3.0.conv2", theme="dark")``
        """
        times = None if profiles is None else (profiles[0].milliseconds, profiles[1].milliseconds)
        look = Look(detail, heat, theme, times)
        if which == "pass":
            return draw_rewrite(self, path, look)
        if which not in _DRAWINGS:
            raise InputError(f"draw: got {which!r}; expected 'before', 'after', 'diff' or 'pass'. Write draw('diff').")
        if path is not None:
            raise InputError(f"draw({which!r}): got path={path!r}, which is for 'pass'. Write draw('pass', {path!r}).")
        return _DRAWINGS[which](self, look)

    def save(self, folder: str | Path) -> Path:
        """Write plan.json, model.safetensors, reports and pictures to a folder, whole or not at all.

        The weights are those that ``result.model`` has now: it may have been fine-tuned in place. The reports then say
        that they were measured before.

        Raises:
            FileError: The folder cannot be written.

        Example:
            ``train(result.model)``, then ``result.save("out")``; later ``bo.load("out", MyNetwork())``
        """
        changed = hash_weights(self.model) != self.measured_sha256
        outcome = replace(self, notes=(_CHANGED, *self.notes), weights_changed=True) if changed else self
        return save_outcome(outcome, self.model, folder)

    def export(
        self,
        path: str | Path,
        *,
        dynamic_batch: bool = True,
        opset: int | None = None,
        check: bool = True,
        quantize: Literal["int8"] | None = None,
        calibration: Any = None,
        calibration_limit: int = 256,
    ) -> Exported:
        """Write the model as ``.onnx`` or ``.pt2``; arguments, checks and errors as :func:`bottleneck_opt.export`.

        A result does not keep the data it was made with: ``quantize="int8"`` asks for them again.
        """
        return export(
            self.model, self.before.inputs, path, dynamic_batch=dynamic_batch, opset=opset, check=check,
            quantize=quantize, calibration=calibration, calibration_limit=calibration_limit,
        )  # fmt: skip

    def __str__(self) -> str:
        return render_text(self)

    def __repr__(self) -> str:
        return (
            f"Result({type(self.model).__name__}, {len(self.plan.steps)} layers rewritten, "
            f"macs {self.before.cost.macs:,} -> {self.after.cost.macs:,})"
        )

    def _repr_html_(self) -> str:
        """The diff picture and the table, for notebooks; the picture as an image, which no notebook clips."""
        table = f"<pre>{html.escape(str(self))}</pre>"
        svg = render_svg(self.draw("diff"))
        if svg is None:
            return table
        data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
        return f'<img alt="before and after" src="data:image/svg+xml;base64,{data}"/>{table}'
