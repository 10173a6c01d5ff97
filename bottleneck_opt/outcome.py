"""Everything known about a finished optimisation, as plain data for the texts, pictures and files made of it."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.plan import Plan


@dataclass(frozen=True)
class Skipped:
    """A convolution or Linear that stays as it was.

    Attributes:
        path: Module path.
        operation: What it is, such as ``conv 3x3``.
        reason: Why it was left alone.
        advice: What the user can do about it; empty when there is nothing to do.
        cost: Its cost over all calls.
        share: Its share of the whole model's MACs, 0 to 1.
        passes: The passes that gave the reason.
    """

    path: str
    operation: str
    reason: str
    advice: str
    cost: Cost
    share: float
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Speed:
    """Milliseconds a call, medians of interleaved runs.

    Attributes:
        before, after: Median wall milliseconds of one call at the example input.
        runs: Timed calls of each model.
        threads: CPU threads used.
        device: Where it ran.
        spread: How unsteady it was: interquartile range over median, the larger of both models.
    """

    before: float
    after: float
    runs: int
    threads: int
    device: str
    spread: float = 0.0


@dataclass(frozen=True)
class Verification:
    """What was measured on the result.

    Attributes:
        data: In words, the data all of this was measured on.
        examples: How many examples that was.
        predicted_change, measured_change: Mean squared change of the output, relative to the output's variance. The
            measured one is None where the output has no floating values that vary.
        kl: Mean Kullback-Leibler divergence to the original's softmax; None unless the output is ``(batch, classes)``.
        agreement: Share of examples with the same top class; None likewise.
        graph_difference: Largest relative difference between the rewritten module and the rewritten graph, or None
            when there is no graph.
        speed: None when it was not timed.
        metric_before, metric_after: What ``evaluate`` returned, or None.
        checks: What was checked, one sentence each.
    """

    data: str
    examples: int
    predicted_change: float
    measured_change: float | None
    kl: float | None
    agreement: float | None
    graph_difference: float | None
    speed: Speed | None
    metric_before: float | None
    metric_after: float | None
    checks: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """What the run was given and what it ran on: versions, seed, data, command.

    ``noise`` says that the calibration data was made up; the hashes tell whether two runs had the same weights and the
    same examples.
    """

    model: str
    inputs: str
    calibration: str
    passes: tuple[str, ...]
    budget: str
    seed: int
    versions: tuple[tuple[str, str], ...]
    device: str
    threads: int
    noise: bool = False
    weights_sha256: str = ""
    data_sha256: str = ""


@dataclass(frozen=True)
class Correction:
    """What refitting did to one layer.

    Attributes:
        path: The layer.
        before, after: Squared error of its output on the held-out examples, as the network's output feels it, relative
            to the output itself.
        accepted: Whether the correction was made.
        halved: As ``after``, when fitted to half of the examples: tells whether more of them would help.
    """

    path: str
    before: float
    after: float
    accepted: bool
    halved: float = float("nan")


@dataclass(frozen=True)
class Recovered:
    """What came of training the rewritten model towards the original's outputs.

    Attributes:
        before, after: Loss on the held-out examples before training and of the weights that were kept.
        steps: Steps that were run.
        best_step: The step whose weights were kept; 0 for those before training.
        stopped: Why training ended before its last step; empty when it did not.
        trained_on, held_out: Number of examples.
        norms: What came of measuring batch-norm statistics again: ``kept``, ``no help``, or why it was not done.
        noise: The examples were made up.
    """

    before: float
    after: float
    steps: int
    best_step: int
    stopped: str
    trained_on: int
    held_out: int
    norms: str
    noise: bool

    @property
    def accepted(self) -> bool:
        """Whether the model was changed."""
        return self.best_step > 0 or self.norms == "kept"


@dataclass(frozen=True)
class Outcome:
    """The numbers and graphs of one optimisation.

    Attributes:
        plan: What was done.
        skipped: What was left alone and why, largest share first.
        before, after: The model's recorded run before and after.
        verification: What was measured.
        budget_met: Whether the plan's cost is within the budget.
        notes: Everything a careful user should know.
        seconds: How long each stage took, in order.
        provenance: What it was made from.
        corrections: What refitting did to each rewritten layer, in the order they run.
        recovery: What training did, the last time; None where it was not asked for.
    """

    plan: Plan
    skipped: tuple[Skipped, ...]
    before: Traced
    after: Traced
    verification: Verification
    budget_met: bool
    notes: tuple[str, ...]
    seconds: tuple[tuple[str, float], ...]
    provenance: Provenance
    corrections: tuple[Correction, ...]
    recovery: Recovered | None
