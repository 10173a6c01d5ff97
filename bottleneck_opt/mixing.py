"""Few examples: mixes of two of them are fitted to as well.

The original says what it gives for any input, so inputs can be made up, and a mix ``a x + (1 - a) x'`` of two examples,
``a`` uniform between 0 and 1, is near enough to real ones to be worth something. Some tens of examples are fewer than
the weights that are fitted to them; with their mixes the weights are fitted to what the network does between the
examples too. Statistics, refitting and the joint fit see the examples and the mixes; what is reported is measured on
the examples alone.

A fifth of the examples is held out by the fits as before, but its mixes are not: with them kept apart too, the digits
VGG below came to 7.6e-4 in place of 6.0e-4. So the joint fit's loss on that fifth says which weights are better, and no
longer what to expect of new inputs: for that, the model is run on mixes that nothing was fitted to.

Source: Zhang et al. 2018 (mixup); Beyer et al. 2022 (mixes to copy a teacher's function, without labels).

Measured on test data, 0.33 of the multiply-adds, mean of three trainings with a draw each. Without it and with the
default, KL from 64 unlabelled inputs: digits VGG 8.6e-4 and 6.0e-4, digits ResNet 8.3e-4 and 5.5e-4; from 16: 7.3e-3
and 1.6e-3, 4.2e-3 and 1.7e-3. In a trial in which refitting held a fifth of the mixes out as well, with 1, 2
and 3 mixes an example of 64: VGG 6.8e-4, 6.3e-4, 6.0e-4; ResNet 6.2e-4, 5.2e-4, 4.9e-4; with 3, 7 and 15 of 16: VGG
2.2e-3, 1.6e-3, 1.5e-3. In it the denoiser, which is too large to get any by default, mean of two: -0.17 dB, with 1 and
3 mixes -0.10 and -0.08. In the joint fit alone, on the VGG, mixes that are nearer to one of the two and ``a`` of a beta
distribution came to the same; noise added to the inputs did less, and moving the pictures by a pixel did harm.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData, place_batch
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.tracing import runs_on

ENOUGH = 256
MOST_MIXES = 7
MOST_MACS = 1.8e10  # the joint fit's own limit then still allows sixteen iterations at half the cost
MOST_VALUES = 2**27
LEAST_NEW = 64
NEW = "new mixed inputs"


@dataclass(frozen=True)
class Mixed:
    """What layers are fitted to.

    Attributes:
        data: The examples, and mixes of them behind.
        skipped: Why there are no mixes; empty when there are, or when none are needed or wanted.
    """

    data: CalibrationData
    skipped: str = ""


def mix(data: CalibrationData, model: nn.Module, macs: float, wanted: int | None, *, seed: int) -> Mixed:
    """The data with mixes of its examples, as many for each example as are needed and quick to run.

    Args:
        data: The examples.
        model: A working copy, which must run on the mixes.
        macs: Of the model, for one example.
        wanted: How many mixes an example the caller asked for; None chooses.
        seed: Of the pairs and their shares.
    """
    count = plan_mixes(data, macs) if wanted is None else wanted
    if data.noise or not count:
        return Mixed(data)
    obstacle = find_obstacle(data, model)
    if obstacle:
        return Mixed(data, obstacle)
    mixes = _draw_mixes(data, count, torch.Generator().manual_seed(seed))
    batches, examples = (*data.batches, *mixes.batches), data.examples + mixes.examples
    return Mixed(replace(data, batches=batches, examples=examples, mixes=mixes.mixes))


def find_obstacle(data: CalibrationData, model: nn.Module) -> str:
    """Why no mixes of the examples can be made or run by the model; empty where they can."""
    if not all(map(_is_mixable, data.batches)):
        return "the inputs are not all floating point"
    trial = _draw_mixes(data, 1, torch.Generator().manual_seed(0))
    if not trial.batches:
        return "no two examples have the same shape"
    return "" if _can_run(model, trial.batches[0]) else "the model does not run on them"


def mix_anew(data: CalibrationData, *, seed: int, purpose: str = "new mixes") -> CalibrationData:
    """Mixes alone, other ones than :func:`mix` makes with this seed, 64 or more: inputs that nothing was fitted to.

    Measured on two digits VGG fitted to 64 inputs, 0.33 of the multiply-adds: the change of the output was 0.36 and
    0.60 times that on the test data; on the inputs themselves it was 0.04 and 0.09 times.

    Args:
        data: The examples.
        seed: Of the run.
        purpose: Each has mixes of its own.
    """
    draws = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{purpose}".encode()))
    return _draw_mixes(data, math.ceil(LEAST_NEW / data.examples), draws)


def plan_mixes(data: CalibrationData, macs: float) -> int:
    """How many mixes to make of each example: up to 256 examples in all, seven an example at most.

    Fewer, or none, where running the model on all of them once would take more than 1.8e10 multiply-adds, or where they
    would hold more than 2^27 values. Within one limit on the cost of the joint fit, iterations are worth more than
    mixes: the denoiser at 0.75 and 0.5 of the multiply-adds lost 0.03 and 0.04 dB with sixteen iterations on the
    examples, 0.05 and 0.07 with seven and eleven on as many mixes too (0.01 and 0.03 with sixteen).

    Args:
        data: The examples.
        macs: Of the model, for one example.

    Example:
        >>> data = CalibrationData((Inputs((torch.zeros(64, 3, 8, 8),)),), 64, "")
        >>> plan_mixes(data, 1e7), plan_mixes(data, 2e8), plan_mixes(data, 4e9)
        (3, 0, 0)
    """
    values = sum(tensor.numel() for batch in data.batches for tensor in batch.tensors())
    room = (ENOUGH / data.examples, MOST_MACS / max(macs * data.examples, 1), MOST_VALUES / max(values, 1))
    return int(min(MOST_MIXES, max(0, min(room) - 1)))


def _draw_mixes(data: CalibrationData, count: int, draws: torch.Generator) -> CalibrationData:
    """So many mixes of each example that there is another one for, alone."""
    groups = [group for group in _group_batches(data.batches) if sum(map(batch_size, group)) > 1]
    batches = tuple(mixed for _ in range(count) for group in groups for mixed in _mix_group(group, draws))
    mixes = sum(map(batch_size, batches))
    return CalibrationData(batches, mixes, NEW, mixes=mixes)


def _group_batches(batches: Sequence[Inputs]) -> list[list[Inputs]]:
    """Batches whose examples can be paired: those of one shape; one that shares a tensor among its examples, alone."""
    groups: dict[object, list[Inputs]] = {}
    for number, batch in enumerate(batches):
        size = batch_size(batch)
        shared = any(not tensor.dim() or tensor.shape[0] != size for tensor in batch.tensors())
        shapes = tuple((tuple(tensor.shape[1:]), tensor.dtype) for tensor in batch.tensors())
        groups.setdefault(number if shared else shapes, []).append(batch)
    return list(groups.values())


def _is_mixable(batch: Inputs) -> bool:
    return all(tensor.is_floating_point() for tensor in batch.tensors() if _is_of_examples(tensor, batch))


def _is_of_examples(tensor: Tensor, batch: Inputs) -> bool:
    return bool(tensor.dim()) and tensor.shape[0] == batch_size(batch)


def _mix_group(group: Sequence[Inputs], draws: torch.Generator) -> list[Inputs]:
    """A mix of every example with another one, in batches of the same sizes."""
    sizes = [batch_size(batch) for batch in group]
    partners, shares = _draw_partners(sum(sizes), draws), torch.rand(sum(sizes), generator=draws, device="cpu")
    columns: list[Sequence[Tensor]] = [
        _blend(torch.cat(parts), partners, shares).split(sizes) if _is_of_examples(parts[0], group[0]) else parts
        for parts in zip(*(batch.tensors() for batch in group), strict=True)
    ]
    return [_fill(batch, [parts[number] for parts in columns]) for number, batch in enumerate(group)]


def _fill(batch: Inputs, tensors: Sequence[Tensor]) -> Inputs:
    taken = iter(tensors)
    return batch.map(lambda _: next(taken))


def _draw_partners(count: int, draws: torch.Generator) -> Tensor:
    """For each example another one: the next in a random ring, so that none is mixed with itself."""
    ring = torch.randperm(count, generator=draws, device="cpu")
    partners = torch.empty_like(ring)
    partners[ring] = ring.roll(1)
    return partners


def _blend(examples: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    share = shares.view(-1, *[1] * (examples.dim() - 1))
    return (share * examples + (1 - share) * examples[partners]).to(examples.dtype)


def _can_run(model: nn.Module, batch: Inputs) -> bool:
    like = next(model.parameters(), torch.zeros((), device="cpu"))
    return runs_on(model, place_batch(batch, device=like.device, dtype=like.dtype))
