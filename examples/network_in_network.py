"""Network in Network: 1x1 convolutions for their activations, counted, trained on digits and made smaller.

Every 1x1 brings one more activation, applied at every pixel: on a 6x6 picture a 3x3 filter without padding is followed
by 16 applications of ReLU, a 1x1 filter by 36. Lin, Chen and Yan (2014) put two 1x1 layers behind every kernel and
needed no fully connected layer: 966,986 parameters for CIFAR-10.

Trained here, to take seconds and need no download: the same nine layers at a quarter of their widths, each with a batch
norm and none with dropout, on scikit-learn's 8x8 digits enlarged to 16x16 in one colour.

Run: python examples/network_in_network.py  (needs scikit-learn)
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import accuracy, load_digits, train
from bottleneck_opt.diagrams import render_file

PICTURES = Path(__file__).parent / "pictures"


def stage(inputs: int, kernel: int, widths: tuple[int, int, int], *, norm: bool) -> nn.Sequential:
    """A kernel and two 1x1 layers, each with its ReLU: what the authors call mlpconv."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, size, outputs in zip(("conv", "mlp1", "mlp2"), (kernel, 1, 1), widths, strict=True):
        layers[name] = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        layers |= {f"{name}_norm": nn.BatchNorm2d(outputs)} if norm else {}
        layers[f"{name}_relu"] = nn.ReLU()
        inputs = outputs
    return nn.Sequential(layers)


class NetworkInNetwork(nn.Sequential):
    """The authors' network for CIFAR-10; ``thin`` divides the widths, ``norm`` adds batch norms."""

    def __init__(self, colours: int = 3, *, thin: int = 1, norm: bool = False) -> None:
        a, b, c = 192 // thin, 160 // thin, 96 // thin
        layers: list[tuple[str, nn.Module]] = [
            ("stage1", stage(colours, 5, (a, b, c), norm=norm)), ("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)),
            ("stage2", stage(c, 5, (a, a, a), norm=norm)), ("pool2", nn.MaxPool2d(3, 2, ceil_mode=True)),
            ("stage3", stage(a, 3, (a, a, 10), norm=norm)), ("mean", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()),
        ]  # fmt: skip
        super().__init__(OrderedDict(layers))


def applications(kernel: int) -> int:
    """How often ReLU is applied behind one filter of this size on a 6x6 picture."""
    run = bo.trace(nn.Sequential(nn.Conv2d(3, 1, kernel), nn.ReLU()), torch.zeros(1, 3, 6, 6))
    return math.prod(run.structure.node("_1").output_shapes[0])


def main(pictures: Path = PICTURES) -> bo.Result:
    """Count, train, compress to half the multiply-adds, measure and draw."""
    print(f"ReLU on 6x6: {applications(3)} applications behind a 3x3 filter, {applications(1)} behind a 1x1")
    full = bo.trace(NetworkInNetwork(), torch.zeros(1, 3, 32, 32)).cost
    print(f"for CIFAR-10: {full.params:,} parameters, {full.macs:,} multiply-adds")
    digits = load_digits()
    torch.manual_seed(0)
    model = NetworkInNetwork(colours=1, thin=4, norm=True)
    train(model, digits, epochs=8)
    result = bo.optimize(
        model, digits.test_x[:1], calibration=digits.train_x[:64], budget=0.5, allow_slower=True, progress=False
    )
    print(f"on digits     multiply-adds  parameters  right of {len(digits.test_x)} unseen")
    for name, net, cost in (("trained", model, result.before.cost), ("half", result.model, result.after.cost)):
        print(f"{name:12}  {cost.macs:13,}  {cost.params:10,}  {accuracy(net, digits.test_x, digits.test_y):.1%}")
    render_file(result.draw("diff"), pictures / "network_in_network.svg")
    return result


if __name__ == "__main__":
    main()
