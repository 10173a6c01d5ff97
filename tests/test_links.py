"""Between which layers channels can be dropped, and why not between others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt.choosing import find_droppable
from bottleneck_opt.links import Links
from bottleneck_opt.passes.select import Select
from bottleneck_opt.subject import Request, prepare_subject
from tests.networks import ActsOnType, Computes, Repeated, Residual, conv, seeded


def links_of(model: nn.Module, x: Tensor) -> Links:
    subject = prepare_subject(seeded(lambda: model, dtype=torch.float32), Request(x, None, 4, None, 0, None, None))
    return find_droppable(subject, (Select(),))


def pairs(links: Links) -> list[tuple[str, str]]:
    return [(link.producer, link.consumer) for link in links.found]


CHANNELWISE: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "prelu, a slope a channel": lambda: nn.PReLU(8),
    "prelu, one slope": nn.PReLU,
    "pooling": lambda: nn.MaxPool2d(2),
    "padding": lambda: nn.ReflectionPad2d(1),
    "resizing": lambda: nn.Upsample(scale_factor=2),
    "depthwise": lambda: conv(8, 8, groups=8),
    "several": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AvgPool2d(2), nn.GELU()),
}


@pytest.mark.parametrize("between", CHANNELWISE.values(), ids=list(CHANNELWISE))
def test_channels_can_go_across_channelwise_operations(between: Callable[[], nn.Module]) -> None:
    links = links_of(nn.Sequential(conv(3, 8), between(), conv(8, 6)), torch.randn(2, 3, 8, 8))
    assert pairs(links) == [("0", "2")]


@pytest.mark.parametrize("head", [
    lambda x: x.mean((2, 3)),
    lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
    lambda x: nn.functional.adaptive_max_pool2d(x, 1).view(x.shape[0], -1),
])  # fmt: skip
def test_channels_can_go_from_a_pooled_convolution_to_a_linear(head: Callable[[Tensor], Tensor]) -> None:
    net = Computes(lambda net, x: net.fc(head(net.conv(x))), conv=conv(3, 8), fc=nn.Linear(8, 4))
    assert pairs(links_of(net, torch.randn(2, 3, 8, 8))) == [("conv", "fc")]


def test_hidden_features_of_a_perceptron_can_go() -> None:
    net = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6))
    assert pairs(links_of(net, torch.randn(2, 5, 6))) == [("0", "2")]


def test_inside_residual_blocks_only() -> None:
    links = links_of(Residual(), torch.randn(2, 3, 8, 8))
    assert pairs(links) == [("blocks.0.conv1", "blocks.0.conv2"), ("blocks.1.conv1", "blocks.1.conv2")]
    assert "2 readers" in links.refused["blocks.0.conv1"].reason


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sum": (
        lambda: Computes(lambda n, x: n.c(n.a(x) + n.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 4)),
        "reads or makes several",
    ),
    "concatenation": (
        lambda: Computes(lambda n, x: n.b(torch.cat([n.a(x), x], 1)), a=conv(3, 5), b=conv(8, 4)), "cat reads",
    ),
    "second reader": (
        lambda: Computes(lambda n, x: n.b(y := n.a(x)).sum() + y.sum(), a=conv(3, 8), b=conv(8, 4)), "2 readers",
    ),
    "group norm": (lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), conv(8, 4)), "GroupNorm"),
    "channel shuffle": (lambda: nn.Sequential(conv(3, 8), nn.ChannelShuffle(2), conv(8, 4)), "ChannelShuffle"),
    "groups": (lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4, groups=2)), "groups=2"),
    "softmax": (lambda: nn.Sequential(conv(3, 8), nn.Softmax(1), conv(8, 4)), "Softmax"),
    "positions become channels": (
        lambda: Computes(lambda n, x: n.b(n.a(x).flatten(1)), a=conv(3, 8), b=nn.Linear(8 * 64, 4)), "flatten",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_whatever_mixes_channels_keeps_them_and_is_named(make: Callable[[], nn.Module], reason: str) -> None:
    links = links_of(make(), torch.randn(2, 3, 8, 8))
    assert not links.found
    assert any(reason in skip.reason for skip in links.refused.values())


def test_layers_called_several_times_keep_their_channels() -> None:
    links = links_of(Repeated(), torch.randn(1, 3, 8, 8))
    assert not links.found
    assert "several times" in links.refused["loop"].reason


def test_a_hook_keeps_the_channels_it_may_look_at() -> None:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    net[0].register_forward_hook(lambda module, args, output: None)
    assert "hook" in links_of(net, torch.randn(1, 3, 8, 8)).refused["2"].reason


class CountsOnWidth(nn.Module):
    """Computes with the number of channels it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)) * 1.0) * self.first.out_channels
        return out


def test_a_model_that_counts_its_channels_is_found_out_by_trying() -> None:
    links = links_of(CountsOnWidth(), torch.randn(1, 3, 8, 8))
    assert not links.found


def test_links_that_do_no_harm_survive_one_that_does() -> None:
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), CountsOnWidthAt(8))
    found = pairs(links_of(net, torch.randn(1, 3, 8, 8)))
    assert found == [("0", "2"), ("2", "4.first")]


class CountsOnWidthAt(nn.Module):
    """The same behind a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(width, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x))) * self.first.out_channels
        return out


def test_a_layer_that_acts_on_types_is_no_obstacle_by_itself() -> None:
    assert all(
        "keeps its input" in skip.reason for skip in links_of(ActsOnType(), torch.randn(1, 8, 8, 8)).refused.values()
    )
