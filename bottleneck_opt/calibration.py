"""Run calibration data through a working copy and collect statistics.

Two walks over the data. The first looks at what flows in and out of each layer (one forward pass a batch). The second
asks how much the output feels a change at each layer: for a random direction ``v`` in output space,
``g = d(v . f(x))/dy`` at every output pixel ``y`` of the layer, and ``G = E[sum_positions g g^T]`` is the expected
squared change of the output. With ``f`` scaled to unit variance, all predicted losses are relative squared changes of
the output.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData, largest_value, place_batch
from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs, batch_size, find_tensors
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.patches import count_positions, fit_output_size, take_patches, take_pixels
from bottleneck_opt.probing import Arguments, capture_operation
from bottleneck_opt.progress import Advance
from bottleneck_opt.statistics import LayerStatistics, Moments, OutputScale, Statistics, empty_moments
from bottleneck_opt.working_copy import run_on_example

OUTER_LIMIT = 8192
CURVATURE_POSITIONS = 1024
LEAST_POSITIONS = 256
PROBE_MACS = 2e11
MOST_PROBES = 8


@dataclass(frozen=True)
class Sampling:
    """How much of the data to look at.

    Attributes:
        examples: Examples in the whole calibration set, over all parts of it that will be merged.
        probes: Random output directions an example.
        seed: Seed of positions and directions.
        first_example: Number of the first example of this part.
    """

    examples: int
    probes: int
    seed: int
    first_example: int = 0

    def positions(self, width: int, available: int) -> int:
        """Output positions to look at in each example: at least 256, about eight samples for each of ``width``."""
        return min(available, max(LEAST_POSITIONS, -(-8 * width // max(self.examples, 1))))


def choose_probes(examples: int, macs_per_example: float) -> int:
    """Eight probes an example, fewer where a forward pass is expensive: about 2e11 multiply-adds in all."""
    return int(max(1, min(MOST_PROBES, PROBE_MACS // max(examples * macs_per_example, 1))))


def collect_statistics(
    working: nn.Module, layers: Mapping[str, LayerSpec], data: CalibrationData, sampling: Sampling, *,
    names: Mapping[str, Sequence[str]] | None = None, scales: tuple[OutputScale, ...] | None = None,
    advance: Advance = lambda: None,
) -> Statistics:  # fmt: skip
    """Statistics of some layers over calibration data.

    Args:
        working: A copy that may be run, in eval mode; it is left as it was.
        layers: Descriptions of the layers to watch, by module path.
        data: The batches.
        sampling: How much to look at.
        names: All paths of a layer, where there are several: modules that share their weights are watched as one.
        scales: Output scales to use; None takes them from this data. Parts of one data set that will be merged must use
            the same.
        advance: Called twice for each batch.

    Raises:
        InputError: The model fails on the data, or what flows through a layer is NaN or overflows.
    """
    if not data.batches:
        raise ValueError("no batches to collect statistics from")
    sums = {path: _Sums(path, layer, sampling) for path, layer in layers.items()}
    batches = list(_placed(data.batches, working))
    modules = {path: _find_modules(working, (names or {}).get(path, (path,))) for path in layers}
    with _hooks(modules, {path: each.watch for path, each in sums.items()}):
        found = _walk_forward(working, batches, sums.values(), advance)
    scales = scales or found
    taps = {path: each.tap for path, each in sums.items()}
    with _hooks(modules, taps), torch.enable_grad():
        _walk_backward(working, batches, sums.values(), scales, sampling, advance)
    layers_found = {path: each.statistics() for path, each in sums.items()}
    _check_finite(layers_found, data)
    return Statistics(layers_found, data.examples, scales)


def _check_finite(layers: Mapping[str, LayerStatistics], data: CalibrationData) -> None:
    broken = next((path for path, each in layers.items() if not each.is_finite), None)
    if broken is not None:
        raise InputError(
            f"calibration: what flows through '{broken}' is NaN or too large to be squared and added up on "
            f"{data.description} with values up to {largest_value(data):.1e}; expected data in the range that the "
            "model was trained on. Scale calibration= as for training, or leave the layer out with exclude=."
        )


def _placed(batches: Sequence[Inputs], working: nn.Module) -> Iterator[Inputs]:
    parameter = next((p for p in working.parameters() if p.is_floating_point()), torch.zeros((), device="cpu"))
    return (place_batch(batch, device=parameter.device, dtype=parameter.dtype) for batch in batches)


def _find_modules(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of these names, each once."""
    return list({id(module): module for module in map(model.get_submodule, names)}.values())


