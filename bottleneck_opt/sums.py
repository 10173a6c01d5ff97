"""Running sums that hooks feed while calibration data flows through a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.moments import LayerStatistics, Moments, OutputScale
from bottleneck_opt.patches import count_positions, fit_output_size, take_patches, take_pixels
from bottleneck_opt.probing import Arguments, capture_operation
from bottleneck_opt.sampling import CURVATURE_POSITIONS, Sampling
from bottleneck_opt.spilling import Matrix, open_matrix

_ROWS = 256


@dataclass(frozen=True)
class OutputValues:
    """Sums over one output tensor of one batch."""

    count: int
    total: float
    squares: float
    examples: int

    @classmethod
    def of(cls, leaf: Tensor, examples: int) -> OutputValues:
        """Those of a tensor that holds so many examples."""
        values = leaf.detach().double()
        values = values[torch.isfinite(values)]  # logits that are ruled out by -inf vary in no way that counts
        return cls(values.numel(), float(values.sum()), float(values.square().sum()), examples)


class OutputSums:
    """Running sums of one output tensor."""

    def __init__(self) -> None:
        self._count, self._total, self._squares, self._examples = 0, 0.0, 0.0, 0

    def add(self, values: OutputValues) -> None:
        """Add one batch."""
        self._count += values.count
        self._total += values.total
        self._squares += values.squares
        self._examples += values.examples

    def scale(self, leaves: int) -> OutputScale:
        """The spread, for an output of so many tensors."""
        mean = self._total / max(self._count, 1)
        variance = max(self._squares / max(self._count, 1) - mean * mean, 0.0)
        return OutputScale(variance**0.5, self._count / max(self._examples, 1), leaves)


class MomentSums:
    """:class:`Moments` while they grow. Outer products are kept in the upper blocks until all samples are in.

    They are taken around the mean of the first samples, so that a large mean drowns nothing, and moved at the end.

    Args:
        width: Entries of a sample.
        outer: Where outer products are collected; None collects none.
        told: Their covariance is told at the end: samples are not multiplied.
    """

    def __init__(self, width: int, outer: Matrix | None, *, told: bool = False) -> None:
        self._count, self._squares, self._told = 0, 0.0, told
        self._total = torch.zeros(width, dtype=torch.float64, device="cpu")
        self._center: Tensor | None = None
        self._outer = outer

    @property
    def has_outer(self) -> bool:
        """Whether outer products are collected."""
        return self._outer is not None

    def add(self, samples: Tensor) -> None:
        """Add samples ``(n, d)``. Products run in the samples' precision, sums in float64."""
        total = samples.sum(0, dtype=torch.float64)
        self._count += len(samples)
        self._total += total.cpu()
        if self._outer is None:
            self._squares += float(torch.linalg.vector_norm(samples, dtype=torch.float64).square())
        if self._outer is None or self._told:
            return
        if self._center is None:
            self._center = (total / max(len(samples), 1)).to(samples)
        _add_products(open_matrix(self._outer), samples - self._center)

    def finish(self, ranks: Ranks, owner: int, covariance: Tensor | None = None) -> Moments:
        """The sums over all samples, as the rank that added them up has them, at all ranks.

        Args:
            ranks: Who shares the work.
            owner: The rank that added them up.
            covariance: That of the samples ``(d, d)``, where it is told.
        """
        self._count, self._squares = ranks.broadcast((self._count, self._squares), source=owner)
        ranks.broadcast_into(self._total, source=owner)
        if self._outer is not None:
            outer = open_matrix(self._outer)
            if covariance is not None:
                mean = self._total / max(self._count, 1)
                outer.copy_(covariance).addr_(mean, mean).mul_(self._count)
            elif self._center is not None:
                _complete(outer, self._center.double().cpu(), self._total, self._count)
            ranks.broadcast_into(outer, source=owner)
            self._squares = float(outer.trace())
        return Moments(self._count, self._total, self._squares, self._outer)


def _add_products(outer: Tensor, samples: Tensor, *, scale: float = 1.0) -> None:
    """Add ``scale * sum x x^T (d, d)`` of samples ``(n, d)``, to the upper blocks only."""
    for start in range(0, len(outer), _ROWS):
        rows, rest = slice(start, start + _ROWS), slice(start, None)
        block, left, right = outer[rows, rest], samples[:, rows].T, samples[:, rest]
        if block.dtype == samples.dtype and block.device == samples.device:
            block.addmm_(left, right, alpha=scale)
        else:
            block.add_((left @ right).cpu(), alpha=scale)


def _complete(outer: Tensor, center: Tensor, total: Tensor, count: int) -> None:
    """Products around ``center`` in the upper blocks become products around zero everywhere.

    ``sum x x^T = sum (x - c)(x - c)^T + s c^T + c s^T - n c c^T`` with ``s = sum x``.
    """
    shift = total - count / 2 * center
    left, right = torch.stack([shift, center]), torch.stack([center, shift])
    for start in range(0, len(total), _ROWS):
        rows, rest = slice(start, start + _ROWS), slice(start, None)
        outer[rows, rest].addmm_(left[:, rows].T, right[:, rest])
    _mirror(outer)


def _mirror(outer: Tensor) -> None:
    """Fill the lower blocks of a symmetric matrix from the upper ones."""
    for start in range(0, len(outer), _ROWS):
        rows, rest = slice(start, start + _ROWS), slice(start + _ROWS, None)
        outer[rest, rows] = outer[rows, rest].T


@dataclass(frozen=True)
class _Samples:
    """What flowed at some positions of one call: patches ``(n, offsets * in)`` and pixels ``(n, out)``."""

    patches: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class _Gradient:
    """``sum g g^T (out, out)`` over all positions and calls in one batch."""

    products: Tensor


