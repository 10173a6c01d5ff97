"""The unlabelled examples of recovery: which are held out, and which batch each step gets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData, place_batch
from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs, batch_size
from bottleneck_opt.mixing import ENOUGH, find_obstacle, mix_anew
from bottleneck_opt.recovery.options import Recovery
from bottleneck_opt.working_copy import run_on_example

_ALL = (slice(None), slice(None))  # batch and channels


@dataclass(frozen=True)
class Split:
    """The data.

    Attributes:
        groups: Single examples to train on, those that can share a batch together.
        held_out: Batches to judge by.
        mixed: Whether mixes of the examples are trained on, and judged by beside the examples themselves.
        unmixed: Why they are not, where they are few; empty elsewhere.
    """

    groups: tuple[tuple[Inputs, ...], ...]
    held_out: tuple[Inputs, ...]
    mixed: bool = False
    unmixed: str = ""

    @property
    def examples(self) -> int:
        """How many are trained on."""
        return sum(map(len, self.groups))

    @property
    def held_out_examples(self) -> int:
        """How many are held out."""
        return sum(map(batch_size, self.held_out))


def split_examples(data: CalibrationData, teacher: nn.Module, recovery: Recovery) -> Split:
    """What to train on and what to judge by.

    Few examples are mixed, and judged by together with mixes that are not trained on. Of many, a share is held out,
    evenly spread: with the usual share, those that the fits held out. Refitting and fitting together hold out every
    fifth example too; judged by examples that the weights were fitted to, the start would look better than it is, and
    no training would be kept.

    Raises:
        InputError: There is only one example.
    """
    examples = _place_examples(data, teacher)
    if len(examples) < 2:
        raise InputError(
            f"calibration: got {len(examples)} example to recover with; expected at least 2, one to learn from and one "
            "to judge by. Pass more unlabelled inputs (some tens), or leave recover= out."
        )
    few = recovery.mixes and recovery.loss is None and not data.noise and data.examples < ENOUGH
    obstacle = find_obstacle(data, teacher) if few else ""
    if few and not obstacle:
        unseen = _place_examples(mix_anew(data, seed=recovery.seed, purpose="mixes to judge training by"), teacher)
        return Split(tuple(_group(examples)), _in_batches([*examples, *unseen], recovery.batch), mixed=True)
    chosen = choose_held_out(len(examples), recovery.held_out)
    held_out = [example for index, example in enumerate(examples) if index in chosen]
    groups = _group(example for index, example in enumerate(examples) if index not in chosen)
    return Split(tuple(groups), _in_batches(held_out, recovery.batch), unmixed=obstacle)


def _place_examples(data: CalibrationData, teacher: nn.Module) -> list[tuple[str, Inputs]]:
    """Every example as a call of its own, on the teacher's device and in its precision."""
    like = next((p for p in teacher.parameters() if p.is_floating_point()), torch.zeros((), device="cpu"))
    return [
        (key, place_batch(each, device=like.device, dtype=like.dtype)) for key, each in _single_examples(data.batches)
    ]


def _in_batches(examples: Iterable[tuple[str, Inputs]], size: int) -> tuple[Inputs, ...]:
    return tuple(_join(group[at : at + size]) for group in _group(examples) for at in range(0, len(group), size))


def choose_held_out(count: int, share: float) -> frozenset[int]:
    """Numbers of examples, the first and others as far apart as the share says; at least one, never all.

    Example:
        >>> sorted(choose_held_out(12, 0.2)), sorted(choose_held_out(2, 0.9))
        ([0, 5, 10], [0])
    """
    exact = Fraction(share).limit_denominator(1000)
    spread = [index for index in range(count) if math.ceil(index * exact) < math.ceil((index + 1) * exact)]
    return frozenset(spread[: max(1, count - 1)] or [0])


def check_batch(model: nn.Module, batch: Inputs, size: int) -> None:
    """Raise InputError where a model does not run on a batch of this size."""
    try:
        run_on_example(model, batch, what=f"calibration in batches of {size}")
    except InputError as error:
        raise InputError(
            f"{error} Where it takes another number of examples at once, pass Recovery(batch=1)."
        ) from error


def check_examples(teacher: nn.Module, data: CalibrationData, recovery: Recovery) -> None:
    """Raise InputError, before any other work, where the data or the options will not do for recovery."""
    with torch.no_grad():
        check_batch(teacher, make_batch(split_examples(data, teacher, recovery), recovery, 0), recovery.batch)


