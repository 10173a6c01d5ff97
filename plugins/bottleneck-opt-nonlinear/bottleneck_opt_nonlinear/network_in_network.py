"""A bottleneck with an activation in its middle, which starts as the identity and is learnt in recovery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from bottleneck_opt.kernels import by_offset, spread_groups
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.sites import Option, Site, Skip, Weights


@dataclass(frozen=True)
class NetworkInNetwork:
    """A bottleneck with a PReLU in its middle; slopes of 1 at first, so the function changes only when trained.

    Two forms: ``nin`` is a 1x1, the activation and the kernel, ``mlpconv`` the kernel, the activation and a 1x1. Their
    linear layers are those of ``reduce`` and ``expand``. Without training they compute the same; the activation is what
    ``recover=`` can teach to do more.

    Attributes:
        before: Offer ``nin``.
        after: Offer ``mlpconv``.
        own_slopes: A slope for each channel where the layer's input allows it, instead of one for all.

    Source: Lin et al. 2014 (Network in Network) for the shape; He et al. 2015 for the activation.
    """

    name: ClassVar[str] = "nin"
    before: bool = True
    after: bool = True
    own_slopes: bool = True

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options at every rank at which the linear form has one."""
        forms: list[tuple[str, bool, Callable[[Site], Sequence[Option] | Skip | None]]] = [
            ("nin", self.before, Reduce().propose),
            ("mlpconv", self.after, Expand().propose),
        ]
        answers = [(form, ask(site)) for form, wanted, ask in forms if wanted]
        linear = [(form, answer) for form, answer in answers if answer is not None and not isinstance(answer, Skip)]
        options = [self._activate(form, option, site) for form, answer in linear for option in answer]
        return options or next((answer for _, answer in answers if isinstance(answer, Skip)), None)

    def _activate(self, form: str, option: Option, site: Site) -> Option:
        """The option with a bias and an activation after its first layer."""
        first, second = option.layers
        slopes = first.out_channels if self.own_slopes and site.channels_second else 1
        layers = (first.named(first.name, bias=not first.subclass), first.activation("act", slopes=slopes), second)
        return replace(option, form=form, layers=layers, fill=partial(_fill, option, layers, site))


def _fill(option: Option, layers: Sequence[LayerSpec], site: Site) -> Sequence[Weights]:
    """The linear form's weights, and slopes of 1. Where it can, the activation bends at the mean of what it reads."""
    first, second = option.fill()
    linear, activation, last = layers
    shift = _center(linear, first.weight, site) if _commutes(last) else first.weight.new_zeros(linear.out_channels)
    assert second.bias is not None
    bias = second.bias - _sum_offsets(last, second.weight) @ shift
    slopes = Weights(torch.ones(activation.weight_shape, dtype=torch.float64, device="cpu"))
    return Weights(first.weight, shift if linear.bias else None), slopes, Weights(second.weight, bias)


def _commutes(last: LayerSpec) -> bool:
    """Whether a constant added to a layer's input adds a constant to its output, at borders too."""
    return last.is_pointwise


def _center(linear: LayerSpec, kernel: Tensor, site: Site) -> Tensor:
    """The bias that centres the first layer's output ``(rank,)``."""
    if not linear.bias:
        return kernel.new_zeros(linear.out_channels)
    full = by_offset(spread_groups(kernel, linear.groups))
    mean = site.statistics.inputs.mean.view(site.layer.offsets, -1)
    return -torch.einsum("oqi,qi->o", full, mean)


def _sum_offsets(last: LayerSpec, kernel: Tensor) -> Tensor:
    """What a constant input adds to the output ``(out, in)``."""
    return by_offset(spread_groups(kernel, last.groups)).sum(1)
