"""What is found out about one model: a line of the zoo's result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """One model's results, filled in stage by stage; what was not reached keeps its default.

    Attributes:
        name, family: The entry.
        finished: Whether all was asked; False where the process ended before.
        failures: For each stage that failed, its error in one line.
        dtype: The precision of the full-rank comparison.
        build_seconds, forward_seconds, trace_seconds, draw_seconds, rewrite_seconds: Wall time of the stages.
        seconds: Wall time of all.
        trace_passes: Seconds of tracing in forward passes.
        peak_mib: Most memory the process held, its libraries included.
        nodes, macs, params: Of the recorded run; ``params`` and ``macs`` as in ``Cost``.
        torch_macs: Half of what torch's FlopCounterMode counts; None where that fails.
        replay_exact, replay_reason, notes: As in ``Traced``.
        drawn: Whether the picture's text was made.
        layers: Convolutions and Linears that the model has.
        unexecuted: Those that the input did not reach.
        rewritten: Those that were rewritten at full rank.
        dense_macs: MACs in convolutions with a kernel above 1x1 that are not depthwise.
        rewritten_dense_macs: Those of them that were rewritten.
        skipped_macs: MACs left alone, by reason.
        error: Change of the output on a new input by rewriting at full rank, relative to how much the output varies
            between two inputs; None where nothing could be compared.
        tolerance: What ``error`` may be.
        control: The same for a deliberately wrong factor in one layer.
        vacuous: Whether the output is the same for two inputs, so that ``error`` says nothing.
        rescaled: Whether weights were rescaled to make the output vary.
    """

    name: str
    family: str
    finished: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    dtype: str = ""
    build_seconds: float | None = None
    forward_seconds: float | None = None
    trace_seconds: float | None = None
    draw_seconds: float | None = None
    rewrite_seconds: float | None = None
    seconds: float = 0.0
    peak_mib: int = 0
    nodes: int = 0
    macs: int = 0
    params: int = 0
    torch_macs: int | None = None
    replay_exact: bool | None = None
    replay_reason: str = ""
    notes: list[str] = field(default_factory=list)
    drawn: bool = False
    layers: int = 0
    unexecuted: int = 0
    rewritten: int = 0
    dense_macs: int = 0
    rewritten_dense_macs: int = 0
    skipped_macs: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    tolerance: float = 0.0
    control: float | None = None
    vacuous: bool = False
    rescaled: bool = False

    @property
    def traced(self) -> bool:
        """Whether the run was recorded."""
        return self.trace_seconds is not None

    @property
    def costed(self) -> bool:
        """Whether the MACs are torch's."""
        return self.traced and self.macs == self.torch_macs

    @property
    def compared(self) -> bool:
        """Whether the full-rank comparison says something."""
        return self.error is not None and not self.vacuous and not self.insensitive

    @property
    def insensitive(self) -> bool:
        """Whether a deliberately wrong factor goes unseen."""
        return self.control is not None and self.control <= max(1e-4, 10 * self.tolerance)

    @property
    def mismatched(self) -> bool:
        """Whether rewriting at full rank changed the output without a word."""
        return self.error is not None and not self.error <= self.tolerance

    @property
    def trace_passes(self) -> float | None:
        """Seconds of tracing in forward passes."""
        return self.trace_seconds / self.forward_seconds if self.trace_seconds and self.forward_seconds else None

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**asdict(self), "trace_passes": self.trace_passes})


def read_row(line: str) -> Row:
    """The row of a line written by :meth:`Row.to_json`."""
    values: Mapping[str, Any] = json.loads(line)
    return Row(**{key: value for key, value in values.items() if key != "trace_passes"})
