"""Check the answers of passes that replace no layer by itself: those that drop channels or share a bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bottleneck_opt.common_factor import CommonBasis
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.testing.faults import make_error
from bottleneck_opt.testing.sample_layers import Shown

_NEGLIGIBLE = 1e-6


def check_elimination(name: str, where: str, found: Elimination, shown: Shown) -> None:
    """Check an order of channels and its losses.

    Raises:
        ConformanceError: It is none, or its losses cannot be right.
    """
    width = shown.site.layer.in_channels
    if not isinstance(found, Elimination):
        raise make_error(
            name, where, "impossible answer", f"expected an Elimination, got a {type(found).__name__}",
            "Return bottleneck_opt.elimination.Elimination(order, losses), a Skip, or None.",
        )  # fmt: skip
    if sorted(found.order.tolist()) != list(range(width)):
        raise make_error(
            name, where, "wrong shape", f"its order is {found.order.tolist()}; expected each of 0 .. {width - 1} once",
            "List every input channel, the one needed most first.",
        )  # fmt: skip
    _check_losses(name, where, found.losses[None], width)


def check_basis(name: str, where: str, found: CommonBasis, shown: Sequence[Shown], most: int) -> None:
    """Check a common first factor and its losses.

    Raises:
        ConformanceError: It is none, or its losses cannot be right.
    """
    if not isinstance(found, CommonBasis):
        raise make_error(
            name, where, "impossible answer", f"expected a CommonBasis, got a {type(found).__name__}",
            "Return bottleneck_opt.common_factor.CommonBasis(projection, losses), a Skip, or None.",
        )  # fmt: skip
    expected = (most, shown[0].site.layer.in_channels)
    if tuple(found.projection.shape) != expected or len(found.losses) != len(shown):
        raise make_error(
            name, where, "wrong shape",
            f"its projection is {tuple(found.projection.shape)} for {len(found.losses)} layers; expected {expected} "
            f"for {len(shown)}",
            "Give one row for each rank up to the highest, and one row of losses for each layer.",
        )  # fmt: skip
    _check_losses(name, where, found.losses, most)


def _check_losses(name: str, where: str, losses: Tensor, most: int) -> None:
    """One row of losses for each layer, falling to nothing where everything is kept."""
    if losses.shape[1] != most + 1:
        raise make_error(
            name, where, "wrong shape", f"it gave {losses.shape[1]} losses; expected {most + 1}",
            f"Give the loss of keeping 0, 1, ... {most} of them.",
        )  # fmt: skip
    whole = losses[:, :1].abs().clamp_min(1e-300)
    if not bool(torch.isfinite(losses).all()) or bool((losses < 0).any() | (losses.diff() > _NEGLIGIBLE * whole).any()):
        raise make_error(
            name, where, "wrong predicted loss", "its losses are not finite, below zero, or rise with what is kept",
            "More channels, fitted again, never lose more.",
        )  # fmt: skip
    if bool((losses[:, -1] > _NEGLIGIBLE * whole[:, 0]).any()):
        raise make_error(
            name, where, "wrong at full rank", f"it loses {float(losses[:, -1].max()):.3g} where everything is kept",
            "Nothing may be lost there.",
        )  # fmt: skip
