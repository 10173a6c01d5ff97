"""The outputs of a model as a function of some layers' weights, beside the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import float_leaves
from bottleneck_opt.calibration_data import CalibrationData, place_batch
from bottleneck_opt.differentiating import differentiate
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.joint.vectors import Vector, parameters_of, to_matrix, write_matrix
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.statistics import OutputScale


class Problem:
    """Both models over some examples.

    Outputs are scaled so that their squared change over all examples is the mean one, relative to their variance.
    """

    def __init__(
        self, original: nn.Module, rewritten: nn.Module, layers: Mapping[str, LayerSpec], data: CalibrationData,
        scales: Sequence[OutputScale], seed: int,
    ) -> None:  # fmt: skip
        """Run the original once.

        Args:
            original: The original's working copy.
            rewritten: The model whose weights are changed.
            layers: Those of its layers that may change, by path.
            data: The examples.
            scales: Spread of each output tensor.
            seed: Of random numbers inside the models; both draw the same.
        """
        like = next(iter(rewritten.parameters()))
        self._model, self._layers, self._seed = rewritten, layers, seed
        self._modules = {path: rewritten.get_submodule(path) for path in layers}
        self._batches = [place_batch(batch, device=like.device, dtype=like.dtype) for batch in data.batches]
        self._scales = [scale.weight / math.sqrt(max(data.examples, 1)) for scale in scales]
        self._targets = self._run(original)

    def outputs(self) -> list[Tensor]:
        """The rewritten model's scaled outputs, of all batches in order."""
        return self._run(self._model)

    def residual(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """What is missing to the original's; nothing where those are not finite."""
        return [
            torch.where(torch.isfinite(target), target - output, 0.0)
            for target, output in zip(self._targets, outputs, strict=True)
        ]

    def loss(self) -> float:
        """Mean squared change of the output, relative to its variance."""
        return square(self.residual(self.outputs()))

    def pull_back(self, residual: Sequence[Tensor]) -> dict[str, Tensor]:
        """``J^T r``: how the sum of ``r`` times the outputs changes with the weights."""
        parameters = [parameter for module in self._modules.values() for parameter in parameters_of(module)]
        totals = [torch.zeros_like(each, dtype=torch.float64, device="cpu") for each in parameters]
        done = 0
        for each in parameters:
            each.requires_grad_(True)
        try:
            for batch in self._batches:
                run = partial(self._find_slopes, batch, residual[done:], parameters)
                outputs, slopes = differentiate(run)
                done += outputs
                for total, slope in zip(totals, slopes, strict=True):
                    total.add_(slope.double().cpu())
        finally:
            for each in parameters:
                each.requires_grad_(False)
        taken = iter(totals)
        parts = {path: [next(taken) for _ in parameters_of(module)] for path, module in self._modules.items()}
        return {path: to_matrix(self._layers[path], values) for path, values in parts.items()}

    def _find_slopes(
        self, batch: Inputs, pulls: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[int, list[Tensor]]:
        """How many outputs a batch has, and how the sum of the first ``pulls`` times them changes with each weight."""
        with torch.enable_grad():
            leaves = self._scaled(batch, self._model)
        felt = [(leaf, pull) for leaf, pull in zip(leaves, pulls, strict=False) if leaf.requires_grad]
        if not felt:
            return len(leaves), [torch.zeros_like(each) for each in parameters]
        outputs, directions = zip(*felt, strict=True)
        slopes = torch.autograd.grad(outputs, parameters, directions, allow_unused=True, materialize_grads=True)
        return len(leaves), list(slopes)

    def weights(self) -> dict[str, Tensor]:
        """The layers' weights at hand."""
        return {path: to_matrix(self._layers[path], parameters_of(each)) for path, each in self._modules.items()}

    def load(self, weights: Vector) -> None:
        """Put other weights into the layers."""
        for path, module in self._modules.items():
            write_matrix(self._layers[path], weights[path], module)

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [leaf for batch in self._batches for leaf in self._scaled(batch, model)]

    def _scaled(self, batch: Inputs, model: nn.Module) -> list[Tensor]:
        torch.manual_seed(self._seed)
        leaves = float_leaves(batch.call(model))
        return [leaf * scale for leaf, scale in zip(leaves, self._scales, strict=False)]


def square(values: Sequence[Tensor]) -> float:
    """The sum of all squared entries."""
    return float(sum(float(each.double().square().sum()) for each in values))
