from itertools import combinations, pairwise

import pytest

from bottleneck_opt.diagrams.colors import DARK, LIGHT, Theme, find_theme
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.errors import InputError
from tests.diagrams.vision import VISIONS, contrast, difference, luminance, seen

TEXT, BORDER = 4.5, 3.0  # WCAG 2.2, success criteria 1.4.3 and 1.4.11
APART, STEP = 20.0, 3.0
themes = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
visions = pytest.mark.parametrize("vision", VISIONS)


def grounds(theme: Theme) -> list[str]:
    """Everything that text stands on."""
    return [theme.background, *(color for _, color in theme.heat)]


def test_the_measure_of_contrast_is_the_standard_one() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@themes
def test_text_is_readable_on_every_fill_and_tag(theme: Theme) -> None:
    assert min(contrast(ink, ground) for ink in (theme.ink, theme.quiet) for ground in grounds(theme)) >= TEXT
    assert min(contrast(theme.tag_ink, border) for border in theme.border.values()) >= TEXT


@themes
def test_borders_and_bars_stand_out_from_every_fill(theme: Theme) -> None:
    drawn = [*theme.border.values(), theme.quiet]
    assert min(contrast(color, ground) for color in drawn for ground in grounds(theme)) >= BORDER


@themes
def test_lines_and_frames_stand_out_from_the_background(theme: Theme) -> None:
    drawn = [*theme.line.values(), theme.frame]
    assert min(contrast(color, theme.background) for color in drawn) >= BORDER


@themes
@visions
def test_kinds_of_change_differ_for_every_kind_of_eye(theme: Theme, vision: str) -> None:
    kinds = (Change.SAME, Change.REMOVED, Change.ADDED)
    for one, other in combinations([seen(theme.border[kind], vision) for kind in kinds], 2):
        assert difference(one, other) >= APART


@themes
@visions
def test_steps_of_heat_go_one_way_and_differ_for_every_kind_of_eye(theme: Theme, vision: str) -> None:
    steps = [seen(color, vision) for _, color in theme.heat]
    brightness = [luminance(step) for step in steps]
    assert brightness == sorted(brightness, reverse=theme is LIGHT)
    assert min(difference(one, other) for one, other in pairwise(steps)) >= STEP


def test_an_unknown_theme_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="'light' or 'dark'"):
        find_theme("blue")
