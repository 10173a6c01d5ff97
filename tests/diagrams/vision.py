"""How colours look: contrast by WCAG 2, colour blindness by Machado et al. 2009, differences in CIELAB."""

from __future__ import annotations

import math
from itertools import starmap

Rgb = tuple[float, float, float]
Matrix = tuple[Rgb, Rgb, Rgb]

# Severity 1.0, for linear RGB (Machado, Oliveira and Fernandes 2009, table 1).
VISIONS: dict[str, Matrix] = {
    "usual": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
_TO_XYZ: Matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE: Rgb = (0.9505, 1.0, 1.089)


def linear(color: str) -> Rgb:
    """``#rrggbb`` as light."""
    red, green, blue = (_linear(int(color[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return red, green, blue


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def seen(color: str, vision: str) -> Rgb:
    """The light that somebody of this vision sees."""
    red, green, blue = (min(1.0, max(0.0, part)) for part in _times(VISIONS[vision], linear(color)))
    return red, green, blue


def luminance(light: Rgb) -> float:
    """Relative luminance."""
    return _times(_TO_XYZ, light)[1]


def contrast(one: str, other: str) -> float:
    """Contrast ratio, 1 to 21."""
    dark, light = sorted((luminance(linear(one)), luminance(linear(other))))
    return (light + 0.05) / (dark + 0.05)


def difference(one: Rgb, other: Rgb) -> float:
    """Distance in CIELAB; about 2 is just noticed side by side."""
    return math.dist(_lab(one), _lab(other))


def _lab(light: Rgb) -> Rgb:
    x, y, z = starmap(_root, zip(_times(_TO_XYZ, light), _WHITE, strict=True))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _root(value: float, white: float) -> float:
    ratio = value / white
    return ratio ** (1 / 3) if ratio > 0.008856 else 7.787 * ratio + 16 / 116


def _times(matrix: Matrix, light: Rgb) -> Rgb:
    x, y, z = (sum(a * b for a, b in zip(row, light, strict=True)) for row in matrix)
    return x, y, z
