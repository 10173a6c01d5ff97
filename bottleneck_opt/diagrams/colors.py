"""Colours: fill says what share of the original cost a box has, border and tag say what changed.

Colour is never alone: a change is also said by the line (thin, dashed, thick, double), by the corners and in words, a
share also by a bar and in percent. Tests check the contrast and how the colours look to colour-blind eyes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.errors import InputError

ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """The colours of a picture.

    Attributes:
        name: ``light`` or ``dark``.
        background: Of the picture.
        ink: Text; readable on the background and on every fill.
        quiet: Text of less weight; likewise.
        heat: Lower bound of a box's share of the original model's cost, and its fill.
        border: Of a box; also the background of its tag.
        tag_ink: Text on a tag.
        line: Of an edge.
        frame: Of a frame around a module.
    """

    name: ThemeName
    background: str
    ink: str
    quiet: str
    heat: tuple[tuple[float, str], ...]
    border: Mapping[Change, str]
    tag_ink: str
    line: Mapping[Change, str]
    frame: str

    def fill(self, share: float) -> str:
        """The fill for a share of the original model's cost, one of seven.

        Example:
            >>> LIGHT.fill(0.0), LIGHT.fill(0.03), DARK.fill(0.9)
            ('#ffffff', '#fed98c', '#874f08')
        """
        return [color for bound, color in self.heat if share >= bound][-1]


_BOUNDS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)


def _changes(same: str, removed: str, added: str) -> dict[Change, str]:
    return {Change.SAME: same, Change.REMOVED: removed, Change.ADDED: added, Change.REPLACED: added}


def _steps(*fills: str) -> tuple[tuple[float, str], ...]:
    return tuple(zip(_BOUNDS, fills, strict=True))


LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#111111",
    quiet="#44484d",
    heat=_steps("#ffffff", "#fff4d6", "#ffe8b0", "#fed98c", "#fdc871", "#fcb661", "#faa558"),
    border=_changes("#5f6368", "#a01c17", "#0a47b5"),
    tag_ink="#ffffff",
    line=_changes("#70757a", "#a01c17", "#0a47b5"),
    frame="#80868b",
)
DARK = Theme(
    name="dark",
    background="#15181c",
    ink="#f1f3f4",
    quiet="#d9dde1",
    heat=_steps("#1b1f24", "#2b261d", "#3b2d18", "#4d3613", "#613f0e", "#74470b", "#874f08"),
    border=_changes("#b0b6bc", "#ff9b6a", "#8ab8ff"),
    tag_ink="#15181c",
    line=_changes("#8f959b", "#ff9b6a", "#8ab8ff"),
    frame="#80868b",
)
THEMES: Mapping[str, Theme] = {theme.name: theme for theme in (LIGHT, DARK)}


def find_theme(name: str) -> Theme:
    """The theme of a name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in THEMES:
        raise InputError(f"theme: got {name!r}; expected 'light' or 'dark'.")
    return THEMES[name]
