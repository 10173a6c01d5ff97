"""Fit all layers of the rewritten model together, to the original's final outputs: linear least squares, no training.

Layer-wise refitting gives every layer the inputs it really gets, but each layer still aims at what it gave in the
original network. Here the final output is the target, and errors of one layer are made up for by others. Around the
weights at hand the model is linear in them, ``f(x) + J d``, so the best change ``d`` solves a least-squares problem. It
has as many unknowns as there are weights: conjugate gradients solve it with two runs of the model an iteration, one for
``J p`` and one with a backward pass for ``J^T r``, conditioned by what calibration can tell of each layer alone.

A fifth of the examples is held out, and the iterate that does best there is kept.

Source: Gauss-Newton by conjugate gradients for least squares (Bjorck 1996, 7.4), conditioned by Kronecker factors
(Martens and Grosse 2015).

Measured, without and with it, 64 unlabelled inputs, one training and one draw. Denoiser with batch norm (27.2 dB on
one photo after short training) at 0.5 and 0.25 of the multiply-adds: -0.46 and -1.91 dB; 16 iterations in two rounds
-0.03 and -0.35; 12 in one round -0.03 and -0.55; 8 from the weights before layer-wise refitting -0.06 and -0.57.
Digits VGG, mean KL at 0.5, 0.25 and 0.15: 0.00030, 0.00163 and 0.00865; with it 0.00023, 0.00140 and 0.00447. On that
VGG a ridge of 1e-2 to 100 made no difference: stopping where the held-out examples say so is what regularises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.errors import tell
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.joint.descending import Iterate, descend
from bottleneck_opt.joint.metric import Metric, measure_metric
from bottleneck_opt.joint.problem import Problem
from bottleneck_opt.joint.vectors import parameters_of, to_kernel
from bottleneck_opt.layers import LayerSpec, describe_layer, is_stock
from bottleneck_opt.progress import Advance
from bottleneck_opt.sites import Weights
from bottleneck_opt.statistics import OutputScale

HELD_OUT = 5
RIDGE = 1e-2
ROUND = 8
MOST_ITERATIONS, LEAST_ITERATIONS = 16, 3
FEWEST_EXAMPLES = 64
MOST_MACS = 6e11
RUNS = 4.2
"""What an iteration costs in forward passes over the calibration data, the held-out fifth included."""


@dataclass(frozen=True)
class Joint:
    """What fitting all layers together did.

    Attributes:
        weights: New weights, by path in the rewritten model; empty where none helped.
        before, after: Squared change of the output on the held-out examples, relative to its variance.
        iterations: How many led to these weights.
        skipped: Why it was not done; empty when it was.
        examples: How many examples it was done on, where that was a part of them; 0 elsewhere.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0
    iterations: int = 0
    skipped: str = ""
    examples: int = 0

    @property
    def held_out(self) -> float | None:
        """The change on the held-out examples with the weights that were kept; None where it was not measured."""
        return (self.after if self.weights else self.before) or None


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Attributes:
        iterations: Of conjugate gradients; the model is linearised again every eight.
        seed: Of sampled positions and directions, and of random numbers inside the models.
        ridge: Weight of the ridge towards the weights at hand, in the metric of the layers.
    """

    iterations: int
    seed: int = 0
    ridge: float = RIDGE

    def rounds(self) -> list[int]:
        """The iterations of each round."""
        return [min(ROUND, self.iterations - done) for done in range(0, self.iterations, ROUND)]


def plan_iterations(macs: int, examples: int, wanted: int | None) -> int:
    """How many iterations to make.

    Args:
        macs: Of the rewritten model, for one example.
        examples: In the calibration data.
        wanted: What the caller asked for; None makes as many as some 6e11 multiply-adds allow, sixteen at most, and
            none where that would be fewer than three.

    Example:
        >>> plan_iterations(10**8, 64, None), plan_iterations(2 * 10**9, 64, None), plan_iterations(2 * 10**9, 64, 5)
        (16, 0, 5)
    """
    if wanted is not None:
        return wanted
    affordable = int(MOST_MACS // max(RUNS * macs * examples, 1))
    return min(MOST_ITERATIONS, affordable) if affordable >= LEAST_ITERATIONS else 0


def plan_examples(macs: int, examples: int) -> int:
    """How many examples to fit to: as many as sixteen iterations can be afforded on, 64 at least.

    Measured on the denoiser at 0.75 of the multiply-adds with 256 crops, squared change of the output on other crops:
    5.6e-4 without the joint fit, 3.0e-4 with three iterations on all crops, which cost as much as sixteen on a quarter
    of them, 2.3e-4.

    Args:
        macs: Of the rewritten model, for one example.
        examples: In the calibration data.

    Example:
        >>> plan_examples(10**7, 256), plan_examples(5 * 10**7, 256), plan_examples(10**9, 256)
        (256, 178, 64)
    """
    return min(examples, max(FEWEST_EXAMPLES, int(MOST_MACS // max(RUNS * macs * MOST_ITERATIONS, 1))))


def fit_jointly(
    original: nn.Module, rewritten: nn.Module, paths: Sequence[str], data: CalibrationData,
    scales: Sequence[OutputScale], effort: Effort, advance: Advance = lambda: None,
) -> Joint:  # fmt: skip
    """New weights for some layers, so that the model's output comes nearer to the original's.

    Args:
        original: The original's working copy.
        rewritten: The rewritten model's; it is changed on the way and left as it was.
        paths: Modules in which stock layers may change: those with weights of their own do.
        data: Calibration examples.
        scales: Spread of each output tensor.
        effort: How hard to try.
        advance: Called after each iteration.
    """
    layers = find_layers(rewritten, paths)
    obstacle = _find_obstacle(layers, data, scales)
    if obstacle:
        return Joint(skipped=obstacle)
    fitting, held_out = split_data(data)
    start = {path: list(map(torch.clone, parameters_of(rewritten.get_submodule(path)))) for path in layers}
    try:
        problem, judge = (
            Problem(original, rewritten, layers, part, scales, effort.seed) for part in (fitting, held_out)
        )
        before = judge.loss()
        best = _make_rounds(
            problem, judge, measure_metric(rewritten, layers, fitting, scales, effort.seed), effort, advance
        )
    except Exception as error:  # the user's model may take no other batch size, or lack derivatives
        return Joint(skipped=f"the model cannot be run and differentiated on parts of the data: {tell(error)}")
    finally:
        _restore(rewritten, start)
    kernels = {path: to_kernel(layer, best.weights[path]) for path, layer in layers.items()} if best.number else {}
    return Joint({path: Weights(*both) for path, both in kernels.items()}, before, best.loss, best.number)


def _make_rounds(problem: Problem, judge: Problem, metric: Metric, effort: Effort, advance: Advance) -> Iterate:
    """Linearise and descend, as often as it helps."""
    best = Iterate(problem.weights(), judge.loss(), 0)
    for iterations in effort.rounds():
        found = descend(problem, judge, metric, iterations=iterations, ridge=effort.ridge, advance=advance)
        if not found.number:
            break
        best = Iterate(found.weights, found.loss, best.number + found.number)
        problem.load(best.weights)
    return best


def _find_obstacle(layers: Mapping[str, LayerSpec], data: CalibrationData, scales: Sequence[OutputScale]) -> str:
    if data.examples < HELD_OUT:
        return f"there are fewer than {HELD_OUT} examples"
    if not layers:
        return "no layer has weights of its own"
    return "" if any(scale.weight for scale in scales) else "the output has no floating values that vary"


def _restore(model: nn.Module, values: Mapping[str, Sequence[Tensor]]) -> None:
    with torch.no_grad():
        for path, saved in values.items():
            for parameter, value in zip(parameters_of(model.get_submodule(path)), saved, strict=True):
                parameter.copy_(value)


def find_layers(model: nn.Module, paths: Sequence[str]) -> dict[str, LayerSpec]:
    """Torch's own convolutions and Linears at or below some paths, with weights that nothing else holds, by path."""
    owners = Counter(id(each) for module in model.modules() for each in module._parameters.values())
    below = tuple(f"{path}." for path in paths)
    found = {}
    for path, module in model.named_modules():
        layer = describe_layer(module) if is_stock(module) else None
        if layer is None or not (path in paths or path.startswith(below)):
            continue
        own = parameters_of(module)
        names = {name for name, value in module._parameters.items() if value is not None}
        if "weight" in names <= {"weight", "bias"} and all(owners[id(each)] == 1 for each in own):
            found[path] = layer
    return found


