"""The colours that the page shares with the pictures: nothing else in the report asks for them elsewhere."""

from __future__ import annotations

from bottleneck_opt.diagrams.colors import LIGHT

__all__ = ["BORDER", "HEAT", "INK", "heat_color", "heat_step", "heat_styles"]

BORDER, HEAT, INK, heat_color = LIGHT.border, LIGHT.heat, LIGHT.ink, LIGHT.fill


def heat_step(share: float) -> int:
    """Number of the step of the heat scale for a share of the original model's MACs.

    Example:
        >>> heat_step(0), heat_step(0.03), heat_step(1)
        (0, 3, 6)
    """
    return max(index for index, (bound, _) in enumerate(HEAT) if share >= bound)


def heat_styles() -> str:
    """A style rule for each step, for shapes and for the legend; the same in both themes, with dark words on it."""
    return "\n".join(
        f".heat-{index} {{ fill: {color}; background: {color}; }}" for index, (_, color) in enumerate(HEAT)
    )
