"""What calibration learns about all layers, with where it comes from; saved, loaded and merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bottleneck_opt.files import as_path
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.moments import LayerStatistics, Moments, OutputScale, empty_moments
from bottleneck_opt.statistics_file import Origin, Record, read_record, write_record

__all__ = ["LayerStatistics", "Moments", "Origin", "OutputScale", "Statistics", "empty_moments", "unit_statistics"]


@dataclass(frozen=True)
class Statistics:
    """Statistics of every observed layer.

    Attributes:
        layers: By module path.
        examples: Examples seen, mixes of them among those.
        scales: One for each floating tensor of the output, in order.
        origin: Of which model and which data they are; None where they never leave the run that took them.
        undifferentiable: What the model raised on the first batch that could not be differentiated; empty if all could.

    Example:
        >>> import tempfile, torch, bottleneck_opt as bo
        >>> net, x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)), torch.randn(4, 3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = bo.calibrate(net, x[:1], calibration=x, progress=False).save(folder + "/stats.safetensors")
        ...     result = bo.optimize(net, x[:1], calibration=x, statistics=file, progress=False)
        >>> result.plan == bo.optimize(net, x[:1], calibration=x, progress=False).plan
        True
    """

    layers: Mapping[str, LayerStatistics]
    examples: int
    scales: tuple[OutputScale, ...]
    origin: Origin | None = None
    undifferentiable: str = ""

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both data sets, which must have been collected with the same scales."""
        if self.layers.keys() != other.layers.keys() or self.scales != other.scales:
            raise ValueError("only statistics of the same layers and output scales can be merged")
        layers = {path: mine.merge(other.layers[path]) for path, mine in self.layers.items()}
        return replace(self, layers=layers, examples=self.examples + other.examples, origin=None)

    def without_curvature(self) -> Statistics:
        """The same as if no gradient had reached any layer: errors then count alike in all output channels."""
        layers = {path: replace(layer, probes=0) for path, layer in self.layers.items()}
        return replace(self, layers=layers)

    def save(self, path: str | Path) -> Path:
        """Write them to a ``.safetensors`` file, whole or not at all.

        Raises:
            FileError: The file cannot be written.
            ValueError: They do not say where they come from: only what ``calibrate`` returned can be saved.
        """
        if self.origin is None:
            raise ValueError("statistics without an origin could never be checked: save what calibrate() returned")
        target = as_path(path, "statistics")
        write_record(target, Record(dict(self.layers), self.examples, self.scales, self.origin, self.undifferentiable))
        return target

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what :meth:`save` wrote. The covariances stay in the file and are read when they are used.

        Raises:
            FileError: The file is missing, truncated, changed, or not of this format.
        """
        record = read_record(as_path(path, "statistics"))
        return cls(record.layers, record.examples, record.scales, record.origin, record.undifferentiable)


def unit_statistics(layers: Mapping[str, LayerSpec]) -> Statistics:
    """Statistics of layers that no data ran through: inputs of unit variance, an output that feels all channels alike.

    Outer products are left out, for the memory: passes that need them decline.
    """
    found = {}
    for path, layer in layers.items():
        width, out = layer.offsets * layer.in_channels, layer.out_channels
        inputs = Moments(1, torch.zeros(width, dtype=torch.float64, device="cpu"), float(width), None)
        outputs = Moments(1, torch.zeros(out, dtype=torch.float64, device="cpu"), float(out), None)
        found[path] = LayerStatistics(inputs, outputs, torch.eye(out, dtype=torch.float64, device="cpu"), 1)
    return Statistics(found, 1, ())
