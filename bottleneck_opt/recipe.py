"""Which ingredients of the method to use: all of them, unless one is switched off to see what it is worth."""

from __future__ import annotations

from dataclasses import dataclass

from bottleneck_opt.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """The ingredients of :func:`optimize`, for comparisons; the default is the best that is known.

    Attributes:
        curvature: Weigh each layer's error by what the model's output feels of it. Without, it is the layer's own
            squared error.
        refit: Fit the last factor of each rewritten layer again to what the original layer gave.
        rounds: In how many rounds the first factor and the others of a chosen option are fitted in turn; 3 get most of
            it. Fewer, or none, for layers with patches so wide that it would take seconds. Worth most where ``joint``
            is left out, as for large models; with it a denoiser gained and a small classifier did better with 0
            (:mod:`bottleneck_opt.alternating` has the numbers).
        steps: How many plans to make on the way to the budget, each with fresh statistics of the one before
            (:mod:`bottleneck_opt.stepping`). Each costs about as much as calibration.
        joint: Iterations in which all layers are fitted together to the model's outputs; 0 leaves that out. None takes
            sixteen, on as many of the examples as a limit on their cost allows; fewer where it allows fewer on 64,
            none for large models and where the inputs are made up.
        mixes: How many mixes of two calibration inputs to fit to beside each input; 0 for none. None takes as many as
            bring up a few inputs to 256, where running the model on all of them is quick
            (:mod:`bottleneck_opt.mixing` has the numbers), and none with a recovery that trains on no mixes: that is
            judged by inputs that nothing was fitted to.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> Recipe(joint=0)
        Recipe(curvature=True, refit=True, rounds=3, steps=1, joint=0, mixes=None)
    """

    curvature: bool = True
    refit: bool = True
    rounds: int = 3
    steps: int = 1
    joint: int | None = None
    mixes: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise InputError(f"Recipe: rounds: got {self.rounds}; expected at least 0. Pass 0 to leave them out.")
        if self.steps < 1:
            raise InputError(f"Recipe: steps: got {self.steps}; expected at least 1. Pass 1 to compress at once.")
        if self.joint is not None and self.joint < 0:
            raise InputError(f"Recipe: joint: got {self.joint}; expected at least 0. Pass 0 to leave it out, or None.")
        if self.mixes is not None and self.mixes < 0:
            raise InputError(f"Recipe: mixes: got {self.mixes}; expected at least 0. Pass 0 to make none, or None.")
