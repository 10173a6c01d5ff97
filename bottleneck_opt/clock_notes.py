"""What timing while choosing came to, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from bottleneck_opt.outcome import Clocked, LeftOut, Speed, Timed, Verification
from bottleneck_opt.timing.records import timings_file

_SHOWN = 3
_DRIFT = 1.03


def list_clock_notes(clocked: Clocked | None, verification: Verification) -> tuple[str, ...]:
    """Which replacements were left out, what was timed, and where a second measurement says otherwise."""
    speeds = [each for each in (verification.speed, *verification.more_speeds) if each is not None]
    if clocked is None:
        return _tell_slow(speeds)
    notes = [_tell_left_out(clocked)] if clocked.left_out else []
    notes += [_tell_timed(each, clocked.models) for each in clocked.timed]
    notes += [
        f"{timed.setting}: measured again at the end, {speed.after / speed.before:.3f} of the original's time instead "
        f"of {timed.after / timed.before:.3f}; where a disturbed time was kept, delete {timings_file()} to time afresh"
        for timed, speed in zip(clocked.timed, speeds, strict=False)
        if speed.after / speed.before > _DRIFT * timed.after / timed.before
    ]
    if clocked.fault:
        notes.append(f"times are not kept, and may come out otherwise the next time: {clocked.fault}")
    return (*notes, *_tell_slow(speeds))


def _tell_left_out(clocked: Clocked) -> str:
    examples = "; ".join(map(_tell, clocked.left_out[:_SHOWN])) + ("; ..." if len(clocked.left_out) > _SHOWN else "")
    count = len(clocked.left_out)
    what = f"{count} replacement{'s' if count > 1 else ''} no faster here than the layer itself"
    if clocked.taken_all_the_same:
        return (
            f"the budget cannot be met without {what} ({examples}): they may be in the result. Limit the time "
            "(budget='latency=0.7'), or leave them out with allow_slower=False"
        )
    return f"left out, as {'they are' if count > 1 else 'it is'} not what makes it fast: {what} ({examples})"


def _tell(each: LeftOut) -> str:
    ranks = "x".join(map(str, each.ranks))
    return f"{each.path} {each.form} {ranks}: {each.after:.3g} ms instead of {each.before:.3g} ms"


def _tell_timed(each: Timed, models: int) -> str:
    return (
        f"{each.setting}: {each.before:.3g} ms before, {each.after:.3g} ms after, {each.predicted:.3g} ms expected "
        f"({models} model{'s' if models > 1 else ''} timed while choosing)"
    )


def _tell_slow(speeds: Sequence[Speed]) -> tuple[str, ...]:
    slow = [each for each in speeds if each.after > _DRIFT * each.before]
    return tuple(
        f"slower than the original here: {each.after:.3g} ms instead of {each.before:.3g} ms (batch "
        f"{'as in the example' if each.batch is None else each.batch}, {each.threads} "
        f"{'thread' if each.threads == 1 else 'threads'}, {each.target}). Limit the time: budget='latency=0.9'"
        for each in slow
    )
