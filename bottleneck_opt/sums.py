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

_ROWS = 512


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
    """:class:`Moments` while they grow. Outer products are kept in the upper blocks until all samples are in."""

    def __init__(self, width: int, outer: Matrix | None) -> None:
        self._count, self._squares = 0, 0.0
        self._total = torch.zeros(width, dtype=torch.float64, device="cpu")
        self._outer = outer

    @property
    def has_outer(self) -> bool:
        """Whether outer products are collected."""
        return self._outer is not None

    def add(self, samples: Tensor) -> None:
        """Add samples ``(n, d)``. Products run in the samples' precision, around their mean; sums in float64."""
        exact = samples.double()
        total = exact.sum(0).cpu()
        self._count += len(samples)
        self._total += total
        self._squares += float(exact.square().sum())
        if self._outer is not None:
            del exact
            _add_products(open_matrix(self._outer), samples, total)

    def finish(self, ranks: Ranks, owner: int) -> Moments:
        """The sums over all samples, as the rank that added them up has them, at all ranks."""
        self._count, self._squares = ranks.broadcast((self._count, self._squares), source=owner)
        ranks.broadcast_into(self._total, source=owner)
        if self._outer is not None:
            outer = open_matrix(self._outer)
            if ranks.rank == owner:
                _mirror(outer)
            ranks.broadcast_into(outer, source=owner)
        return Moments(self._count, self._total, self._squares, self._outer)


def _add_products(outer: Tensor, samples: Tensor, total: Tensor) -> None:
    """Add ``sum x x^T (d, d)`` of samples ``(n, d)``, centred on the way so that a large mean drowns nothing."""
    center = (total / max(len(samples), 1)).to(samples)
    centered = samples - center
    middle = center.double().cpu()
    shift = total - len(samples) * middle / 2
    for start in range(0, len(total), _ROWS):
        rows, rest = slice(start, start + _ROWS), slice(start, None)
        block = outer[rows, rest]
        block += (centered[:, rows].T @ centered[:, rest]).cpu()
        block.addr_(shift[rows], middle[rest]).addr_(middle[rows], shift[rest])


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
    """``sum g g^T (out, out)`` over some positions of one call, and how many stand for each of them."""

    products: Tensor
    scale: float


class LayerSums:
    """Running sums of one layer, fed by forward hooks."""

    def __init__(
        self, path: str, layer: LayerSpec, sampling: Sampling, inputs: MomentSums, outputs: MomentSums
    ) -> None:
        self._path, self._layer, self._sampling = path, layer, sampling
        self._inputs, self._outputs = inputs, outputs
        wide = layer.offsets * layer.in_channels if inputs.has_outer else 1
        self._width = max(wide, layer.out_channels)
        self._curvature = torch.zeros(layer.out_channels, layer.out_channels, dtype=torch.float64, device="cpu")
        self._probes = 0
        self._generator = torch.Generator()
        self._anchor = torch.zeros((), device="cpu")
        self._felt = False
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
        self._probes += examples if self._felt else 0
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
        self._take(_Gradient(pixels.T @ pixels, available / max(len(positions), 1)))
        self._felt = True

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
            self._curvature += part.products.double().cpu() * part.scale

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
        outputs = self._outputs.finish(self._ranks, self._owner)
        self._ranks.broadcast_into(self._curvature, source=self._owner)
        return LayerStatistics(inputs, outputs, self._curvature, probes)


def _see_operation(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[LayerSpec, Tensor]:
    """The convolution inside a layer that changes its input first, and that changed input."""
    operation = capture_operation(module, Arguments(args, kwargs))
    if operation is None:
        raise ValueError(f"{type(module).__name__} was probed with one operation and now runs another number of them")
    return operation.layer, operation.input.detach()
