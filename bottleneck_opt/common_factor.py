"""One first factor for several layers that read the same tensor.

For layers ``W_i (out_i, offsets_i, in)`` with patches of covariance ``S_i`` and the output's curvature ``G_i``, a
common ``P (rank, in)`` is sought that makes ``sum_i tr(G_i D_i S_i D_i^T)`` small, ``D_i = W_i - W'_i (I kron P)``. The
layers' rows are stacked as those of one layer whose curvature is block-diagonal. All tensors are float64.

Source: Van Loan 2000 and reduced-rank regression as in :func:`bottleneck_opt.factorization.fit_reduce`, on the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.factorization import Factors, balance, find_common_basis, fit_to_basis, refit_second, weigh_channels

Consumer = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""Makes a layer's weight ``(out, offsets, in)``, covariance and curvature, the same at every call."""


@dataclass(frozen=True)
class CommonBasis:
    """A first factor for several layers at every rank.

    Attributes:
        projection: The first factor at the highest rank wanted ``(most, in)``; its leading rows are that of the lower
            ranks.
        losses: Loss of each layer at rank 0, 1, ... up to the highest wanted ``(layers, most + 1)``, its second factor
            refitted.
    """

    projection: Tensor
    losses: Tensor


def fit_common(consumers: Sequence[Consumer], most: int) -> CommonBasis:
    """A near-optimal nested basis for all layers together, from one eigendecomposition ``(in, in)``.

    Args:
        consumers: The layers. Each is asked twice, so that only one large covariance is in memory at a time.
        most: The highest rank whose losses are wanted.

    Example:
        >>> def layer():
        ...     eye = torch.eye(2, dtype=torch.float64)
        ...     return torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64), eye, eye
        >>> fit_common([layer, layer], most=2).losses.round(decimals=6).tolist()
        [[10.0, 1.0, 0.0], [10.0, 1.0, 0.0]]
    """
    weighed = [weigh_channels(*consumer()) for consumer in consumers]
    inner = torch.stack([each for each, _ in weighed]).sum(0)
    channel = torch.stack([each for _, each in weighed]).mean(0)
    projection = find_common_basis(inner, channel, most=most)
    losses = [fit_to_basis(*consumer(), projection).losses for consumer in consumers]
    return CommonBasis(projection, torch.stack(losses))


def refit_to_common(consumers: Sequence[Consumer], projection: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The common first factor ``(rank, in)``, and each layer's exact second one ``(out, offsets, rank)``, balanced.

    Args:
        consumers: The layers.
        projection: The first factor as it was fitted ``(rank, in)``.
    """
    seconds = [_refit(consumer, projection) for consumer in consumers]
    rows = torch.cat([each.flatten(0, 1) for each in seconds])
    both = balance(Factors(projection, rows))
    parts = both.second.split([each.shape[0] * each.shape[1] for each in seconds])
    return both.first, [part.view_as(each) for part, each in zip(parts, seconds, strict=True)]


def _refit(consumer: Consumer, projection: Tensor) -> Tensor:
    weight, covariance, _ = consumer()
    return refit_second(weight, covariance, projection)
