"""Run calibration data through a working copy and collect statistics.

Two walks over the data. The first looks at what flows in and out of each layer (one forward pass a batch). The second
asks how much the output feels a change at each layer: for a random direction ``v`` in output space,
``g = d(v . f(x))/dy`` at every output pixel ``y`` of the layer, and ``G = E[sum_positions g g^T]`` is the expected
squared change of the output. With ``f`` scaled to unit variance, all predicted losses are relative squared changes of
the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration_data import CalibrationData, cut_batch, largest_value, place_batch
from bottleneck_opt.differentiating import differentiate
from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.errors import InputError
from bottleneck_opt.inputs import Inputs, batch_size, find_tensors
from bottleneck_opt.kernels import by_offset, to_plain
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.progress import Advance
from bottleneck_opt.sampling import OUTER_LIMIT, Sampling, choose_probes
from bottleneck_opt.sources import one_line
from bottleneck_opt.spilling import Storage
from bottleneck_opt.statistics import LayerStatistics, OutputScale, Statistics
from bottleneck_opt.sums import LayerSums, MomentSums, OutputSums, OutputValues
from bottleneck_opt.working_copy import run_on_example

__all__ = ["Sampling", "choose_probes", "collect_statistics", "float_leaves"]
T = TypeVar("T")


def collect_statistics(
    working: nn.Module, layers: Mapping[str, LayerSpec], data: CalibrationData, sampling: Sampling, *,
    names: Mapping[str, Sequence[str]] | None = None, scales: tuple[OutputScale, ...] | None = None,
    advance: Advance = lambda: None, storage: Storage | None = None, ranks: Ranks = ALONE,
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
        storage: Where the covariances are kept; None keeps them in memory.
        ranks: Who shares the work; all call this with the same arguments and get the same statistics.

    Raises:
        InputError: The model fails on the data, or what flows through a layer is NaN or overflows.
        FileError: A covariance had to be written to a file and could not.
    """
    if not data.batches:
        raise ValueError("no batches to collect statistics from")
    telling = _find_telling(working, layers)
    sums = _prepare_sums(layers, telling, sampling, storage or Storage(), ranks)
    modules = {path: _find_modules(working, (names or {}).get(path, (path,))) for path in layers}
    walk = _Walk(working, data, tuple(sums.values()), sampling, ranks, advance)
    with _hooks(modules, {path: each.watch for path, each in sums.items()}):
        found = walk.forward()
    scales = scales or found
    if not layers:
        return Statistics({}, data.examples, scales)
    with _hooks(modules, {path: each.tap for path, each in sums.items()}), torch.enable_grad():
        undifferentiable = walk.backward(scales)
    layers_found = {path: each.finish() for path, each in sums.items()}
    _check_finite(layers_found, data)
    return Statistics(layers_found, data.examples, scales, undifferentiable=undifferentiable)


def _find_telling(working: nn.Module, layers: Mapping[str, LayerSpec]) -> dict[str, Tensor]:
    """Weights ``(out, offsets, in)`` of the layers that make more channels of less: the covariance of what goes in
    tells that of what comes out, in less time than the outputs' own products take.
    """
    return {
        path: by_offset(to_plain(layer, module.get_parameter("weight").detach()))
        for path, layer in layers.items()
        if layer.offsets * layer.in_channels <= min(OUTER_LIMIT, layer.out_channels)
        and layer.groups == 1
        and not layer.subclass
        and "weight" in (module := working.get_submodule(path))._parameters
    }


def _prepare_sums(
    layers: Mapping[str, LayerSpec], telling: Mapping[str, Tensor], sampling: Sampling, storage: Storage, ranks: Ranks
) -> dict[str, LayerSums]:
    """Empty sums of each layer; each is added up by one rank."""
    widths = [layer.offsets * layer.in_channels for layer in layers.values()]
    wide = [width for width in widths if width <= OUTER_LIMIT]
    matrices = storage.allocate([*wide, *(layer.out_channels for layer in layers.values())])
    inputs, outputs = iter(matrices[: len(wide)]), iter(matrices[len(wide) :])
    owners = ranks.deal([float(min(width, OUTER_LIMIT)) ** 2 for width in widths])
    sums = {}
    for (path, layer), width, owner in zip(layers.items(), widths, owners, strict=True):
        of_inputs = MomentSums(width, next(inputs) if width <= OUTER_LIMIT else None)
        weight = telling.get(path)
        of_outputs = MomentSums(layer.out_channels, next(outputs), told=weight is not None)
        sums[path] = LayerSums(path, layer, sampling, of_inputs, of_outputs, weight=weight)
        sums[path].share(ranks, owner)
    return sums


def _check_finite(layers: Mapping[str, LayerStatistics], data: CalibrationData) -> None:
    broken = next((path for path, each in layers.items() if not each.is_finite), None)
    if broken is not None:
        raise InputError(
            f"calibration: what flows through '{broken}' is NaN or too large to be squared and added up on "
            f"{data.description} with values up to {largest_value(data):.1e}; expected data in the range that the "
            "model was trained on. Scale calibration= as for training, or leave the layer out with exclude=."
        )


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