def split_data(data: CalibrationData, fold: int = 0) -> tuple[CalibrationData, CalibrationData]:
    """Four fifths of the examples to fit, with all mixes, and every fifth to judge by, from number ``fold`` on."""

    def is_held(numbers: Tensor) -> Tensor:
        return (numbers % HELD_OUT == fold) & (numbers < data.real)

    return _take(data, lambda numbers: ~is_held(numbers)), _take(data, is_held)


def thin_data(data: CalibrationData, count: int) -> CalibrationData:
    """About so many of the examples, evenly spread, in whole fives: those that every stage holds out stay the fifths.

    Args:
        data: Examples; where there are mixes among them, all are taken.
        count: How many; no more than five beyond it are taken.
    """
    fives = data.examples // HELD_OUT
    wanted = -(-count // HELD_OUT)
    if data.mixes or wanted >= fives:
        return data
    chosen = torch.tensor([number * fives // wanted for number in range(wanted)], device="cpu")
    return _take(data, lambda numbers: torch.isin(numbers // HELD_OUT, chosen))


def _take(data: CalibrationData, keep: Callable[[Tensor], Tensor]) -> CalibrationData:
    """Some of the examples: ``keep`` says which of these numbers."""
    part: list[Inputs] = []
    first = 0
    for batch in data.batches:
        size = batch_size(batch)
        kept = keep(torch.arange(first, first + size, device="cpu"))
        if kept.any():
            part.append(_choose(batch, kept, size))
        first += size
    return CalibrationData(tuple(part), sum(map(batch_size, part)), data.description, data.noise)


def _choose(batch: Inputs, keep: Tensor, size: int) -> Inputs:
    return batch.map(lambda tensor: tensor[keep] if tensor.dim() and tensor.shape[0] == size else tensor)
