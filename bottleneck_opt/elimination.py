"""Which input channels of a layer can go, and in what order: the rest is fitted again to what all of them gave.

For a weight ``W (out, offsets, in)``, patches of covariance ``S`` and the output's curvature ``G``, keeping the
channels ``A`` and refitting gives ``W' = W S_:A S_AA^-1`` and loses ``tr(G (W S W^T - W S_:A S_AA^-1 S_A: W^T))``.
Channels are taken out one after the other, each time those that cost least given what is still there (backward
elimination: the optimal brain surgeon of Hassibi and Stork 1993, with the inputs' covariance in place of the Hessian;
He et al. 2017 choose channels of convolutions for the same error). All tensors are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bottleneck_opt.conditioning import cholesky

MOST_EXACT = 1536
_ROUNDS = 64
_TILE = 512


@dataclass(frozen=True)
class Elimination:
    """In which order the input channels of a layer are needed.

    Attributes:
        order: Channel numbers ``(in,)``, the one needed most first.
        losses: Loss when the first 0, 1, ... of them are kept and the weight is fitted again ``(in + 1,)``.
    """

    order: Tensor
    losses: Tensor

    def kept(self, count: int) -> tuple[int, ...]:
        """The channels to keep, ascending."""
        return tuple(sorted(self.order[:count].tolist()))


def eliminate_channels(weight: Tensor, covariance: Tensor, curvature: Tensor) -> Elimination:
    """The order in which input channels can go, with the loss after each.

    Patches of up to 1,536 entries are judged with their whole covariance, longer ones with the mean over offsets; the
    losses are exact for either order.

    Args:
        weight: ``(out, offsets, in)``.
        covariance: ``S (offsets * in, offsets * in)``, shrunk, offset-major.
        curvature: ``G (out, out)``, damped.
    """
    _, offsets, width = weight.shape
    felt = torch.einsum("op,oqi->pqi", cholesky(curvature), weight)
    if offsets * width <= MOST_EXACT:
        entries = _channel_major(torch.arange(width, device="cpu"), offsets, width)
        order = _order_channels(felt.flatten(1)[:, entries], covariance[entries[:, None], entries], width)
    else:
        mixed, channel = _average_offsets(felt, covariance)
        order = _order_channels(mixed, channel, width)
    return Elimination(order, _losses(felt.flatten(1), covariance, order, offsets))


def refit_kept(weight: Tensor, covariance: Tensor, kept: Tensor) -> Tensor:
    """``W S_:A S_AA^-1 (out, offsets, kept)``: the best weight that reads the kept channels only, whatever G is.

    Args:
        weight: ``(out, offsets, in)``.
        covariance: ``S (offsets * in, offsets * in)``, shrunk, offset-major.
        kept: Channel numbers.
    """
    out, offsets, width = weight.shape
    entries = (torch.arange(offsets, device="cpu")[:, None] * width + kept).flatten()
    crossed = covariance[entries] @ weight.reshape(out, -1).T
    solved = torch.cholesky_solve(crossed, cholesky(covariance[entries[:, None], entries]))
    return solved.T.reshape(out, offsets, len(kept))


def _channel_major(order: Tensor, offsets: int, width: int) -> Tensor:
    """Numbers of the patch's entries, which are offset-major, channel by channel."""
    return (order[:, None] + torch.arange(offsets, device="cpu") * width).flatten()