@dataclass(frozen=True)
class _Walk:
    """Both walks over the batches. In each round every rank runs one batch; then all is added up in batch order."""

    working: nn.Module
    data: CalibrationData
    sums: Sequence[LayerSums]
    sampling: Sampling
    ranks: Ranks
    advance: Advance

    def forward(self) -> tuple[OutputScale, ...]:
        """See what flows through the layers; of the output, how far the examples spread it, without the mixes."""
        spreads: list[OutputSums] = []
        real = len(self.data.real_batches)

        def see(batch: Inputs, example: int, what: str) -> list[OutputValues]:
            for each in self.sums:
                each.start_batch(example)
            with torch.no_grad():
                leaves = float_leaves(run_on_example(self.working, batch, what=what))
            return [OutputValues.of(leaf, batch_size(batch)) for leaf in leaves]

        for seen in list(self._rounds(see))[:real]:
            spreads.extend(OutputSums() for _ in seen[len(spreads) :])
            for spread, values in zip(spreads, seen, strict=False):
                spread.add(values)
        return tuple(spread.scale(len(spreads)) for spread in spreads)

    def backward(self, scales: Sequence[OutputScale]) -> str:
        """Feel what the output makes of a change at the layers, a few examples at a time.

        Returns:
            Why a batch was not felt, the first of them; empty where all were.
        """
        most = self._choose_most()

        def feel(batch: Inputs, first: int, what: str) -> str:
            try:
                differentiate(lambda: self._feel(batch, scales, first, most))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # the user's model raises what it likes
                return f"{type(error).__name__}: {one_line(error, width=200)}"
            for each in self.sums:
                each.end_gradients()
            return ""

        return next(filter(None, list(self._rounds(feel))), "")

    def _feel(self, batch: Inputs, scales: Sequence[OutputScale], first: int, most: int | None) -> None:
        """What the output makes of a change at the layers over one batch, and nothing of earlier attempts."""
        example = first
        for each in self.sums:
            each.forget_gradients()
        for part in (cut_batch(batch, most) if most else None) or [batch]:
            self._probe(part, scales, example)
            example += batch_size(part)

    def _probe(self, batch: Inputs, scales: Sequence[OutputScale], example: int) -> None:
        anchor = torch.zeros((), requires_grad=True, device=_home(self.working)[0])
        for each in self.sums:
            each.start_gradients(anchor, example)
        leaves = float_leaves(batch.call(self.working))
        pairs = [(leaf, scale) for leaf, scale in zip(leaves, scales, strict=False) if leaf.requires_grad]
        generator = self.sampling.generator("probe", example)
        for probe in range(self.sampling.probes if pairs else 0):
            directions = [_direction(leaf, scale, generator) for leaf, scale in pairs]
            keep = probe + 1 < self.sampling.probes
            torch.autograd.grad([leaf for leaf, _ in pairs], [anchor], directions, retain_graph=keep, allow_unused=True)
            for each in self.sums:
                each.end_probe(batch_size(batch))

    def _choose_most(self) -> int | None:
        """Examples whose activations may be kept at once; None where the examples of a batch cannot be told apart."""
        most = self.sampling.together
        if most is None:
            return None
        device, dtype = _home(self.working)
        batch = place_batch(max(self.data.batches, key=batch_size), device=device, dtype=dtype)
        pairs, singles = cut_batch(batch, 2 * most), cut_batch(batch, most)
        if pairs is None or singles is None or len(singles) == 1:
            return most
        return most if _are_independent(self.working, pairs[0], singles[0]) else None

    def _rounds(self, run: Callable[[Inputs, int, str], T]) -> Iterator[T]:
        """Run all batches, as many at once as there are ranks; what each gave, in batch order, at all ranks."""
        device, dtype = _home(self.working)
        starts = [0, *itertools.accumulate(map(batch_size, self.data.batches))]
        for first in range(0, len(self.data.batches), self.ranks.count):
            number = first + self.ranks.rank
            mine: list[T] = []
            if number < len(self.data.batches):
                batch = place_batch(self.data.batches[number], device=device, dtype=dtype)
                mine.append(run(batch, starts[number], f"calibration batch {number}"))
            for each in self.sums:
                each.exchange()
            for found in self.ranks.collect(mine):
                yield from found
                self.advance()


def _are_independent(working: nn.Module, batch: Inputs, part: Inputs) -> bool:
    """Whether the first examples give alone what they give in the batch: then axis 0 of all tensors holds examples."""
    size, rows = batch_size(part), batch_size(batch)
    with torch.no_grad():
        whole = float_leaves(batch.call(working))
        try:
            alone = float_leaves(part.call(working))
        except Exception:  # the user's model, which may take no other number of examples
            return False
    pairs = list(zip(whole, alone, strict=False))
    return len(whole) == len(alone) and all(
        leaf.dim() > 0
        and leaf.shape[0] == rows
        and mine.shape == (size, *leaf.shape[1:])
        and torch.allclose(leaf[:size], mine, rtol=1e-2, atol=1e-3 * float(leaf.abs().max()), equal_nan=True)
        for leaf, mine in pairs
    )


def _direction(leaf: Tensor, scale: OutputScale, generator: torch.Generator) -> Tensor:
    noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (noise * scale.weight).to(leaf)


def float_leaves(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order, without empty ones; complex ones as pairs of real numbers."""
    leaves = [torch.view_as_real(leaf) if leaf.is_complex() else leaf for leaf in find_tensors(output)]
    return [leaf for leaf in leaves if leaf.is_floating_point() and leaf.numel()]


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model is and the precision it runs in."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros((), device="cpu"))
    return like.device, like.dtype
