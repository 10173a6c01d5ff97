"""How large a PNG may be."""

from __future__ import annotations

import math
import re
from pathlib import Path

from bottleneck_opt.errors import FileError

_DPI = 144.0
_SIDE = 16_000
_PIXELS = 40_000_000
_SMALLEST = 0.6


def choose_dpi(svg: str, path: Path) -> tuple[float, str]:
    """Dots an inch that keep a PNG within what viewers open, and a note where that is less than usual.

    Args:
        svg: The picture as SVG.
        path: Where the PNG goes, for the error.

    Raises:
        FileError: It would have to be scaled down so far that nobody could read it.
    """
    size = re.search(r'<svg[^>]*?width="(\d+)pt"[^>]*?height="(\d+)pt"', svg, re.DOTALL)
    width, height = (int(size[1]), int(size[2])) if size else (1, 1)
    pixels = (width * _DPI / 72, height * _DPI / 72)
    scale = min(1.0, _SIDE / max(pixels), math.sqrt(_PIXELS / (pixels[0] * pixels[1])))
    if scale < _SMALLEST:
        raise FileError(
            f"picture {path}: it would be {pixels[0]:.0f} x {pixels[1]:.0f} pixels, expected at most {_SIDE} "
            f"a side and {_PIXELS // 1_000_000} million in all. Write a .svg or .pdf file instead."
        )
    note = "" if scale == 1.0 else f"scaled to {100 * scale:.0f} % to keep the PNG small; .svg and .pdf have full size"
    return _DPI * scale, note
