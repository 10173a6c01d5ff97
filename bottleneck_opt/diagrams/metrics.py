"""How wide text is, for a layout that has no renderer to ask."""

from __future__ import annotations

# Advance widths of Helvetica, in thousandths of the size, from space to tilde (Adobe's metrics); Arial has the same.
_WIDTHS = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556,
    556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334,
    260, 334, 584,
)  # fmt: skip
_BOLD = 1.08  # Helvetica Bold is this much wider, nearly


def text_width(text: str, size: int, *, bold: bool = False) -> float:
    """Points that a text in printable ASCII takes.

    Example:
        >>> text_width("conv", 10)
        21.12
    """
    units = sum(_WIDTHS[ord(c) - 32] if " " <= c <= "~" else 1000 for c in text)
    return round(units * size / 1000 * (_BOLD if bold else 1.0), 3)
