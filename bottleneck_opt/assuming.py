"""Statistics that are assumed where there is no data: inputs without correlation, an output that feels all alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bottleneck_opt.kernels import by_offset, spread_groups
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.moments import LayerStatistics, Moments
from bottleneck_opt.sampling import OUTER_LIMIT
from bottleneck_opt.spilling import Matrix, Storage, open_matrix


def assume_statistics(
    layers: Mapping[str, LayerSpec], kernels: Mapping[str, Tensor], storage: Storage
) -> dict[str, LayerStatistics]:
    """``S = I`` and ``G`` a multiple of ``I`` for each layer: fitting to these is fitting to the weights alone.

    The multiple is such that a layer whose weights were all lost would lose 1.

    Args:
        layers: By path.
        kernels: Their plain kernels ``(out, in / groups, *kernel)``, float64, by path.
        storage: Where covariances are kept.
    """
    widths = {path: layer.offsets * layer.in_channels for path, layer in layers.items()}
    wide = [path for path, width in widths.items() if width <= OUTER_LIMIT]
    covariances = dict(zip(wide, storage.allocate([widths[path] for path in wide]), strict=True))
    return {path: _assume(layer, kernels[path], covariances.get(path)) for path, layer in layers.items()}


def _assume(layer: LayerSpec, kernel: Tensor, covariance: Matrix | None) -> LayerStatistics:
    """Inputs of mean 0 and variance 1, and what the layer makes of them."""
    if covariance is not None:
        open_matrix(covariance).fill_diagonal_(1.0)
    width, flat = layer.offsets * layer.in_channels, by_offset(spread_groups(kernel, layer.groups)).flatten(1)
    made = flat @ flat.T
    energy = float(made.trace()) or 1.0
    return LayerStatistics(
        inputs=Moments(1, kernel.new_zeros(width), float(width), covariance),
        outputs=Moments(1, kernel.new_zeros(len(flat)), float(made.trace()), made),
        curvature=torch.eye(len(flat), dtype=torch.float64, device="cpu") / energy,
        probes=1,
    )
