"""What the conformance kit raises: the fault, where it is, and what to do."""

from __future__ import annotations

from bottleneck_opt.errors import PassError


class ConformanceError(PassError, AssertionError):
    """A pass breaks a promise that every pass makes.

    Attributes:
        fault: In two or three words: ``wrong shape``, ``keeps state``.
    """

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def make_error(name: str, where: str, fault: str, details: str, advice: str) -> ConformanceError:
    """The error for a fault of a pass.

    Args:
        name: The pass.
        where: On which layer or model; empty where it is the pass itself.
        fault: In two or three words.
        details: What was expected, and what came.
        advice: What to do, a whole sentence.
    """
    place = f" on {where}" if where else ""
    return ConformanceError(fault, f"pass '{name}'{place}: {fault}: {details}. {advice}")
