"""Andrew Ng's bottleneck, found by the tool: 120 million multiplies become 12.4 million.

A 5x5 convolution from 192 to 32 channels on a 28x28 picture costs 120,422,400 multiply-adds. If everything it needs
lies in 16 directions of the 192 channels, a 1x1 convolution to 16 channels can go first, and both together cost
12,443,648. Here the dense layer's weights are made so that this is true; ``optimize`` is not told, and finds it.

Run: python examples/bottleneck.py [folder]
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

import bottleneck_opt as bo

HIDDEN_RANK = 16


class DenseLayer(nn.Sequential):
    """A 5x5 convolution with its activation."""


def planted_layer() -> DenseLayer:
    """A dense 5x5 convolution that only looks at 16 directions of its 192 input channels."""
    torch.manual_seed(0)
    layer = nn.Conv2d(192, 32, 5, padding=2)
    directions = torch.randn(HIDDEN_RANK, 192) / 192**0.5
    kernel = torch.randn(32, HIDDEN_RANK, 5, 5) / (25 * HIDDEN_RANK) ** 0.5
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("orhw,ri->oihw", kernel, directions))
    return DenseLayer(OrderedDict(conv=layer, relu=nn.ReLU()))


def main(folder: Path) -> bo.Result:
    """Find the bottleneck, print what changed, and write the pictures."""
    pictures = torch.randn(16, 192, 28, 28)
    result = bo.optimize(
        planted_layer(), pictures[:1], calibration=pictures, budget="macs=12443648", passes=["reduce"], progress=False
    )
    print(result)
    print(f"{result.before.cost.macs:,} -> {result.after.cost.macs:,} multiply-adds")
    result.save(folder)
    print(f"the picture: {folder / 'diff.svg'}")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/bottleneck"))