def _average_offsets(felt: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Weight ``(out * offsets, in)`` and covariance ``(in, in)`` of ``S ~ T kron C`` (Van Loan 2000)."""
    offsets, width = felt.shape[1:]
    blocks = covariance.view(offsets, width, offsets, width)
    channel = torch.einsum("qiqj->ij", blocks) / offsets
    between = torch.einsum("piqi->pq", blocks) / channel.trace()
    values, vectors = torch.linalg.eigh((between + between.T) / 2)
    root = vectors * values.clamp_min(0).sqrt()
    return torch.einsum("oqi,qp->opi", felt, root).flatten(0, 1), channel


def _order_channels(weight: Tensor, covariance: Tensor, channels: int) -> Tensor:
    """Backward elimination of blocks of entries; ``weight (rows, channels * offsets)`` is channel-major."""
    if len(weight) > 2 * weight.shape[1]:
        weight = torch.linalg.qr(weight, mode="r").R  # only the products of its columns count
    left = _Left(weight.clone(), torch.cholesky_inverse(cholesky(covariance)), channels)
    gone = list[Tensor]()
    while left.count:
        out = left.score().argsort(stable=True)[: min(left.count, max(1, channels // _ROUNDS))]
        gone.append(out.flip(0))
        left.take_out(out)
    return torch.cat(gone[::-1])


class _Left:
    """Weight and precision of the channels that are left: these come first, so that nothing is copied to go on.

    Args:
        weight: ``(rows, channels * offsets)``, channel-major; it is written to.
        precision: Inverse of the covariance; it is written to.
        channels: How many there are.
    """

    def __init__(self, weight: Tensor, precision: Tensor, channels: int) -> None:
        self.count = channels
        self._weight, self._precision = weight, precision
        self._numbers = torch.arange(channels, device="cpu")
        self._offsets = len(precision) // channels

    def score(self) -> Tensor:
        """What the loss rises by when one channel is taken out: ``tr(B_c P_cc^-1 B_c^T)``, infinite for those gone."""
        count, offsets = self.count, self._offsets
        width = count * offsets
        weight, precision = self._weight[:, :width], self._precision[:width, :width]
        if offsets == 1:
            found = weight.square().sum(0) / precision.diagonal().clamp_min(1e-300)
        else:
            blocks = precision.unflatten(0, (count, offsets)).unflatten(2, (count, offsets))
            lower = torch.linalg.cholesky_ex(blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1))[0]
            columns = weight.unflatten(1, (count, offsets)).permute(1, 2, 0)
            found = torch.linalg.solve_triangular(lower, columns, upper=False).square().sum((1, 2))
        scores = weight.new_full((len(self._numbers),), torch.inf)
        scores[self._numbers[:count]] = found
        return scores

    def take_out(self, channels: Tensor) -> None:
        """Let some channels go; the weight of the others is fitted again."""
        self._move_back(channels)
        before, self.count = self.count, self.count - len(channels)
        kept, gone = slice(self.count * self._offsets), slice(self.count * self._offsets, before * self._offsets)
        lower = cholesky(self._precision[gone, gone])
        across = torch.linalg.solve_triangular(lower, self._precision[gone, kept], upper=False)
        moved = torch.linalg.solve_triangular(lower, self._weight[:, gone].T, upper=False)
        self._precision[kept, kept].addmm_(across.T, across, alpha=-1)
        self._weight[:, kept].addmm_(moved.T, across, alpha=-1)

    def _move_back(self, channels: Tensor) -> None:
        """Make some channels the last of those left."""
        end = self.count - len(channels)
        going = torch.isin(self._numbers[: self.count], channels)
        places = torch.cat([going[:end].nonzero()[:, 0], (~going[end:]).nonzero()[:, 0] + end])
        others = places.roll(len(places) // 2)
        self._numbers[places] = self._numbers[others]
        to, source = (_channel_major_rows(each, self._offsets) for each in (places, others))
        self._precision[to] = self._precision[source]
        self._precision[:, to] = self._precision[:, source]
        self._weight[:, to] = self._weight[:, source]


def _channel_major_rows(channels: Tensor, offsets: int) -> Tensor:
    """Numbers of the entries of some channels where a channel's offsets lie side by side."""
    return (channels[:, None] * offsets + torch.arange(offsets, device="cpu")).flatten()


def _losses(felt: Tensor, covariance: Tensor, order: Tensor, offsets: int) -> Tensor:
    """Loss of keeping the first 0, 1, ... channels of an order, all from one Cholesky factor.

    With ``S = C C^T``, rows and columns in that order, the leading rows of ``C^-1 S B^T = C^T B^T`` are what the
    leading channels explain.
    """
    entries = _channel_major(order, offsets, len(order))
    lower, ordered = cholesky(covariance[entries[:, None], entries]), felt[:, entries]
    explained = [
        (lower[start:, start : start + _TILE].T @ ordered[:, start:].T).square().sum(1)
        for start in range(0, len(entries), _TILE)
    ]
    kept = torch.cat(explained).view(len(order), offsets).sum(1).cumsum(0)
    losses = (kept[-1] - torch.cat([kept.new_zeros(1), kept])).clamp_min(0)
    losses[-1] = 0.0  # all channels are kept: what is left is rounding
    return losses
