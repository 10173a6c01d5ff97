"""``bottleneck-opt check``: hold a saved result to limits, for instance before a change is merged."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from bottleneck_opt.diagrams.wording import count_text, milliseconds_text
from bottleneck_opt.errors import InputError
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.reading import Pair, Report, load_saved
from bottleneck_opt.tracing import choose_inputs
from bottleneck_opt.working_copy import copy_model, model_device, working_inputs

MOST_RATIO = 10
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Limit:
    """What a number may be at most.

    Attributes:
        name: ``macs``, ``params``, ``latency``, ``drop`` or ``change``.
        most: The largest value that is allowed.
        absolute: Whether that is the number itself, and not its share of the original's.
        typed: The limit as it was typed.
    """

    name: str
    most: float
    absolute: bool
    typed: str


@dataclass(frozen=True)
class Verdict:
    """How a result stands to a limit.

    Attributes:
        name: As for :class:`Limit`.
        limit: As it was typed.
        value: What was compared with it; None where nothing was recorded.
        passed: Whether it holds.
        text: All of this in words.
    """

    name: str
    limit: str
    value: float | None
    passed: bool
    text: str


def read_limit(name: str, typed: str) -> Limit:
    """A limit as it is typed: a share of the original, or a number with a unit.

    Raises:
        InputError: It is neither.

    Example:
        >>> read_limit("macs", "0.5").absolute, read_limit("macs", "2G").most, read_limit("latency", "0.7ms").most
        (False, 2000000000.0, 0.7)
    """
    units = _TIMES if name == "latency" else _COUNTS if name in ("macs", "params") else {}
    match = _AMOUNT.fullmatch(typed.strip())
    unit = match[2].lower() if match else ""
    value = float(match[1]) if match else -1.0
    ratio = bool(units) and not unit
    if match is None or (unit and unit not in units) or (ratio and value > MOST_RATIO):
        example = {"latency": "0.8 or 0.7ms", "macs": "0.5 or 2G", "params": "0.5 or 10M"}.get(name, "0.01")
        share = f"a share of the original, or a number with one of {', '.join(units)}" if units else "a number"
        raise InputError(f"--max-{name}: got '{typed}'; expected {share}. Write for instance {example}.")
    return Limit(name, value * units.get(unit, 1.0), not ratio, typed)


def check_limits(report: Report, limits: Sequence[Limit]) -> tuple[Verdict, ...]:
    """How a report stands to each limit; a limit on what was not recorded is broken."""
    return tuple(_check(report, limit) for limit in limits)


def _check(report: Report, limit: Limit) -> Verdict:
    if limit.name in ("drop", "change"):
        return _check_quality(report, limit)
    headline = report.headline
    pair = {"macs": headline.macs, "params": headline.params, "latency": headline.milliseconds}[limit.name]
    if pair is None:
        return _unknown(limit, "no time was recorded: give --measure MODEL")
    value = pair.after if limit.absolute else pair.after / pair.before if pair.before else float("inf")
    say = milliseconds_text if limit.name == "latency" else count_text
    after, before = say(pair.after), say(pair.before)
    most = limit.typed if limit.absolute else f"{limit.typed} of the original"
    shown = f"{after} of {before}" if limit.absolute else f"{value:.4g} of the original ({after} of {before})"
    return _judge(limit, value, f"{shown}, at most {most}")


def _check_quality(report: Report, limit: Limit) -> Verdict:
    if report.headline.weights_changed:
        return _unknown(limit, "the weights were changed after this was measured: measure the loaded model yourself")
    if limit.name == "change":
        value = report.headline.output_change.measured
        if value is None:
            return _unknown(limit, "no change of the output was recorded")
        return _judge(limit, value, f"the output changed by {value:.4g} of its variance, at most {limit.typed}")
    metric = report.headline.metric
    if metric is None:
        return _unknown(limit, "no metric was recorded: run optimize with --evaluate")
    drop = metric.before - metric.after
    return _judge(limit, drop, f"{drop:.4g} ({metric.before:.6g} to {metric.after:.6g}), at most {limit.typed}")


def _judge(limit: Limit, value: float, text: str) -> Verdict:
    return Verdict(limit.name, limit.typed, value, value <= limit.most, text)


def _unknown(limit: Limit, reason: str) -> Verdict:
    return Verdict(limit.name, limit.typed, None, False, reason)


def measure_again(report: Report, folder: Path, model: nn.Module, shape: str | None) -> Report:
    """The report with the milliseconds that both models take here and now.

    Args:
        report: As it was saved.
        folder: Where it was saved with the result.
        model: The original, which is timed beside the result.
        shape: Of the call that is timed, as it is typed; None takes that of the report.
    """
    loaded, example = load_saved(folder, model, shape)
    before = copy_model(model).eval()
    device = model_device(before)
    call, _ = choose_inputs(before, example)
    speed = compare_speed(before, loaded, working_inputs(call, before, device), device=device)
    return replace(report, headline=replace(report.headline, milliseconds=Pair(speed.before, speed.after)))


def render_verdicts(verdicts: Sequence[Verdict]) -> str:
    """One line a limit.

    Example:
        >>> print(render_verdicts([Verdict("macs", "0.5", 0.48, True, "0.48 of the original, at most 0.5")]))
        ok      macs     0.48 of the original, at most 0.5
    """
    return "\n".join(f"{'ok' if each.passed else 'BROKEN':<7} {each.name:<8} {each.text}" for each in verdicts)


def verdicts_json(verdicts: Sequence[Verdict]) -> str:
    """The verdicts for machines."""
    document: dict[str, Any] = {"passed": all(each.passed for each in verdicts), "limits": list(map(asdict, verdicts))}
    return json.dumps(document, indent=2)
