"""A 3x3 convolution against a 1x1: two filters each, on a 6x6 picture of three channels.

The 3x3 looks at a neighbourhood: each filter has 27 weights and a bias, 56 parameters for both, and no room for it at
the border, so 6x6 becomes 4x4. The 1x1 mixes the three channels of each pixel on its own: 8 parameters, and the
picture keeps its size. That is why it can change the number of channels anywhere in a network.

Run: python examples/filter_sizes.py
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.diagrams import render_file

PICTURES = Path(__file__).parent / "pictures"
FILTERS = 2


class TwoFilterSizes(nn.Module):
    """Both convolutions read the same picture."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Conv2d(3, FILTERS, 3)
        self.one = nn.Conv2d(3, FILTERS, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, 3, 6, 6)`` to ``(batch, 2, 4, 4)`` and ``(batch, 2, 6, 6)``."""
        return self.three(x), self.one(x)


def main(pictures: Path = PICTURES) -> None:
    """Print each layer's summary and both costs, and draw them side by side."""
    model, picture = TwoFilterSizes(), torch.zeros(1, 3, 6, 6)
    for name, layer in model.named_children():
        print(bo.profile(nn.Sequential(OrderedDict({name: layer})), picture, timed=False).keras())
    print("kernel  output  parameters  multiply-adds")
    for node in bo.trace(model, picture).structure.calls_of("three", "one"):
        size = "x".join(str(axis) for axis in (*node.output_shapes[0][2:], FILTERS))
        kernel = "x".join(str(axis) for axis in node.layer.kernel) if node.layer else ""
        print(f"{kernel:6}  {size:6}  {node.cost.params:10}  {node.cost.macs:13}")
    render_file(bo.draw(model, picture), pictures / "filter_sizes.svg")


if __name__ == "__main__":
    main()
