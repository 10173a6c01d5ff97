"""The options of recovery, and how a user may give them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs

Loss = Callable[[Any, Any, Inputs], Tensor]


@dataclass(frozen=True)
class Recovery:
    """How to train the rewritten model back towards the original's outputs.

    Attributes:
        steps: Training steps at most, and as many again where those brought nothing and their size was not given.
        batch: Examples a step.
        learning_rate: Largest step size, relative to the size of each parameter's values. None takes 0.3 times the
            root of A / (1 - A) times the held-out loss before training, 0.01 at most. A is the share of a batch's
            gradient that all batches have in common, measured on the first eight: steps of one size end in a loss that
            grows with its square, so the nearer the start is to the original, the smaller they must be, and where
            batches agree they may be larger. With mixes A is 0.06, for they agree more than what they stand for: a
            small network's agreed to 0.9, and steps as large as that allows brought nothing, smaller ones did. With a
            loss of your own, 0.004. Measured with 0.2, 0.3, 0.6 and 1.2 or 1.6 times the root, change of the output or
            KL on test data: a denoiser at 0.75 of the multiply-adds 2.47e-4, 2.38e-4, 2.25e-4, 2.23e-4; a digits
            ResNet at 0.33 2.03e-4, 1.93e-4, 1.90e-4, 2.81e-4; a digits VGG at 0.33 3.35e-4, -, 3.50e-4, nothing gained.
            A digits ResNet at 0.15 came to 7.5e-4 with 0.01 at most, to 9.3e-4 with 0.6 times and 0.03 at most. Where
            no step brings anything, training begins once more with an eighth of the size.
        mixes: Where there are fewer than 256 examples, train on mixes of two of them, others at every step, judged by
            the examples and by other mixes, 64 or more. Measured on the 64 unlabelled images that the models had been
            fitted to, KL on test data at 0.33 and 0.15 of the multiply-adds: a digits ResNet 5.5e-4 to 4.9e-4 and
            2.7e-3 to 2.3e-3, one digits VGG 5.7e-4 to 6.0e-4 and 3.0e-3 to 2.9e-3, another 6.3e-4 to 5.8e-4 and 3.6e-3
            to 2.9e-3; on the images alone nothing was gained.
            Not with inputs that are not all floating point, with noise or with a loss of your own.
        held_out: Share of the examples that is kept out of training, to judge by, where no mixes are trained on.
        check_every: Steps between two looks at the held-out examples.
        patience: Looks in a row without an improvement after which training ends; None takes all steps. They get
            smaller all the time, and often only the last ones help: with five looks, training of the digits VGG at 0.5
            and 0.75 of the multiply-adds ended before anything was better, with eight, training on mixes.
        crop: Side of random crops of pictures and volumes; None trains on them whole. For denoisers and the like; a
            classifier of whole pictures gains nothing.
        flip: Flip pictures left to right at random.
        features: Follow the original inside too, at the outputs of the blocks that hold rewritten layers; of a plain
            chain of layers at those of the layers themselves, unless the outputs of all examples are more numbers than
            the model has weights.
        reestimate_norms: Measure the batch norms' statistics again in the end, kept where that helps.
        seed: Of the order of examples, crops and flips.
        loss: ``loss(student_output, teacher_output, inputs) -> scalar Tensor`` in place of the squared difference.
        checkpoint: File to go on from when it exists, written at every look and in the end.

    Example:
        >>> Recovery(steps=100, crop=32).batch
        16
    """

    steps: int = 300
    batch: int = 16
    learning_rate: float | None = None
    mixes: bool = True
    held_out: float = 0.2
    check_every: int = 20
    patience: int | None = None
    crop: int | None = None
    flip: bool = False
    features: bool = True
    reestimate_norms: bool = True
    seed: int = 0
    loss: Loss | None = None
    checkpoint: str | Path | None = None

    _COUNTS: ClassVar[tuple[str, ...]] = ("steps", "batch", "check_every")

    def __post_init__(self) -> None:
        for name in self._COUNTS:
            _check_count(name, getattr(self, name))
        for name in ("patience", "crop"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        rate = self.learning_rate
        if rate is not None and not (_is_number(rate) and 0 < rate < math.inf):
            raise _wrong("learning_rate", rate, "a number above 0, or None", "learning_rate=0.004")
        if not _is_number(self.held_out) or not 0 < self.held_out < 1:
            raise _wrong("held_out", self.held_out, "a share between 0 and 1", "held_out=0.2")
        if not _is_whole(self.seed) or not -(2**63) <= self.seed < 2**63:
            raise _wrong("seed", self.seed, "a whole number of at most 63 bits", "seed=0")
        for name in ("mixes", "flip", "features", "reestimate_norms"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False", f"{name}=True")
        if self.loss is not None and not callable(self.loss):
            raise _wrong("loss", self.loss, "a function of both outputs and the inputs", "loss=my_function")
        if self.checkpoint is not None and not isinstance(self.checkpoint, str | Path):
            raise _wrong("checkpoint", self.checkpoint, "the name of a file", "checkpoint='recovery.safetensors'")

    def describe(self) -> dict[str, Any]:
        """The options that decide the result, as plain values."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "checkpoint"}
        plain["loss"] = "" if self.loss is None else getattr(self.loss, "__qualname__", type(self.loss).__qualname__)
        return plain


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(name: str, value: object) -> None:
    if not _is_whole(value) or value < 1:  # type: ignore[operator]
        raise _wrong(name, value, "a whole number, at least 1", f"{name}=16")


def _wrong(name: str, got: object, expected: str, example: str) -> InputError:
    return InputError(f"Recovery: {name}: got {got!r}; expected {expected}. Pass for instance Recovery({example}).")


def read_recovery(given: object, *, seed: int = 0) -> Recovery | None:
    """The user's ``recover=``: a number of steps, a :class:`Recovery`, True for the defaults; None and False for none.

    Args:
        given: What the user gave.
        seed: Of the options, where the user gave none.

    Raises:
        InputError: It is something else, or no positive number of steps.

    Example:
        >>> read_recovery(100).steps
        100
    """
    if given is None or given is False:
        return None
    if given is True:
        return Recovery(seed=seed)
    if isinstance(given, Recovery):
        return given
    if isinstance(given, int) and given >= 1:
        return Recovery(steps=given, seed=seed)
    raise InputError(
        f"recover: got {given!r}; expected a number of training steps, at least 1, or a bottleneck_opt.Recovery. "
        "Pass for instance recover=300, or leave it out to train nothing."
    )
