"""How long layers in a row take: measured, or put together from layers of few widths.

A convolution's time is close to linear in each of its two widths between two powers of two, once a width above the
processor's vectors is rounded up to whole ones: on AVX-512, 20 channels of a 3x3 take as long as 32. So a layer's time
is read off four measured ones (bilinear interpolation), and any rank of any form is predicted from a few layers.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from bottleneck_opt.layers import LINEAR, LayerSpec
from bottleneck_opt.timing.in_turn import Patience, time_in_turn
from bottleneck_opt.timing.records import Records
from bottleneck_opt.timing.setting import Timing
from bottleneck_opt.timing.targets import Place, name_version, prepare_layers

LAYER = Patience(least=2, most=15, seconds=0.05)
CHAIN = Patience(least=3, most=25, seconds=0.2)
_FINEST = 4
Shapes = Sequence[Sequence[int]]
Chain = tuple[LayerSpec, ...]


@dataclass(frozen=True)
class LayerTimes:
    """Times of layers on this machine.

    Attributes:
        place: Device, precision and memory format.
        records: What was measured before.
        width: Channels that the processor works on at once.
        corrections: For layers in a row of a kind that were timed as such, how much longer that took than predicted.
        observed: The same, not yet applied (:meth:`learn`).
    """

    place: Place
    records: Records
    width: int = 8
    corrections: dict[Hashable, float] = field(default_factory=dict, compare=False)
    observed: dict[Hashable, float] = field(default_factory=dict, compare=False)
    _layers: dict[Hashable, tuple[float, tuple[int, ...]]] = field(default_factory=dict, compare=False)
    _chains: dict[Hashable, int] = field(default_factory=dict, compare=False)

    def predict(self, layers: Sequence[LayerSpec], shapes: Shapes, timing: Timing) -> int:
        """Nanoseconds of layers in a row over calls with inputs of these shapes.

        Args:
            layers: First to last.
            shapes: Input shape of each call, as for :func:`bottleneck_opt.costs.price_layers`.
            timing: The setting; its batch, if any, is what the shapes have.
        """
        chain = tuple(layers)
        return sum(self._predict_call(chain, tuple(shape), timing) for shape in shapes)

    def learn(self) -> None:
        """Let predictions take account of what :meth:`compare` measured since the last time."""
        self.corrections.update(self.observed)
        self.observed.clear()
        self._chains.clear()

    def compare(
        self, layers: Sequence[LayerSpec], other: Sequence[LayerSpec], shapes: Shapes, timing: Timing
    ) -> tuple[int, int]:
        """Measured nanoseconds of layers in a row and of others, called in turn."""
        pairs = [self._compare_call((tuple(layers), tuple(other)), tuple(shape), timing) for shape in shapes]
        return sum(first for first, _ in pairs), sum(second for _, second in pairs)

    def _compare_call(
        self, chains: tuple[Chain, Chain], shape: tuple[int, ...], timing: Timing
    ) -> tuple[int, int]:  # fmt: skip
        name = f"in turn {self._name([*chains[0], *chains[1]], shape, timing)}"
        names = [f"{name} {number}" for number in range(len(chains))]
        times = [self.records.find(each) for each in names]
        if None in times:
            fresh = self._time(chains, shape, timing, CHAIN)
            times = [self.records.keep(each, took) for each, took in zip(names, fresh, strict=True)]
        first, second = (each or 1 for each in times)
        for chain, took in zip(chains, (first, second), strict=True):
            self.observed[_kind(chain, shape, timing)] = took / max(self._add_up(chain, shape, timing), 1.0)
        return first, second

    def _predict_call(self, chain: Chain, shape: tuple[int, ...], timing: Timing) -> int:
        key = chain, shape, timing
        if key not in self._chains:
            correction = self.corrections.get(_kind(chain, shape, timing), 1.0) if self.corrections else 1.0
            self._chains[key] = round(correction * self._add_up(chain, shape, timing))
        return self._chains[key]

    def _add_up(self, chain: Chain, shape: tuple[int, ...], timing: Timing) -> float:
        total, at = 0.0, shape
        for layer in chain:
            key = layer, at, timing
            if key not in self._layers:
                self._layers[key] = self._interpolate(_plain(layer), at, timing), _shape_after(layer, at)
            took, at = self._layers[key]
            total += took
        return total

    def _interpolate(self, layer: LayerSpec, shape: Sequence[int], timing: Timing) -> float:
        if layer.groups > 1 or layer.is_activation:
            return self._find(layer, shape, timing)
        low_in, high_in, part_in = self._surround(layer.in_channels)
        low_out, high_out, part_out = self._surround(layer.out_channels)
        return sum(
            share_in * share_out * self._find(_resize(layer, inputs, outputs), _reshape(layer, shape, inputs), timing)
            for inputs, share_in in ((low_in, 1 - part_in), (high_in, part_in))
            for outputs, share_out in ((low_out, 1 - part_out), (high_out, part_out))
            if share_in * share_out
        )

    def _surround(self, channels: int) -> tuple[int, int, float]:
        """The widths below and above that are timed, and how far between them this one is."""
        if channels <= _FINEST:
            return channels, channels, 0.0
        whole = channels if channels <= self.width else -(-channels // self.width) * self.width
        low = 2 ** int(math.log2(whole))
        return (low, low, 0.0) if low == whole else (low, 2 * low, whole / low - 1)

    def _find(self, layer: LayerSpec, shape: Sequence[int], timing: Timing) -> int:
        name = self._name((layer,), shape, timing)
        known = self.records.find(name)
        if known is None:
            (nanoseconds,) = self._time([(layer,)], shape, timing, LAYER)
            known = self.records.keep(name, nanoseconds)
        return known

    def _time(
        self, chains: Sequence[Sequence[LayerSpec]], shape: Sequence[int], timing: Timing, patience: Patience
    ) -> list[int]:
        ready = [prepare_layers([_plain(s) for s in chain], shape, self.place, timing) for chain in chains]
        runs = time_in_turn(ready, device=self.place.device, threads=timing.threads, patience=patience)
        return [max(1, round(_settle(times) * 1e6)) for times in runs]

    def _name(self, layers: Sequence[LayerSpec], shape: Sequence[int], timing: Timing) -> str:
        """Everything that the time depends on, as text."""
        chain = [list(asdict(_plain(layer).named("")).values()) for layer in layers]
        target = "eager" if timing.target == "compile" else timing.target
        return json.dumps([*self.describe(timing), target, list(shape), chain], separators=(",", ":"))

    def describe(self, timing: Timing) -> tuple[str, ...]:
        """What runs the layers, where, and with how many threads."""
        return (
            _name_device(self.place.device), name_version(timing.target), f"{timing.threads} threads",
            self.place.describe(),
        )  # fmt: skip


def _settle(times: Sequence[float]) -> float:
    """The lower quartile: whatever else the machine does only ever adds to a time."""
    return statistics.quantiles(times, n=4, method="inclusive")[0]


def _kind(chain: Chain, shape: Sequence[int], timing: Timing) -> Hashable:
    """What layers in a row have in common whatever their inner widths."""
    kinds = tuple((layer.kind, layer.kernel, layer.stride, layer.dilation) for layer in chain)
    return kinds, chain[-1].out_channels, tuple(shape), timing


def _plain(layer: LayerSpec) -> LayerSpec:
    """The stock layer with the same numbers: one with a forward of its own is timed as that."""
    return layer.named(layer.name, subclass="")


def _resize(layer: LayerSpec, inputs: int, outputs: int) -> LayerSpec:
    return layer.named("", in_channels=inputs, out_channels=outputs, bias=not layer.is_activation)


def _axis(layer: LayerSpec, shape: Sequence[int]) -> int:
    return len(shape) - 1 if layer.kind == LINEAR else len(shape) - len(layer.kernel) - 1


def _reshape(layer: LayerSpec, shape: Sequence[int], channels: int) -> tuple[int, ...]:
    axis = _axis(layer, shape)
    return (*shape[:axis], channels, *shape[axis + 1 :])


def _shape_after(layer: LayerSpec, shape: Sequence[int]) -> tuple[int, ...]:
    if layer.is_activation:
        return tuple(shape)
    axis = _axis(layer, shape)
    return (*shape[:axis], layer.out_channels, *layer.output_size(shape[axis + 1 :]))


def vector_width() -> int:
    """Channels that the CPU's float32 vectors hold; what is fastest on graphics cards too comes in eights.

    Example:
        >>> vector_width() in (8, 16)
        True
    """
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def _name_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_name_cpu()}, {torch.backends.cpu.get_cpu_capability()}"


@lru_cache(maxsize=1)
def _name_cpu() -> str:
    """The processor's name, which Python's own ``platform`` does not know on Linux."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        lines = (line.partition(":") for line in file.read_text("utf-8", errors="replace").splitlines())
        named = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
        if named:
            return named
    return platform.processor() or platform.machine()
