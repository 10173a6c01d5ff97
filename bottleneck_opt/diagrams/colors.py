"""Colours: fill says what share of the original cost a box has, border and tag say what changed."""

from __future__ import annotations

from bottleneck_opt.diagrams.picture import Change

HEAT: tuple[tuple[float, str], ...] = (
    (0.0, "#ffffff"),
    (0.005, "#fff7df"),
    (0.01, "#ffedbd"),
    (0.02, "#fedc92"),
    (0.04, "#fdc46a"),
    (0.08, "#fba64a"),
    (0.16, "#f3853a"),
)
"""Lower bound of the share of the original model's MACs, and fill. Black text is readable on every one."""

INK = "#111111"
QUIET = "#5f6368"
_OLD, _NEW = "#b3261e", "#0b57d0"
BORDER: dict[Change, str] = {
    Change.SAME: "#9aa0a6",
    Change.REMOVED: _OLD,
    Change.ADDED: _NEW,
    Change.REPLACED: _NEW,
}
LINE: dict[Change, str] = {Change.SAME: "#80868b", Change.REMOVED: _OLD, Change.ADDED: _NEW}


def heat_color(share: float) -> str:
    """The fill for a share of the original model's MACs, one of seven.

    Example:
        >>> heat_color(0.0), heat_color(0.03), heat_color(0.9)
        ('#ffffff', '#fedc92', '#f3853a')
    """
    return [color for bound, color in HEAT if share >= bound][-1]
