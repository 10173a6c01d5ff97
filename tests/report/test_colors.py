"""Words can be read on what is behind them, in both themes."""

import re
from importlib import resources

import pytest

from bottleneck_opt.report.palette import BORDER, HEAT, INK

THEME = (resources.files("bottleneck_opt") / "report" / "theme.css").read_text()
ENOUGH = 4.5


def variable(name: str, theme: int) -> str:
    found = re.findall(rf"--{name}: light-dark\((#\w+), (#\w+)\)", THEME)
    return str(found[0][theme])


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("color", ["ink", "quiet", "accent", "gone", "good"])
def test_text_can_be_read_on_the_page(color: str, theme: int) -> None:
    for behind in ("paper", "panel"):
        assert contrast(variable(color, theme), variable(behind, theme)) >= ENOUGH


def test_text_can_be_read_on_every_fill() -> None:
    assert all(contrast(INK, fill) >= ENOUGH for _, fill in HEAT)
    assert all(contrast("#ffffff", color) >= ENOUGH for change, color in BORDER.items() if change.value != "same")