@contextmanager
def _hooks(modules: Mapping[str, Sequence[nn.Module]], hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [
        module.register_forward_hook(hook, prepend=True, with_kwargs=True)
        for path, hook in hooks.items()
        for module in modules[path]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _walk_forward(
    working: nn.Module, batches: Iterable[Inputs], sums: Iterable[_Sums], advance: Advance
) -> tuple[OutputScale, ...]:
    outputs: list[_Spread] = []
    example = 0
    for number, batch in enumerate(batches):
        for each in sums:
            each.start_batch(example)
        with torch.no_grad():
            leaves = float_leaves(run_on_example(working, batch, what=f"calibration batch {number}"))
        size = batch_size(batch)
        outputs.extend(_Spread() for _ in leaves[len(outputs) :])
        for spread, leaf in zip(outputs, leaves, strict=False):
            spread.add(leaf, size)
        example += size
        advance()
    return tuple(spread.scale(len(outputs)) for spread in outputs)


def _walk_backward(
    working: nn.Module, batches: Iterable[Inputs], sums: Iterable[_Sums], scales: Sequence[OutputScale],
    sampling: Sampling, advance: Advance,
) -> None:  # fmt: skip
    sums = list(sums)
    example = 0
    for batch in batches:
        anchor = torch.zeros((), requires_grad=True, device=_device(working))
        for each in sums:
            each.start_gradients(anchor, example)
        leaves = float_leaves(batch.call(working))
        pairs = [(leaf, scale) for leaf, scale in zip(leaves, scales, strict=False) if leaf.requires_grad]
        generator = _generator(sampling, "probe", example)
        for probe in range(sampling.probes if pairs else 0):
            directions = [_direction(leaf, scale, generator) for leaf, scale in pairs]
            keep = probe + 1 < sampling.probes
            torch.autograd.grad([leaf for leaf, _ in pairs], [anchor], directions, retain_graph=keep, allow_unused=True)
            for each in sums:
                each.end_probe(batch_size(batch))
        example += batch_size(batch)
        advance()


def _direction(leaf: Tensor, scale: OutputScale, generator: torch.Generator) -> Tensor:
    noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (noise * scale.weight).to(leaf)


def float_leaves(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order, without empty ones; complex ones as pairs of real numbers."""
    leaves = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in find_tensors(output)]
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.numel()]


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _generator(sampling: Sampling, purpose: str, example: int) -> torch.Generator:
    """Random numbers that depend on the seed, the purpose and the example, not on what ran before."""
    key = f"{sampling.seed}/{purpose}/{sampling.first_example + example}"
    return torch.Generator().manual_seed(zlib.crc32(key.encode()))


class _Spread:
    """Running sums of one output tensor."""

    def __init__(self) -> None:
        self._count, self._total, self._squares, self._examples = 0, 0.0, 0.0, 0

    def add(self, leaf: Tensor, examples: int) -> None:
        values = leaf.detach().double()
        values = values[torch.isfinite(values)]  # logits that are ruled out by -inf vary in no way that counts
        self._count += values.numel()
        self._total += float(values.sum())
        self._squares += float(values.square().sum())
        self._examples += examples

    def scale(self, leaves: int) -> OutputScale:
        mean = self._total / max(self._count, 1)
        variance = max(self._squares / max(self._count, 1) - mean * mean, 0.0)
        return OutputScale(variance**0.5, self._count / max(self._examples, 1), leaves)


class _Sums:
    """Running sums of one layer, fed by forward hooks."""

    def __init__(self, path: str, layer: LayerSpec, sampling: Sampling) -> None:
        self._path, self._layer, self._sampling = path, layer, sampling
        width = layer.offsets * layer.in_channels
        wants_outer = width <= OUTER_LIMIT
        self._inputs = empty_moments(width, outer=wants_outer)
        self._outputs = empty_moments(layer.out_channels, outer=True)
        self._width = max(width, layer.out_channels) if wants_outer else layer.out_channels
        self._curvature = torch.zeros(layer.out_channels, layer.out_channels, dtype=torch.float64, device="cpu")
        self._probes = 0
        self._generator = torch.Generator()
        self._anchor = torch.zeros((), device="cpu")
        self._felt = False

    def start_batch(self, example: int) -> None:
        self._generator = _generator(self._sampling, self._path, example)

    def watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        layer, x, y = self._layer, (args[0] if args else kwargs["input"]).detach(), output.detach()
        positions = self._choose_positions(y)
        if layer.subclass:
            layer, x = _see_operation(module, args, kwargs)
        if layer.transposed:
            layer = fit_output_size(layer, x, y)
        self._inputs = _add_samples(self._inputs, take_patches(layer, x, positions))
        self._outputs = _add_samples(self._outputs, take_pixels(self._layer, y, positions))

    def _choose_positions(self, y: Tensor) -> Tensor:
        available = count_positions(self._layer, y)
        wanted = self._sampling.positions(self._width, available)
        if wanted == available:
            return torch.arange(available, device="cpu")
        return torch.randperm(available, generator=self._generator, device="cpu")[:wanted].sort().values

    def start_gradients(self, anchor: Tensor, example: int) -> None:
        self._anchor = anchor
        self.start_batch(example)

    def end_probe(self, examples: int) -> None:
        """Count the probe's examples if its gradient arrived at any call of the layer."""
        self._probes += examples if self._felt else 0
        self._felt = False

    def tap(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """Let the gradient at this output be seen; the value stays the same."""
        tapped = output + self._anchor.to(output.dtype)
        if not tapped.requires_grad:  # the model runs this part under no_grad
            return output
        available = count_positions(self._layer, output)
        if available > CURVATURE_POSITIONS:
            positions = (
                torch.randperm(available, generator=self._generator, device="cpu")[:CURVATURE_POSITIONS].sort().values
            )
        else:
            positions = torch.arange(available, device="cpu")
        tapped.register_hook(lambda gradient: self._add_gradient(gradient, positions, available))
        return tapped

    def _add_gradient(self, gradient: Tensor, positions: Tensor, available: int) -> None:
        pixels = take_pixels(self._layer, gradient, positions)
        scale = available / max(len(positions), 1)
        self._curvature += (pixels.T @ pixels).double().cpu() * scale
        self._felt = True

    def statistics(self) -> LayerStatistics:
        return LayerStatistics(self._inputs, self._outputs, self._curvature, self._probes)


def _see_operation(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[LayerSpec, Tensor]:
    """The convolution inside a layer that changes its input first, and that changed input."""
    operation = capture_operation(module, Arguments(args, kwargs))
    if operation is None:
        raise ValueError(f"{type(module).__name__} was probed with one operation and now runs another number of them")
    return operation.layer, operation.input.detach()


def _add_samples(moments: Moments, samples: Tensor) -> Moments:
    """Add samples ``(n, d)``. Products run in the samples' precision, around their mean; sums in float64."""
    exact = samples.double()
    total = exact.sum(0).cpu()
    outer = moments.outer
    if outer is not None:
        outer += _sum_products(samples, total)
    return Moments(
        moments.count + len(samples), moments.total + total, moments.squares + float(exact.square().sum()), outer
    )


def _sum_products(samples: Tensor, total: Tensor) -> Tensor:
    """``sum x x^T (d, d)`` of samples ``(n, d)``, centred on the way so that a large mean drowns nothing."""
    center = (total / max(len(samples), 1)).to(samples)
    centered = samples - center
    products = (centered.T @ centered).double().cpu()
    middle = center.double().cpu()
    cross = torch.outer(total - len(samples) * middle / 2, middle)
    return products.add_(cross).add_(cross.T)
