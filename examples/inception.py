"""GoogLeNet's reductions, found again in all nine of its Inception modules.

An Inception module looks at its input through a 1x1, a 3x3, a 5x5 and a pooling branch. GoogLeNet puts 1x1 reductions
before the 3x3 and the 5x5; without them a module costs 2.4 to 5.2 times as much. Here each module starts without, its
weights made so that they need no more than GoogLeNet's reductions pass on (96 and 16 directions in module 3a).
``optimize`` is told GoogLeNet's multiply-adds and has to find both widths. (GoogLeNet has a ReLU behind each reduction;
a reduction that is found has none.) From module 4a on the 5x5 is too wide for ``reduce``: see wide_reduce.py.

Run: python examples/inception.py  (a minute)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from wide_reduce import WideReduce

import bottleneck_opt as bo
from bottleneck_opt.diagrams import render_file

PICTURES = Path(__file__).parent / "pictures"
# name: pixels, input channels, 1x1, reduction of the 3x3, 3x3, reduction of the 5x5, 5x5, pooling branch
GOOGLENET = {
    "3a": (28, 192, 64, 96, 128, 16, 32, 32), "3b": (28, 256, 128, 128, 192, 32, 96, 64),
    "4a": (14, 480, 192, 96, 208, 16, 48, 64), "4b": (14, 512, 160, 112, 224, 24, 64, 64),
    "4c": (14, 512, 128, 128, 256, 24, 64, 64), "4d": (14, 512, 112, 144, 288, 32, 64, 64),
    "4e": (14, 528, 256, 160, 320, 32, 128, 128), "5a": (7, 832, 256, 160, 320, 32, 128, 128),
    "5b": (7, 832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


class Inception(nn.Module):
    """The module without reductions: four branches that read the same tensor."""

    def __init__(self, inputs: int, one: int, three: int, five: int, pooled: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, one, 1, bias=False)
        self.three = nn.Conv2d(inputs, three, 3, padding=1, bias=False)
        self.five = nn.Conv2d(inputs, five, 5, padding=2, bias=False)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.pooled = nn.Conv2d(inputs, pooled, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to the branches' channels, one behind the other."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(self.pool(x))], 1).relu()


def plant(layer: nn.Conv2d, directions: Tensor) -> None:
    """Make a convolution look at these directions ``(rank, in)`` of its input only."""
    kernel = torch.randn(layer.out_channels, len(directions), *layer.kernel_size) / layer.weight[0].numel() ** 0.5
    layer.weight.data = torch.einsum("orhw,ri->oihw", kernel, directions)


def find_reductions(name: str) -> bo.Result:
    """One module at GoogLeNet's multiply-adds, its reductions found by the tool."""
    pixels, inputs, one, reduce3, three, reduce5, five, pooled = GOOGLENET[name]
    torch.manual_seed(0)
    module = Inception(inputs, one, three, five, pooled)
    plant(module.three, torch.randn(reduce3, inputs))
    plant(module.five, torch.randn(reduce5, inputs))
    x = torch.randn(2, inputs, pixels, pixels)
    macs = pixels**2 * (inputs * (one + reduce3 + reduce5 + pooled) + reduce3 * 9 * three + reduce5 * 25 * five)
    return bo.optimize(
        module, x[:1], calibration=x, budget=f"macs={macs}", passes=["reduce", WideReduce()], progress=False
    )


def main(pictures: Path = PICTURES, names: Sequence[str] = tuple(GOOGLENET)) -> list[bo.Result]:
    """Find the reductions of these modules, print them beside GoogLeNet's, and draw module 3a."""
    print("module  multiply-adds without        with  times fewer  before 3x3, 5x5  GoogLeNet's")
    results = []
    for name in names:
        result = find_reductions(name)
        before, after = result.before.cost.macs, result.after.cost.macs
        ranks = {step.path: step.ranks[0] for step in result.plan.steps}
        found, paper = f"{ranks['three']}, {ranks['five']}", f"{GOOGLENET[name][3]}, {GOOGLENET[name][5]}"
        print(f"{name:6}  {before:21,} {after:11,}  {before / after:11.2f}  {found:>15}  {paper:>11}")
        if name == "3a":
            render_file(result.draw("diff"), pictures / "inception.svg")
        results.append(result)
    return results


if __name__ == "__main__":
    main()
