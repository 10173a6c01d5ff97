"""Andrew Ng's bottleneck, found by the tool: 120 million multiplies become 12.4 million.

A 5x5 convolution from 192 to 32 channels on a 28x28 picture costs 120,422,400 multiply-adds. If everything it needs
lies in 16 directions of the 192 channels, a 1x1 convolution to 16 channels can go first, and both together cost
12,443,648: fewer channels inside, the same feature map outside. Here the dense layer's weights are made so that this is
true; ``optimize`` is not told, and finds it.

Run: python examples/bottleneck.py
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.diagrams import render_file

PICTURES = Path(__file__).parent / "pictures"
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


def main(pictures: Path = PICTURES) -> bo.Result:
    """Find the bottleneck, print what changed, and draw the layer before and after."""
    features = torch.randn(8, 192, 28, 28, generator=torch.Generator().manual_seed(0))
    result = bo.optimize(
        planted_layer(), features[:1], calibration=features, budget="macs=12443648", passes=["reduce"], progress=False
    )
    print("        layer              output    multiply-adds  parameters")
    for name, run in (("before", result.before), ("after", result.after)):
        for node in run.structure.nodes:
            if node.layer:
                kernel, shape = "x".join(map(str, node.layer.kernel)), "x".join(map(str, node.output_shapes[0][1:]))
                print(f"{name:6}  {node.path:11}  {kernel:4}  {shape:9}  {node.cost.macs:12,}  {node.cost.params:10,}")
    before, after = result.before.cost.macs, result.after.cost.macs
    print(f"{before:,} -> {after:,} multiply-adds, {before / after:.2f} times fewer")
    print(f"the output changed by {result.verification.measured_change:.0e} of its variance")
    render_file(result.draw("diff"), pictures / "bottleneck.svg")
    return result


if __name__ == "__main__":
    main()
