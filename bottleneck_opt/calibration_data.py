"""Read the user's calibration data into batches of model calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bottleneck_opt.errors import InputError
from bottleneck_opt.images import Pictures
from bottleneck_opt.inputs import Inputs, batch_size, check_has_values, noise_batches, stretch_batch
from bottleneck_opt.tracing import check_finite

BATCH_VALUES = 8 * 3 * 224 * 224
LEAST_BATCH, MOST_BATCH = 8, 64
NOISE_MACS = 1.3e11
NOISE_POSITIONS = 2**18
LEAST_NOISE_EXAMPLES = 32


@dataclass(frozen=True)
class CalibrationData:
    """Batches on the CPU.

    Attributes:
        batches: Calls of the model.
        examples: How many examples they hold, counted along axis 0.
        description: In words, where they came from.
        noise: They were made up.
        notes: What else a careful user should know of them.
        mixes: How many of the examples, the last ones, are mixes of two others.
    """

    batches: tuple[Inputs, ...]
    examples: int
    description: str
    noise: bool = False
    notes: tuple[str, ...] = ()
    mixes: int = 0

    @property
    def real(self) -> int:
        """How many of the examples are no mixes."""
        return self.examples - self.mixes

    @property
    def real_batches(self) -> tuple[Inputs, ...]:
        """The batches that hold no mixes."""
        starts = itertools.accumulate(map(batch_size, self.batches), initial=0)
        return tuple(batch for batch, start in zip(self.batches, starts, strict=False) if start < self.real)

    def take(self, most: int) -> CalibrationData:
        """The first batches, until they hold so many examples; all of them where they are fewer."""
        ends = list(itertools.accumulate(map(batch_size, self.batches)))
        count = next((number for number, end in enumerate(ends, 1) if end >= most), len(ends))
        if count == len(ends):
            return self
        return replace(
            self, batches=self.batches[:count], examples=ends[count - 1], mixes=max(0, ends[count - 1] - self.real),
            description=f"the first {ends[count - 1]} of {self.description}",
        )  # fmt: skip


def read_calibration(
    calibration: Any, example: Inputs, *, given: Any, limit: int, seed: int,
    runs: Callable[[Inputs], bool], noise_examples: int = LEAST_NOISE_EXAMPLES,
) -> CalibrationData:  # fmt: skip
    """Batches of unlabelled data in the example call's form.

    Args:
        calibration: An iterable of batches, a Tensor (split along axis 0), or None for noise like the example.
        example: The example call.
        given: The ``inputs=`` the user gave, which decides how a tuple batch is read; None counts as a Tensor.
        limit: Examples read at most.
        seed: Of the noise.
        runs: Says whether the model runs on a call; asked before noise is put into larger batches.
        noise_examples: How many examples of noise to make, within the limit.

    Raises:
        InputError: The data is empty, of the wrong kind or shape, or holds NaN or Inf, or cannot be read.
    """
    if calibration is None:
        _check_limit(limit)
        larger = stretch_batch(example, min(choose_batch(example.tensors()[0][:1]), limit, noise_examples))
        form = larger if runs(larger) else example
        batches = noise_batches(form.map(_to_cpu), examples=min(noise_examples, limit), seed=seed)
        count = sum(batch_size(batch) for batch in batches)
        return CalibrationData(tuple(batches), count, f"{count} examples of Gaussian noise", noise=True)
    return read_examples(calibration, example, given=given, limit=limit)


def read_examples(calibration: Any, example: Inputs | None = None, *, given: Any = None, limit: int) -> CalibrationData:
    """The user's data; where there is no example call to compare it with, all of it has the form of its first example.

    Args:
        calibration, given, limit: As for :func:`read_calibration`.
        example: The example call; None for batches of which a Tensor is the only argument.

    Raises:
        InputError: As for :func:`read_calibration`.
    """
    _check_limit(limit)
    batches = _take(_iterate(calibration), lambda batch: _read_batch(batch, example or Inputs(), given), limit)
    if not batches:
        raise InputError(
            f"calibration: the {type(calibration).__name__} holds no batch; expected at least one example. "
            "Pass unlabelled inputs, or leave calibration= out to use noise."
        )
    form = example or _cut(batches[0], 1)
    for index, batch in enumerate(batches):
        _check_batch(batch, form, f"calibration batch {index}")
    count = sum(batch_size(batch) for batch in batches)
    if isinstance(calibration, Pictures):
        return CalibrationData(tuple(batches), count, f"{count} unlabelled images", notes=(calibration.note,))
    return CalibrationData(tuple(batches), count, f"{count} unlabelled examples")


def list_first(data: CalibrationData) -> tuple[Inputs, Inputs]:
    """Calls that stand for the data: its first example alone, and its first batch, for a model that needs several."""
    return _cut(data.batches[0], 1), data.batches[0]


def _check_limit(limit: object) -> None:
    if not isinstance(limit, int) or limit < 1:
        raise InputError(
            f"calibration_limit: got {limit!r}; expected a whole number, at least 1. "
            "Pass how many examples may be read."
        )


def choose_batch(example: Tensor) -> int:
    """Examples to run at once: few large ones, for the memory, and up to 64 small ones, for the speed."""
    return max(LEAST_BATCH, min(MOST_BATCH, BATCH_VALUES // max(example.numel(), 1)))


def choose_noise_examples(macs_per_example: float, positions: int = 1) -> int:
    """Noise is free, so as much as a few seconds of forward passes allow (about 1.3e11 multiply-adds), at least 32.

    Args:
        macs_per_example: What a forward pass costs.
        positions: Pixels or time steps of an example: of large ones fewer are needed.
    """
    affordable = min(NOISE_MACS // max(macs_per_example, 1), NOISE_POSITIONS // max(positions, 1))
    return int(max(LEAST_NOISE_EXAMPLES, affordable))


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _iterate(calibration: Any) -> Iterable[Any]:
    if isinstance(calibration, np.ndarray):
        raise InputError(
            f"calibration: got a numpy array of shape {calibration.shape}; expected a Tensor or an iterable of "
            "batches. Pass torch.from_numpy(data)."
        )
    if isinstance(calibration, Pictures):
        calibration = calibration.inputs
    if isinstance(calibration, Tensor):
        return calibration.split(choose_batch(calibration[:1])) if calibration.dim() and len(calibration) else ()
    if isinstance(calibration, str | bytes | Mapping) or not isinstance(calibration, Iterable):
        raise InputError(
            f"calibration: got {type(calibration).__name__}; expected a Tensor or an iterable of batches "
            "(a DataLoader, a list of Tensors). Pass unlabelled inputs of the model."
        )
    return calibration


def _take(batches: Iterable[Any], read: Callable[[Any], Inputs], limit: int) -> list[Inputs]:
    """Read batches until they hold ``limit`` examples; the last one is cut to fit."""
    taken: list[Inputs] = []
    room = limit
    for batch in _draw(batches):
        inputs = read(batch)
        check_has_values(inputs, "calibration")
        inputs = inputs.map(_to_cpu)
        size = batch_size(inputs)
        if size == 0:
            continue
        taken.append(inputs if size <= room else _cut(inputs, room))
        room -= size
        if room <= 0:
            break
    return taken


def _draw(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; what the user's own iterable raises is told with the batch it happened at."""
    drawn = 0
    try:
        for batch in batches:
            yield batch
            drawn += 1
    except Exception as error:  # the user's own code
        raise InputError(
            f"calibration: the {type(batches).__name__} failed at batch {drawn}: {type(error).__name__}: {error}. "
            "Mend it, or lower calibration_limit= to stop before."
        ) from error


