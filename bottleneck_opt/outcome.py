"""Everything known about a finished optimisation, as plain data for the texts, pictures and files made of it."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        layers: Median milliseconds in each rewritten layer over all its calls, ``(path, before, after)``; empty where
            that was not timed.
        batch: Examples in the call; None for the example input's own number.
        target: What ran it: ``eager`` PyTorch, ``compile`` or ``onnxruntime``.
    """

    before: float
    after: float
    runs: int
    threads: int
    device: str
    spread: float = 0.0
    layers: tuple[tuple[str, float, float], ...] = ()
    batch: int | None = None
    target: str = "eager"


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
        held_out_change: As ``measured_change``, on inputs that were not fitted to; None where there are none.
        held_out_data: Which these are, in words: the fifth of the examples that was held out when all layers were
            fitted together, or, where mixes of all were fitted to, new mixes.
        more_speeds: As ``speed``, in the other settings that were asked for.
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
    held_out_change: float | None = None
    held_out_data: str = "held-out inputs"
    more_speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """What the run was given and what it ran on: versions, seed, data, command.

    ``noise`` says that the calibration data was made up; the hashes tell whether two runs had the same weights and the
    same examples. ``timing`` are the settings that were timed in; ``allow_slower`` is as it was asked for.
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
    timing: tuple[str, ...] = ()
    allow_slower: bool | None = None


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
        trained_on, held_out: Number of examples to learn from and to judge by.
        mixed: Whether mixes of two examples were learnt from; then the examples to judge by are those that were mixed,
            and mixes that were not learnt from.
        unmixed: Why there were none, where the examples are few; empty elsewhere.
        unturned: Why steps were taken along the entries of the weights, not along the axes of each layer's inputs and
            outputs; empty where they were taken along those.
        in_vain: Steps of a first try that brought nothing, before these, which are smaller; 0 where there was none.
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
    mixed: bool = False
    unmixed: str = ""
    unturned: str = ""
    in_vain: int = 0

    @property
    def accepted(self) -> bool:
        """Whether the model was changed."""
        return self.best_step > 0 or self.norms == "kept"


@dataclass(frozen=True)
class Tradeoff:
    """What some plan would cost, and the change of the output it would be predicted to make.

    Attributes:
        cost: Cost of the whole model.
        loss: Summed predicted loss.
    """

    cost: Cost
    loss: float


@dataclass(frozen=True)
class Curve:
    """What a layer would lose at other ranks of the form that was chosen for it, smallest first.

    Attributes:
        path: The layer.
        ranks: The ranks of each option.
        costs: Cost of each option over all calls of the layer.
        losses: Predicted loss of each.
    """

    path: str
    ranks: tuple[tuple[int, ...], ...]
    costs: tuple[Cost, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Tried:
    """A model that was measured on the way to the smallest one above the floor.

    Attributes:
        budget: The limits it was made for, as they may be typed.
        macs, params: What it costs, as recorded.
        metric: What ``evaluate`` returned, the mean where it returned one score a sample; None where it returned
            nothing that can be used.
        worst: With one score a sample, the metric that is surely reached: the lower end of an interval. Else None.
        held: Whether it was above the floor, each time that it was measured.
        reason: Why nothing was measured; empty where something was.
        confirmed: The second measurement, of the model that was to be returned; None for the others.
        returned: Whether this is the model of the result.
    """

    budget: str
    macs: int
    params: int
    metric: float | None
    worst: float | None
    held: bool
    reason: str = ""
    confirmed: float | None = None
    returned: bool = False


@dataclass(frozen=True)
class Promise:
    """What came of the search for the smallest model whose metric drops by no more than was allowed.

    Attributes:
        max_drop: How far it may drop.
        metric: The original's.
        samples: How many scores ``evaluate`` returned.
        smallest_wanted: No budget was typed, so that the smallest model was searched for.
        tried: Every model that was measured, in that order. Where none is marked as returned, the original is.
        evaluations: Calls of ``evaluate``, that of the original included.
        reason: In a sentence, why this model was returned.
    """

    max_drop: float
    metric: float
    samples: int
    smallest_wanted: bool
    tried: tuple[Tried, ...]
    evaluations: int
    reason: str

    @property
    def floor(self) -> float:
        """The lowest metric that is accepted."""
        return self.metric - self.max_drop

    @property
    def measured(self) -> tuple[float, float | None]:
        """The metric before and after, the last measurement of the model that is returned."""
        return self.metric, self.metric if self.returned is None else self.returned.confirmed

    @property
    def returned(self) -> Tried | None:
        """The model of the result; None where that is the original."""
        return next((each for each in self.tried if each.returned), None)


@dataclass(frozen=True)
class Timed:
    """Milliseconds of the whole model in one setting.

    Attributes:
        setting: The setting in words.
        before: Of the original.
        predicted: What was expected of the result, when it was chosen.
        after: Of the result.
    """

    setting: str
    before: float
    predicted: float
    after: float


@dataclass(frozen=True)
class LeftOut:
    """A replacement that was chosen at first, timed, and left out because it is no faster than the layer itself.

    Attributes:
        path: The layer.
        form, ranks: The replacement.
        before, after: Milliseconds of the layer and of the replacement.
    """

    path: str
    form: str
    ranks: tuple[int, ...]
    before: float
    after: float


@dataclass(frozen=True)
class Clocked:
    """What came of timing while choosing.

    Attributes:
        timed: The whole model in each setting; empty where time is not limited.
        models: How many whole models were timed.
        left_out: Replacements that are no faster.
        taken_all_the_same: The budget cannot be met without such replacements, so they were not left out.
        latency: Nanoseconds of the result in the setting where it gains least, in terms of the first one's time where
            the budget is relative; 0 where time is not limited.
        fault: Why times are not kept on disk; empty where they are.
    """

    timed: tuple[Timed, ...] = ()
    models: int = 0
    left_out: tuple[LeftOut, ...] = ()
    taken_all_the_same: bool = False
    latency: int = 0
    fault: str = ""


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
        frontier: The least predicted loss at several costs of the whole model, cheapest first; before refitting.
        curves: For rewritten layers, what other ranks would have lost.
        promise: What the search above a floor tried; None where there was no ``max_drop``.
        clocked: What came of timing while choosing; None where nothing was timed then.
        weights_changed: Whether the model's weights are no longer those that were measured.
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
    frontier: tuple[Tradeoff, ...] = field(default=(), kw_only=True)
    curves: tuple[Curve, ...] = field(default=(), kw_only=True)
    promise: Promise | None = field(default=None, kw_only=True)
    clocked: Clocked | None = field(default=None, kw_only=True)
    weights_changed: bool = field(default=False, kw_only=True)

    @property
    def made_up(self) -> bool:
        """Whether the output change was measured on noise, so that it tells little about the user's inputs."""
        trained_on_data = self.recovery is not None and not self.recovery.noise
        return self.provenance.noise and not trained_on_data