class LayerSums:
    """Running sums of one layer, fed by forward hooks.

    Args:
        path: The layer.
        layer: What it computes.
        sampling: How much to look at.
        inputs, outputs: Of what flows in and out.
        weight: The weight ``(out, offsets, in)`` that makes the outputs' covariance of the inputs'; None collects it.
    """

    def __init__(
        self, path: str, layer: LayerSpec, sampling: Sampling, inputs: MomentSums, outputs: MomentSums, *,
        weight: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._weight = weight
        self._path, self._layer, self._sampling = path, layer, sampling
        self._inputs, self._outputs = inputs, outputs
        wide = layer.offsets * layer.in_channels if inputs.has_outer else 1
        self._width = max(wide, layer.out_channels)
        self._curvature = torch.zeros(layer.out_channels, layer.out_channels, dtype=torch.float64, device="cpu")
        self._probes = self._probed = 0
        self._generator = torch.Generator()
        self._anchor = torch.zeros((), device="cpu")
        self._felt = False
        self._products: Tensor | None = None
        self._ranks, self._owner = ALONE, 0
        self._pending: list[_Samples | _Gradient] = []

    def share(self, ranks: Ranks, owner: int) -> None:
        """Let one rank add up what all of them see."""
        self._ranks, self._owner = ranks, owner

    def start_batch(self, example: int) -> None:
        """Get ready for a batch that starts with this example."""
        self._generator = self._sampling.generator(self._path, example)

    def watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        """Forward hook: add what flows in and out."""
        layer, x, y = self._layer, (args[0] if args else kwargs["input"]).detach(), output.detach()
        positions = self._choose_positions(y, self._sampling.positions(self._width, count_positions(layer, y)))
        if layer.subclass:
            layer, x = _see_operation(module, args, kwargs)
        if layer.transposed:
            layer = fit_output_size(layer, x, y)
        self._take(_Samples(take_patches(layer, x, positions), take_pixels(self._layer, y, positions)))

    def _choose_positions(self, y: Tensor, wanted: int) -> Tensor:
        available = count_positions(self._layer, y)
        if wanted >= available:
            return torch.arange(available, device="cpu")
        return torch.randperm(available, generator=self._generator, device="cpu")[:wanted].sort().values

    def start_gradients(self, anchor: Tensor, example: int) -> None:
        """Get ready for backward passes to ``anchor`` over a batch that starts with this example."""
        self._anchor = anchor
        self.start_batch(example)

    def end_probe(self, examples: int) -> None:
        """Count the probe's examples if its gradient arrived at any call of the layer."""
        self._probed += examples if self._felt else 0
        self._felt = False

    def tap(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """Forward hook: let the gradient at this output be seen; the value stays the same."""
        tapped = output + self._anchor.to(output.dtype)
        if not tapped.requires_grad:  # the model runs this part under no_grad
            return output
        available = count_positions(self._layer, output)
        positions = self._choose_positions(output, CURVATURE_POSITIONS)
        tapped.register_hook(lambda gradient: self._feel(gradient, positions, available))
        return tapped

    def _feel(self, gradient: Tensor, positions: Tensor, available: int) -> None:
        pixels = take_pixels(self._layer, gradient, positions)
        if self._products is None:
            self._products = pixels.new_zeros(pixels.shape[1], pixels.shape[1])
        _add_products(self._products, pixels, scale=available / max(len(positions), 1))
        self._felt = True

    def forget_gradients(self) -> None:
        """Leave out what was felt since the last batch ended."""
        self._products, self._felt, self._probed = None, False, 0

    def end_gradients(self) -> None:
        """Count what was felt in this batch."""
        self._probes += self._probed
        self._probed = 0
        if self._products is not None:
            _mirror(self._products)
            self._take(_Gradient(self._products))
            self._products = None

    def _take(self, part: _Samples | _Gradient) -> None:
        """Add it now, or keep it until all ranks have run their batch: sums are made in the order of the batches."""
        if self._ranks.count == 1:
            self._add(part)
        else:
            self._pending.append(part)

    def _add(self, part: _Samples | _Gradient) -> None:
        if isinstance(part, _Samples):
            self._inputs.add(part.patches)
            self._outputs.add(part.pixels)
        else:
            self._curvature += part.products.cpu()

    def exchange(self) -> None:
        """Add what all ranks saw in this round, at the rank that owns the layer."""
        if self._ranks.count == 1:
            return
        pending, self._pending = self._pending, []
        for parts in self._ranks.gather(pending, to=self._owner):
            for part in parts:
                self._add(part)

    def finish(self) -> LayerStatistics:
        """The statistics, at all ranks."""
        probes = sum(self._ranks.collect(self._probes))
        inputs = self._inputs.finish(self._ranks, self._owner)
        covariance = None if self._weight is None else _push_through(self._weight, inputs)
        outputs = self._outputs.finish(self._ranks, self._owner, covariance)
        self._ranks.broadcast_into(self._curvature, source=self._owner)
        return LayerStatistics(inputs, outputs, self._curvature, probes)


def _push_through(weight: Tensor, inputs: Moments) -> Tensor:
    """Covariance of the outputs ``(out, out)``: what the weight ``(out, offsets, in)`` makes of the inputs'."""
    flat = weight.double().cpu().flatten(1)
    return flat @ inputs.covariance() @ flat.T


def _see_operation(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[LayerSpec, Tensor]:
    """The convolution inside a layer that changes its input first, and that changed input."""
    operation = capture_operation(module, Arguments(args, kwargs))
    if operation is None:
        raise ValueError(f"{type(module).__name__} was probed with one operation and now runs another number of them")
    return operation.layer, operation.input.detach()