def _cut(inputs: Inputs, examples: int) -> Inputs:
    size = batch_size(inputs)
    return inputs.map(lambda tensor: tensor[:examples] if tensor.dim() and tensor.shape[0] == size else tensor)


def _read_batch(batch: Any, example: Inputs, given: Any) -> Inputs:
    if isinstance(given, tuple | Mapping | Inputs) and not isinstance(given, Tensor):
        return _read_structured(batch, example)
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor):
        return Inputs((batch,))
    raise _wrong_kind(batch, "a Tensor, or a list or tuple that starts with one")


def _read_structured(batch: Any, example: Inputs) -> Inputs:
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], tuple | Mapping):
        batch = batch[0]
    if isinstance(batch, Mapping) and example.kwargs:
        return Inputs((), {name: batch[name] for name in example.kwargs if name in batch})
    if isinstance(batch, list | tuple) and example.args and len(batch) >= len(example.args):
        return Inputs(tuple(batch[: len(example.args)]))
    form = f"a dict with {', '.join(example.kwargs)}" if example.kwargs else f"a tuple of {len(example.args)} arguments"
    raise _wrong_kind(batch, form)


def _wrong_kind(batch: Any, expected: str) -> InputError:
    return InputError(
        f"calibration: a batch is a {type(batch).__name__}; expected {expected}, as inputs= has it. "
        "Yield batches of the same form as the example input."
    )


def _check_batch(batch: Inputs, example: Inputs, where: str) -> None:
    got, expected = batch.tensors(), example.tensors()
    if len(got) != len(expected):
        raise InputError(
            f"{where}: got {batch.describe()}; expected the form of the example input, {example.describe()}."
        )
    for mine, other in zip(got, expected, strict=True):
        if mine.dim() != other.dim() or mine.is_floating_point() != other.is_floating_point():
            raise InputError(
                f"{where}: got {batch.describe()}; expected the form of the example input, {example.describe()}, "
                "with any batch size. Reshape or convert the calibration data."
            )
    check_finite(batch, where)


def largest_value(data: CalibrationData) -> float:
    """The largest absolute value in the floating tensors of the data; 0 when there is none."""
    tensors = (tensor for batch in data.batches for tensor in batch.tensors())
    return max((float(t.abs().max()) for t in tensors if t.is_floating_point() and t.numel()), default=0.0)


def place_batch(batch: Inputs, *, device: torch.device, dtype: torch.dtype) -> Inputs:
    """A batch on a device, its floating tensors in a precision."""
    return batch.map(lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))


def cut_batch(batch: Inputs, size: int) -> list[Inputs] | None:
    """A batch in parts of at most ``size`` examples; None where not all its tensors have one row an example."""
    rows = batch_size(batch)
    if rows <= size:
        return [batch]
    if any(not tensor.dim() or tensor.shape[0] != rows for tensor in batch.tensors()):
        return None

    def take(start: int) -> Inputs:
        return batch.map(lambda tensor: tensor[start : start + size])

    return [take(start) for start in range(0, rows, size)]
