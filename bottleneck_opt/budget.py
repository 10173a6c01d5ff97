"""How small the result must be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from bottleneck_opt.errors import BudgetError, NotAvailableError
from bottleneck_opt.graph import Cost

UNITS = ("macs", "params", "latency")
TIME = "latency"
MOST_UNITS = 2
_LATER = ("memory",)
_COUNTS: Mapping[str, float] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_NANOSECONDS: Mapping[str, float] = {"": 1, "us": 1e3, "ms": 1e6, "s": 1e9}
_NUMBER = re.compile(r"^([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)$", re.IGNORECASE)
Amount = float | int | str


@dataclass(frozen=True)
class Budget:
    """Limits on the result, two at most. A number in (0, 1] is a ratio of the original; ``"2G"``, ``"12ms"`` or a
    number above 1 is absolute.

    Attributes:
        macs: Multiply-adds.
        params: Parameters.
        latency: Measured time of one call; an absolute one has a unit: ``us``, ``ms`` or ``s``.
        memory: Refused in this version.

    Example:
        >>> Budget(macs=0.5, params="10M").limits(Cost(macs=1000, params=20_000_000))
        {'macs': 500, 'params': 10000000}
    """

    macs: Amount | None = None
    params: Amount | None = None
    latency: Amount | None = None
    memory: Amount | None = None

    def __post_init__(self) -> None:
        for unit in _LATER:
            if getattr(self, unit) is not None:
                raise NotAvailableError(
                    f"budget {unit}={getattr(self, unit)}: this version limits {', '.join(UNITS)} only. "
                    "Use budget='macs=0.5' or 'latency=0.7'."
                )
        limited = [unit for unit in UNITS if getattr(self, unit) is not None]
        if not limited:
            raise BudgetError(
                "budget: nothing is limited; expected macs=, params= or latency=. Write budget=0.5 or 'macs=0.5'."
            )
        if len(limited) > MOST_UNITS:
            raise BudgetError(
                f"budget: limits {', '.join(limited)}; expected two of them at most. Leave out the one that matters "
                "least."
            )
        for unit in UNITS:
            _read_amount(unit, getattr(self, unit))

    def limits(self, cost: Cost) -> dict[str, int]:
        """The most the result may cost, for each limited unit, for a model of this cost."""
        amounts = {unit: _read_amount(unit, getattr(self, unit)) for unit in UNITS}
        return {
            unit: int(amount * getattr(cost, unit)) if amount <= 1 else int(amount)
            for unit, amount in amounts.items()
            if amount is not None
        }

    @property
    def limits_time(self) -> bool:
        """Whether milliseconds are limited, which have to be measured."""
        return self.latency is not None

    @property
    def is_absolute_time(self) -> bool:
        """Whether the limit on time is in milliseconds, not a ratio."""
        amount = _read_amount(TIME, self.latency)
        return amount is not None and amount > 1

    def describe(self) -> str:
        """The budget as it may be typed: ``macs=0.5,params=10M``."""
        amounts = {unit: getattr(self, unit) for unit in UNITS}
        words = {unit: f"{a:.12g}" if isinstance(a, float) else str(a) for unit, a in amounts.items() if a is not None}
        return ",".join(f"{unit}={word}" for unit, word in words.items())


def _read_amount(unit: str, amount: Amount | None) -> float | None:
    if amount is None:
        return None
    value, named = _parse(amount, _NANOSECONDS if unit == TIME else _COUNTS)
    lacks_unit = unit == TIME and value > 1 and not named
    if not value > 0 or value == float("inf") or lacks_unit or (unit == TIME and named and value <= 1):
        example = "a time with its unit such as 12ms" if unit == TIME else "an absolute number such as 2G or 10M"
        raise BudgetError(
            f"budget {unit}={amount!r}: expected a ratio in (0, 1] or {example}. Write for instance {unit}=0.5."
        )
    return value


def _parse(amount: Amount, scales: Mapping[str, float]) -> tuple[float, bool]:
    """The number, -1 where it is none, and whether it has a unit."""
    if isinstance(amount, str):
        match = _NUMBER.match(amount.strip())
        scale = scales.get(match[2].lower()) if match else None
        return (float(match[1]) * scale, bool(match[2])) if match and scale is not None else (-1.0, False)
    return (float(amount) if isinstance(amount, Real) and not isinstance(amount, bool) else -1.0), False


def read_budget(given: float | str | Budget | Mapping[str, Amount] | None) -> tuple[Budget, bool]:
    """The budget, and whether the user typed one (the default of half the MACs is only an aim).

    Raises:
        BudgetError: It cannot be read.
        NotAvailableError: It limits something that this version cannot.
    """
    if given is None:
        return Budget(macs=0.5), False
    if isinstance(given, Budget):
        return given, True
    if isinstance(given, Mapping):
        return _from_amounts(given), True
    if isinstance(given, str) and "=" in given:
        return _from_amounts(_split(given)), True
    _refuse_number(given)
    return Budget(macs=given), True


def _refuse_number(given: Any) -> None:
    """Raise BudgetError for a bare number above 1: it is neither a ratio nor has it a unit."""
    try:
        number = float(given)
    except (TypeError, ValueError):
        return
    if 1 < number < math.inf:
        raise BudgetError(
            f"budget: got {given}; expected a ratio in (0, 1] where no unit is given. "
            "Write 0.5 for half the MACs, or 'macs=2G' for an absolute number."
        )


def _split(text: str) -> dict[str, Amount]:
    amounts: dict[str, Amount] = {}
    for part in text.split(","):
        unit, _, amount = (word.strip() for word in part.partition("="))
        if unit in amounts:
            raise BudgetError(f"budget {text!r}: limits {unit} twice; expected every unit once. Leave one out.")
        amounts[unit] = amount
    return amounts


def _from_amounts(amounts: Mapping[str, Amount]) -> Budget:
    unknown = sorted(set(amounts) - {*UNITS, *_LATER})
    if unknown:
        raise BudgetError(
            f"budget: unknown unit {', '.join(map(repr, unknown))}; expected {', '.join(UNITS)}. "
            "Write budget='macs=0.5'."
        )
    return Budget(**{unit: _ratio_or_text(amount) for unit, amount in amounts.items()})


def _ratio_or_text(amount: Amount) -> Amount:
    if not isinstance(amount, str):
        return amount
    try:
        return float(amount)
    except ValueError:
        return amount
