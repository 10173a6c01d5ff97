"""Hard cases, each small: ways in which real models hold, share, compute and call their convolutions."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from tests.networks import ActsOnType, Computes, Hidden, ReadsLayer, Repeated
from tests.zoo.entries import Entry, noise, noise_of

_IMAGE = noise_of(1, 8, 16, 16)


def entries() -> Iterator[Entry]:
    """One line a case."""
    for name, build in _CASES.items():
        yield Entry("hand_written", name, build, _IMAGE)
    yield Entry("hand_written", "dict_input", DictInput, lambda model: ({"a": noise(1, 8, 9, 9), "scale": 2.0},))
    yield Entry("hand_written", "tuple_input", TupleInput, lambda model: ((noise(1, 8, 9, 9), noise(1, 8, 9, 9)),))
    yield Entry("hand_written", "dataclass_input", DataclassInput, lambda model: (Batch(noise(1, 8, 9, 9), 3),))
    yield Entry("hand_written", "keyword_input", _keyword, lambda model: {"x": noise(1, 8, 9, 9), "flag": True})
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield Entry("hand_written", name, partial(_chain, dtype), _image_as(dtype), tolerance=0.05)
    yield Entry("hand_written", "float64", partial(_chain, torch.float64), _image_as(torch.float64))
    yield Entry("hand_written", "channels_last", _channels_last, _image_as(memory_format=torch.channels_last))
    yield Entry("hand_written", "autocast", _autocast, _IMAGE, tolerance=0.05)
    yield Entry("hand_written", "many_names_many_calls", Repeated, noise_of(1, 3, 16, 16))
    yield Entry("hand_written", "unbatched", _chain, noise_of(8, 16, 16))


def _conv(i: int = 8, o: int = 8, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, **{"padding": kernel // 2, **options})


def _image_as(dtype: torch.dtype = torch.float32, **layout: Any) -> Callable[[nn.Module], Tensor]:
    return lambda model: noise(1, 8, 16, 16, dtype=dtype).to(**layout) if layout else noise(1, 8, 16, 16, dtype=dtype)


def _chain(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(_conv(), nn.GELU(), _conv(8, 12, stride=2), nn.GELU(), _conv(12, 6)).to(dtype)


def _channels_last() -> nn.Module:
    net = _chain()
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


# -- sharing ------------------------------------------------------------------------------------------------------


def _tied() -> nn.Module:
    net = _chain()
    net[4] = _conv(8, 8)
    net[2] = _conv(8, 8)
    net[4].weight = net[2].weight
    return net


def _shared_module() -> nn.Module:
    layer = _conv()
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer)


def _tied_autoencoder() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return F.conv_transpose2d(torch.tanh(net.encode(x)), net.encode.weight, padding=1)

    return Computes(run, encode=_conv(8, 12))


def _shared_block() -> nn.Module:
    block = nn.Sequential(_conv(), nn.Tanh())
    net = nn.ModuleDict({"a": block, "b": nn.Sequential(block, _conv())})
    return Computes(lambda owner, x: owner.parts["b"](owner.parts["a"](x)), parts=net)


# -- weights that are computed ------------------------------------------------------------------------------------


class Standardized(nn.Conv2d):
    """Weight standardisation, as in BiT and NFNets."""

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding)


class Modulated(nn.Module):
    """A weight that depends on the input, as in StyleGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(8, 8, 3, 3) / 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.style(x.mean((2, 3)))[0][None, :, None, None], padding=1)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(3)) / 2


def _parametrized() -> nn.Module:
    net = _chain()
    parametrize.register_parametrization(net[2], "weight", Symmetric())
    return net


def _normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    net = _chain()
    norm(net[0])
    norm(net[2])
    return net


def _pruned() -> nn.Module:
    net = _chain()
    prune.random_unstructured(net[2], "weight", 0.3)
    return net


class OnParameter(nn.Module):
    """``F.conv2d`` on a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.offset = nn.Parameter(torch.randn(12, 8, 3, 3) / 8), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, self.offset, stride=2, padding=1)


class Blurred(nn.Module):
    """A fixed filter in a buffer, then a convolution."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(8, 1, 3, 3) / 9)
        self.conv = _conv()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.conv2d(x, self.kernel, padding=1, groups=8))
        return out


# -- input changed on the way in ----------------------------------------------------------------------------------


class SamePadding(nn.Conv2d):
    """Pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(_pad_same(x, self), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_same(x: Tensor, layer: nn.Conv2d) -> Tensor:
    amounts = []
    for size, kernel, stride in zip(x.shape[:1:-1], layer.kernel_size[::-1], layer.stride[::-1], strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(x, amounts)


def _dynamic_padding() -> nn.Module:
    return Computes(lambda net, x: net.conv(_pad_same(x, net.conv)), conv=_conv(8, 12, 5, stride=2, padding=0))


class Partial(nn.Conv2d):
    """Acts on a part of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((super().forward(x[:, :8]), x[:, 8:]), 1)


# -- how it is held and called ------------------------------------------------------------------------------------


