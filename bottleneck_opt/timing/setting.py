"""In what circumstances a model is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from bottleneck_opt.errors import InputError

TARGETS = ("eager", "compile", "onnxruntime")
MOST_THREADS = 1024


@dataclass(frozen=True)
class Timing:
    """A setting to time a model in; the device, precision and memory format are the model's own.

    Attributes:
        batch: Examples in one call; None for as many as the example input has.
        threads: CPU threads.
        target: What runs the model: ``eager`` PyTorch, torch's ``compile`` or ``onnxruntime``.

    Raises:
        InputError: A value is none of these.

    Example:
        >>> Timing(batch=32, threads=2).describe()
        'batch 32, 2 threads, eager'
    """

    batch: int | None = None
    threads: int = 1
    target: str = "eager"

    def __post_init__(self) -> None:
        whole = [each for each in (self.batch, self.threads) if each is not None]
        if not all(isinstance(each, int) and 1 <= each <= 2**20 for each in whole) or self.threads > MOST_THREADS:
            raise InputError(
                f"timing: got batch={self.batch!r} and threads={self.threads!r}; expected whole numbers from 1 on. "
                "Write for instance timing='batch=32,threads=2'."
            )
        if self.target not in TARGETS:
            raise InputError(
                f"timing: got target={self.target!r}; expected one of {', '.join(TARGETS)}. "
                "Write for instance timing='target=eager'."
            )

    def fit_shapes(self, shapes: Sequence[Sequence[int]], examples: int) -> list[tuple[int, ...]]:
        """Shapes recorded with so many examples, with as many as this setting has.

        Example:
            >>> Timing(batch=32).fit_shapes([(2, 3, 8, 8)], 2)
            [(32, 3, 8, 8)]
        """
        factor = 1 if self.batch is None else self.batch // examples
        return [(shape[0] * factor, *shape[1:]) for shape in shapes]

    def describe(self) -> str:
        """The setting in words."""
        batch = "the example's batch" if self.batch is None else f"batch {self.batch}"
        return f"{batch}, {self.threads} {'thread' if self.threads == 1 else 'threads'}, {self.target}"


def read_timings(given: Timing | str | Sequence[Timing | str] | None) -> tuple[Timing, ...]:
    """The user's ``timing=``: one setting or several, as objects or as text.

    Raises:
        InputError: It cannot be read.

    Example:
        >>> read_timings("batch=32,threads=2")
        (Timing(batch=32, threads=2, target='eager'),)
    """
    if given is None:
        return (Timing(),)
    each = (given,) if isinstance(given, str | Timing) else tuple(given)
    if not each:
        raise InputError("timing: got no setting; expected one or more. Leave timing= out for the example's own.")
    return tuple(dict.fromkeys(one if isinstance(one, Timing) else _read(one) for one in each))


def _read(text: object) -> Timing:
    known = [field.name for field in fields(Timing)]
    values: dict[str, int | str] = {}
    for part in str(text).split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in known or not value or name in values:
            raise InputError(
                f"timing: got {text!r}; expected {', '.join(known)}, each at most once. "
                "Write for instance timing='batch=32,threads=2,target=eager'."
            )
        values[name] = int(value) if value.isdecimal() else value
    return Timing(**values)  # type: ignore[arg-type]  # it checks its own values
