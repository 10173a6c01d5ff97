"""One 1x1 for three branches: the bottleneck that GoogLeNet's modules could share.

An Inception module has a reduction for each branch. Where the branches look at the same directions of their input, one
reduction can serve them all and is paid for once. Here the 1x1, the 3x3 and the 5x5 of module 3a all look at the same
32 of 192 directions. Both searches may spend the multiply-adds that one shared bottleneck of 32 needs: the separate
ones cannot stay exact, the shared one does.

Run: python examples/shared_bottleneck.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from inception import GOOGLENET, Inception, plant

import bottleneck_opt as bo
from bottleneck_opt.diagrams import render_file

PICTURES = Path(__file__).parent / "pictures"
COMMON = 32


def planted_module() -> Inception:
    """Module 3a without reductions, three of its branches looking at the same directions."""
    _, inputs, one, _, three, _, five, pooled = GOOGLENET["3a"]
    torch.manual_seed(0)
    module = Inception(inputs, one, three, five, pooled)
    directions = torch.randn(COMMON, inputs)
    for branch in (module.one, module.three, module.five):
        plant(branch, directions)
    return module


def main(pictures: Path = PICTURES) -> bo.Result:
    """Compress with a bottleneck for each branch, and with one for all; print both and draw the second."""
    pixels, inputs, one, _, three, _, five, pooled = GOOGLENET["3a"]
    x = torch.randn(2, inputs, pixels, pixels, generator=torch.Generator().manual_seed(0))
    kernels = COMMON * (one + 9 * three + 25 * five) + inputs * pooled
    each, once = (pixels**2 * (reductions * inputs * COMMON + kernels) for reductions in (3, 1))
    module = planted_module()
    print(f"without reductions: {bo.trace(module, x[:1]).cost.macs:,} multiply-adds; "
          f"with {COMMON} directions for each branch {each:,}, for all at once {once:,}")  # fmt: skip
    print("at that budget          multiply-adds  change of the output")
    for name, passes in (("one for each branch", ["reduce", "expand"]), ("one for all", ["shared"])):
        result = bo.optimize(
            module, x[:1], calibration=x, budget=f"macs={once}", passes=passes, allow_slower=True, progress=False
        )
        print(f"{name:22}  {result.after.cost.macs:13,}  {result.verification.measured_change:.2g}")
    render_file(result.draw("diff"), pictures / "shared_bottleneck.svg")
    return result


if __name__ == "__main__":
    main()