def _single_examples(batches: Iterable[Inputs]) -> Iterator[tuple[str, Inputs]]:
    """Every example as a call of its own, with a key that is the same for those that fit into one batch."""
    for number, batch in enumerate(batches):
        size = batch_size(batch)
        shared = any(not tensor.dim() or tensor.shape[0] != size for tensor in batch.tensors())
        for index in range(size):
            example = batch.map(lambda t, i=index, n=size: t[i : i + 1] if t.dim() and t.shape[0] == n else t)  # type: ignore[misc]
            form = example.map(lambda t: t.to("meta"))
            yield f"{number if shared else ''} {form.args!r} {dict(form.kwargs)!r}", example


def _group(examples: Iterable[tuple[str, Inputs]]) -> list[tuple[Inputs, ...]]:
    groups: dict[str, list[Inputs]] = {}
    for key, example in examples:
        groups.setdefault(key, []).append(example)
    return [tuple(group) for group in groups.values()]


def _join(examples: Sequence[Inputs]) -> Inputs:
    """One batch of single examples; a tensor that all of them share, without a batch axis, stays as it is."""
    columns = zip(*(example.tensors() for example in examples), strict=True)
    joined = {
        id(column[0]): column[0] if all(t is column[0] for t in column) else torch.cat(column) for column in columns
    }
    return examples[0].map(lambda tensor: joined[id(tensor)])


def make_batch(split: Split, recovery: Recovery, step: int) -> Inputs:
    """The batch of a step: every example is seen once before one is seen again, in an order of the seed.

    Where mixes are trained on, each of these is mixed with any example that can share a batch with it.

    It follows from the seed and the step alone, so that a run can go on in the middle.

    Raises:
        InputError: The options ask for crops or flips of what is no picture, or for crops larger than the pictures.
    """
    sizes = _count_each(split, recovery)
    turn, place = divmod(step, sum(sizes))
    order = _generator(recovery.seed, f"order {turn}")
    chunks: list[tuple[tuple[Inputs, ...], list[Inputs]]] = []
    for group, size in zip(split.groups, sizes, strict=True):
        shuffled = torch.randperm(len(group), generator=order, device="cpu").tolist()
        parts = [shuffled[at * recovery.batch :][: recovery.batch] for at in range(size)]
        chunks.extend((group, [group[i] for i in part]) for part in parts)
    group, chosen = chunks[int(torch.randperm(len(chunks), generator=order, device="cpu")[place])]
    draws = _generator(recovery.seed, f"crop and flip {step}")
    if split.mixed:
        partners = torch.randint(len(group), (len(chosen),), generator=draws, device="cpu").tolist()
        shares = torch.rand(len(chosen), generator=draws, device="cpu").tolist()
        others = [_augment(group[index], recovery, draws) for index in partners]
        chosen = [_augment(example, recovery, draws) for example in chosen]
        return _join([_blend(*each) for each in zip(chosen, others, shares, strict=True)])
    return _join([_augment(example, recovery, draws) for example in chosen])


def _blend(example: Inputs, other: Inputs, share: float) -> Inputs:
    """The share of one and the rest of the other; what they have in common stays as it is."""
    theirs = iter(other.tensors())

    def mix(tensor: Tensor) -> Tensor:
        partner = next(theirs)
        return tensor if partner is tensor else torch.lerp(partner, tensor, share)

    return example.map(mix)


def count_batches(split: Split, recovery: Recovery) -> int:
    """Batches until every example was seen."""
    return sum(_count_each(split, recovery))


def _count_each(split: Split, recovery: Recovery) -> list[int]:
    return [max(1, len(group) // recovery.batch) for group in split.groups]


def _augment(example: Inputs, recovery: Recovery, draws: torch.Generator) -> Inputs:
    if recovery.crop is None and not recovery.flip:
        return example
    pictures = [t for t in example.tensors() if t.is_floating_point() and t.dim() in (4, 5)]
    sizes = {tuple(t.shape[2:]) for t in pictures}
    if len(sizes) != 1:
        raise InputError(
            f"Recovery: crop and flip need pictures (batch, channels, height, width) of one size; got "
            f"{example.describe()}. Leave crop= and flip= out."
        )
    window = _choose_window(sizes.pop(), recovery.crop, draws)
    flips = recovery.flip and bool(torch.randint(2, (), generator=draws, device="cpu"))

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() not in (4, 5):
            return tensor
        cut = tensor[_ALL + window]
        return cut.flip(-1) if flips else cut

    return example.map(change)


def _choose_window(size: tuple[int, ...], crop: int | None, draws: torch.Generator) -> tuple[slice, ...]:
    if crop is None:
        return tuple(slice(None) for _ in size)
    if crop > min(size):
        raise InputError(
            f"Recovery: crop: got {crop}; expected at most {min(size)}, for pictures of {'x'.join(map(str, size))}. "
            "Pass a smaller crop=."
        )
    starts = [int(torch.randint(side - crop + 1, (), generator=draws, device="cpu")) for side in size]
    return tuple(slice(start, start + crop) for start in starts)


def _generator(seed: int, purpose: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
