"""Every error the tool raises on purpose.

The tree::

    BottleneckOptError
    |-- ModelError         what was given as a model cannot be used         (tracing, inputs)
    |-- InputError         an example input or calibration batch is wrong   (inputs, tracing, calibration)
    |                      or evaluate= or max_drop= is               (evaluating, floor)
    |-- BudgetError        a budget cannot be read or cannot be met         (budget, allocation)
    |-- PassError          a pass is unknown, broken or answers nonsense    (registry, proposing)
    |-- PatternError       include= or exclude= matches nothing             (proposing)
    |-- RewriteError       a plan does not fit the model it is applied to   (rewriting)
    |-- FileError          a file cannot be read, checked or written        (files, plan, saving)
    |-- RanksError         processes that share a run disagree or lost    (distribution)
    |                      each other
    |-- ExportError        a model cannot be exported as it is              (exporting)
    `-- NotAvailableError  an option that this version does not have        (optimizer, cli)

A message says what, where, got, expected, and ends with what to do.
"""

from __future__ import annotations


class BottleneckOptError(Exception):
    """Anything wrong that the caller can put right."""


class ModelError(BottleneckOptError):
    """The model cannot be used."""


class InputError(BottleneckOptError):
    """An example input or a calibration batch is of the wrong kind, shape or value."""


class BudgetError(BottleneckOptError):
    """A budget cannot be read, or no plan reaches it.

    Attributes:
        smallest: The smallest reachable values, such as ``{"macs": 0.21}`` (ratios of the original), or None.
    """

    def __init__(self, message: str, *, smallest: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class PassError(BottleneckOptError):
    """A pass is unknown, cannot be loaded, or answered something impossible."""


class PatternError(BottleneckOptError):
    """A path pattern matches no layer of the model."""


class RewriteError(BottleneckOptError):
    """A plan does not fit the model it is applied to."""


class FileError(BottleneckOptError):
    """A file cannot be read, does not pass its checks, or cannot be written."""


class RanksError(BottleneckOptError):
    """Processes that share one run do not have the same model or data, or lost each other.

    Attributes:
        told: Another process stopped first and has said why.
    """

    def __init__(self, message: str, *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


class ExportError(BottleneckOptError):
    """A model cannot be written in a format, or a package for it is missing."""


class NotAvailableError(BottleneckOptError):
    """An option that this version does not have yet."""


def tell(error: BaseException) -> str:
    """An error of somebody else's in one line, without its full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}"