class Direct(nn.Module):
    """Calls ``forward`` itself, past hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.forward(x)


class TwoSizes(nn.Module):
    """``conv(x, output_size=)`` on a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = _conv(8, 12, stride=2), nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(torch.relu(self.down(x)), output_size=x.shape[2:])
        return out


def _hooked() -> nn.Module:
    net = _chain()
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    net[2].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return net


def _replaced_forward() -> nn.Module:
    net = _chain()
    plain = net[2].forward
    net[2].forward = lambda x: plain(x * 0.5)
    return net


def _keyword() -> nn.Module:
    return Computes(lambda net, x, flag=False: net.conv(input=x) if flag else x, conv=_conv())


def _autocast() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net.layers(x).float()  # type: ignore[no-any-return]

    return Computes(run, layers=_chain())


def _tries() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        try:
            return net.wrong(x)  # type: ignore[no-any-return]
        except RuntimeError:
            return net.right(x)  # type: ignore[no-any-return]

    return Computes(run, wrong=_conv(9, 8), right=_conv())


def _shape_branch() -> nn.Module:
    return Computes(lambda net, x: net.a(x) if x.shape[2] > 10 else net.b(x), a=_conv(), b=_conv(8, 4))


def _value_branch() -> nn.Module:
    return Computes(lambda net, x: net.a(x) if x[0, 0, 0, 0] > 0 else net.b(x), a=_conv(), b=_conv())


def _in_place() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        y[:, :4] += 1
        y[:, 4:].relu_()
        y.add_(x)
        return net.b(y)  # type: ignore[no-any-return]

    return Computes(run, a=_conv(), b=_conv())


def _random_inside() -> nn.Module:
    return Computes(lambda net, x: net.b(F.dropout(net.a(x), 0.5, training=True)), a=_conv(), b=_conv())


def _checkpointed() -> nn.Module:
    return Computes(lambda net, x: checkpoint(net.a, x, use_reentrant=False), a=_chain())


def _scripted_part() -> nn.Module:
    return nn.Sequential(_conv(), torch.jit.script(nn.Sequential(_conv(), nn.ReLU())))


class Slices(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.children()
        for layer in first:
            x = layer(x) + 1
        out: Tensor = last(x)
        return out


# -- inputs and outputs -------------------------------------------------------------------------------------------


@dataclass
class Batch:
    x: Tensor
    number: int


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        y = self.conv(batch["a"]) * batch["scale"]
        return {"out": y, "list": [y + 1, None, "text"], "number": 3}


class TupleInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()

    def forward(self, both: tuple[Tensor, Tensor]) -> Pair:
        return Pair(self.conv(both[0]) + both[1], None)


class DataclassInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()

    def forward(self, batch: Batch) -> Batch:
        return Batch(self.conv(batch.x) * batch.number, batch.number)


_CASES: Mapping[str, Callable[[], nn.Module]] = OrderedDict({
    "plain": _chain,
    "tied_weights": _tied,
    "tied_autoencoder": _tied_autoencoder,
    "shared_module": _shared_module,
    "shared_block": _shared_block,
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.ReLU(), nn.LazyConv2d(4, 3)),
    "parametrized": _parametrized,
    "weight_norm": lambda: _normed(parametrizations.weight_norm),
    "weight_norm_old": lambda: _normed(torch.nn.utils.weight_norm),
    "spectral_norm": lambda: _normed(parametrizations.spectral_norm),
    "spectral_norm_old": lambda: _normed(torch.nn.utils.spectral_norm),
    "orthogonal": lambda: _normed(parametrizations.orthogonal),
    "pruned": _pruned,
    "weight_standardised": lambda: nn.Sequential(Standardized(8, 12, 3, padding=1), nn.ReLU(), _conv(12, 8)),
    "modulated": lambda: nn.Sequential(_conv(), Modulated()),
    "on_parameter": OnParameter,
    "fixed_filter": Blurred,
    "same_padding_subclass": lambda: nn.Sequential(SamePadding(8, 12, 3, stride=2), nn.ReLU(), SamePadding(12, 8, 4)),
    "dynamic_padding": _dynamic_padding,
    "partial_subclass": lambda: nn.Sequential(nn.Conv2d(8, 12, 1), Partial(8, 8, 3, padding=1)),
    "held_in_a_list": Hidden,
    "acts_on_type": ActsOnType,
    "reads_attributes": ReadsLayer,
    "calls_forward": Direct,
    "output_size": TwoSizes,
    "hooks": _hooked,
    "forward_replaced": _replaced_forward,
    "tries_and_catches": _tries,
    "shape_branch": _shape_branch,
    "value_branch": _value_branch,
    "in_place": _in_place,
    "random_inside": _random_inside,
    "checkpointed": _checkpointed,
    "scripted_part": _scripted_part,
    "sequential_subclass": lambda: Slices(_conv(), _conv(), _conv(8, 4)),
    "grouped": lambda: nn.Sequential(
        _conv(8, 12, groups=4), nn.ReLU(), _conv(12, 12, groups=12), _conv(12, 8, 1, groups=2)
    ),
    "dilated": lambda: nn.Sequential(_conv(8, 8, padding=2, dilation=2), nn.Conv2d(8, 6, (1, 5), (2, 1), (0, 2))),
})  # fmt: skip
