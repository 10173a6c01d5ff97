"""Short plain texts for numbers, shapes and names, the same in pictures, tables and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

_UNITS = ("", "k", "M", "G", "T", "P")
PATH_LIMIT = 34
TEXT_LIMIT = 400
CHANGE_MEANING = "mean squared change of the output, as a share of the output's variance"
RANK_MEANING = (
    "channels kept between the new layers, of as many as would lose nothing (tucker: after the first and before the "
    "last; select: the layer's own inputs x outputs)"
)


def count_text(count: float) -> str:
    """A count with three digits and a unit.

    Example:
        >>> count_text(999), count_text(9_540), count_text(115_605_504), count_text(999_999)
        ('999', '9.54 k', '116 M', '1.00 M')
    """
    value, unit = float(count), 0
    while abs(value) >= (999.5 if unit else 1000) and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{value:.0f}"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def macs_text(macs: float) -> str:
    """Multiply-adds in words.

    Example:
        >>> macs_text(1_090_000_000), macs_text(12)
        ('1.09 GMAC', '12 MAC')
    """
    number, _, unit = count_text(macs).partition(" ")
    return f"{number} {unit}MAC"


def shrink_text(before: str, after: str) -> str:
    """Two numbers with their units as one text; a unit that both have is said once.

    Example:
        >>> shrink_text("18.9 MMAC", "8.10 MMAC"), shrink_text("1.2 GMAC", "8.10 MMAC"), shrink_text("9 %", "9 %")
        ('18.9 -> 8.10 MMAC', '1.2 GMAC -> 8.10 MMAC', '9 %')
    """
    if before == after:
        return after
    number, _, unit = before.partition(" ")
    return f"{number if unit == after.partition(' ')[2] else before} -> {after}"


def share_text(share: float) -> str:
    """A share of a total in percent with one digit.

    Example:
        >>> share_text(0.1412), share_text(0.0001), share_text(0)
        ('14.1 %', '<0.1 %', '0 %')
    """
    if share <= 0:
        return "0 %"
    return "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def change_text(before: float, after: float) -> str:
    """How much a number grew or shrank.

    Example:
        >>> change_text(200, 150), change_text(2, 3), change_text(0, 0)
        ('-25 %', '+50 %', '0 %')
    """
    if before == after:
        return "0 %"
    if before == 0:
        return "new"
    percent = 100 * (after - before) / abs(before)
    return f"{percent:+.1f} %" if abs(percent) < 10 else f"{percent:+.0f} %"


def loss_text(loss: float) -> str:
    """A squared change relative to the variance, in percent with two digits.

    Example:
        >>> loss_text(0.0123), loss_text(0.5), loss_text(3e-7), loss_text(0), loss_text(float("nan"))
        ('1.2 %', '50 %', '<0.001 %', '0 %', 'unknown')
    """
    if not math.isfinite(loss):
        return "unknown"
    if loss <= 0:
        return "0 %"
    if loss < 0.00001:
        return "<0.001 %"
    percent = 100 * loss
    digits = max(0, 1 - math.floor(math.log10(percent)))
    return f"{percent:.{digits}f} %"


def milliseconds_text(milliseconds: float) -> str:
    """Milliseconds with three digits.

    Example:
        >>> milliseconds_text(0.1234), milliseconds_text(12.345), milliseconds_text(1234.5)
        ('0.123 ms', '12.3 ms', '1234 ms')
    """
    digits = 0 if milliseconds >= 99.95 else 1 if milliseconds >= 9.995 else 2 if milliseconds >= 0.9995 else 3
    return f"{milliseconds:.{digits}f} ms"


def shape_text(shape: Sequence[int | str]) -> str:
    """A shape without its batch axis.

    Example:
        >>> shape_text((1, 64, 56, 56)), shape_text((8,)), shape_text(())
        ('64x56x56', '1', 'scalar')
    """
    if not shape:
        return "scalar"
    return "x".join(map(str, shape[1:])) or "1"


def shapes_text(shapes: Sequence[Sequence[int | str]]) -> str:
    """Several shapes, equal ones once, at most two in full.

    Example:
        >>> shapes_text([(1, 8, 4, 4), (1, 8, 4, 4)]), shapes_text([(1, 8), (1, 9), (1, 7)])
        ('8x4x4', '8 + 9 + 1 more')
    """
    texts = list(dict.fromkeys(map(shape_text, shapes)))
    more = [f"{len(texts) - 2} more"] if len(texts) > 2 else []
    return " + ".join(texts[:2] + more)


def paths_text(paths: Sequence[str]) -> str:
    """One path, or the first and last of several, the last without the modules that both are in.

    Example:
        >>> paths_text(["layer3.1", "layer3.2", "layer3.3"]), paths_text(["a.b.c", "a.d"]), paths_text(["a", "a"])
        ('layer3.1 .. 3', 'a.b.c .. d', 'a')
    """
    first, last = paths[0].split("."), paths[-1].split(".")
    if first == last:
        return paths[0]
    parents = zip(first[:-1], last[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda names: names[0] == names[1], parents))
    return f"{paths[0]} .. {'.'.join(last[shared:])}"


def elide_middle(text: str, limit: int = PATH_LIMIT) -> str:
    """The text with its middle left out if it is longer than the limit.

    Example:
        >>> elide_middle("backbone.stages.3.blocks.17.attention.proj", 20)
        'backbone....ion.proj'
    """
    if len(text) <= limit:
        return text
    head = (limit - 4) // 2
    return f"{text[:head]}....{text[head + 4 - limit :]}"


def elide_start(text: str, limit: int = PATH_LIMIT) -> str:
    """The text without its start if it is longer than the limit.

    Example:
        >>> elide_start("transformer_blocks.0.attn1.to_q", 20)
        '...cks.0.attn1.to_q'
    """
    return text if len(text) <= limit else f"...{text[4 - limit :]}"


def elide_end(text: str, limit: int) -> str:
    """The text cut at the limit.

    Example:
        >>> elide_end("too small to be worth it", 12)
        'too small...'
    """
    return text if len(text) <= limit else f"{text[: limit - 3].rstrip()}..."


def ascii_text(text: str) -> str:
    r"""The text with everything outside printable ASCII written as an escape, so that every font and parser takes it.

    Example:
        >>> ascii_text("a" + chr(10) + chr(233) + chr(0))
        'a\\n\\xe9\\x00'
    """
    return "".join(c if " " <= c <= "~" else repr(c)[1:-1].encode("ascii", "backslashreplace").decode() for c in text)


def times_text(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> times_text(0.0123), times_text(3.21), times_text(125)
        ('12 ms', '3.2 s', '2 min 5 s')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
