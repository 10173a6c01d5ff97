"""Self-attention on pictures: query, key and value are 1x1 convolutions.

In a SAGAN block (Zhang et al. 2019) every pixel asks every other one. Three 1x1 convolutions make its query, its key
and its value; query and key have an eighth of the channels, so comparing all pixels (the first matmul) costs an eighth
of putting their values together (the second). The block stands here in a small classifier of scikit-learn's digits,
trained in seconds. All three layers read the same tensor: the pass ``shared`` finds them one common bottleneck.

Run: python examples/self_attention.py  (needs scikit-learn)
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import accuracy, load_digits, train
from bottleneck_opt.diagrams import render_file

PICTURES = Path(__file__).parent / "pictures"


class SelfAttention(nn.Module):
    """``x + scale * attention(x)`` over all pixels of ``(batch, channels, h, w)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))  # the block starts by doing nothing

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; pixel j of the result is made of all pixels i, by how much query j and key i agree."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)  # (batch, pixels, pixels)
        seen = value @ weights.transpose(1, 2)
        result: Tensor = x + self.scale * seen.unflatten(2, x.shape[2:])
        return result


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution with its norm and activation."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), relu=nn.ReLU()))


class AttentiveClassifier(nn.Sequential):
    """Digits ``(batch, 1, 16, 16)`` to ``(batch, 10)``, with self-attention among 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__(OrderedDict(
            stem=block(1, 32, 2), first=block(32, 64, 1), attention=SelfAttention(64), second=block(64, 64, 2),
            mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(64, 10),
        ))  # fmt: skip


def main(pictures: Path = PICTURES) -> bo.Result:
    """Train, show what the block costs, compress the block, measure and draw."""
    digits = load_digits()
    torch.manual_seed(0)
    model, image = AttentiveClassifier(), digits.test_x[:1]
    train(model, digits, epochs=8)
    print(f"{'in the attention block':23}  multiply-adds  parameters")
    for node in bo.trace(model, image).structure.nodes:
        if node.cost.macs and node.path.startswith("attention"):
            print(f"{node.path if node.layer else node.operation:23}  {node.cost.macs:13,}  {node.cost.params:10,}")
    result = bo.optimize(
        model, image, calibration=digits.train_x[:64], budget=0.9, passes=["shared"], include=["attention.*"],
        progress=False,
    )  # fmt: skip
    print(f"{'the network':23}  multiply-adds  parameters  right of {len(digits.test_x)} unseen")
    for name, net, cost in (("trained", model, result.before.cost), ("optimised", result.model, result.after.cost)):
        print(f"{name:23}  {cost.macs:13,}  {cost.params:10,}  {accuracy(net, digits.test_x, digits.test_y):.1%}")
    (shared,) = result.plan.sharings
    print(f"{', '.join(shared.members)} share a 1x1 to {shared.rank} of {shared.full_rank} channels")
    render_file(result.draw("diff"), pictures / "self_attention.svg")
    return result


if __name__ == "__main__":
    main()
