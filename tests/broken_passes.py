"""Passes that break one promise each, made from one that keeps them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch

from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.passes.expand import Expand
from bottleneck_opt.sites import Option, Site, Skip, Weights


@dataclass(frozen=True)
class Sound:
    """The kernel to few channels, then a 1x1: what the broken ones are made of."""

    name: ClassVar[str] = "sound"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        answer = Expand().propose(site)
        return [self.change(option, site) for option in answer] if isinstance(answer, list) else answer

    def change(self, option: Option, site: Site) -> Option:
        return option


def refilled(option: Option, change: Callable[[Weights], Weights]) -> Option:
    """The option with other weights in its last layer."""
    return replace(option, fill=partial(_refill, option, change))


def _refill(option: Option, change: Callable[[Weights], Weights]) -> list[Weights]:
    *first, last = option.fill()
    return [*first, change(last)]


class ForgetsStride(Sound):
    def change(self, option: Option, site: Site) -> Option:
        plain = tuple(1 for _ in site.layer.stride)
        return replace(option, layers=(replace(option.layers[0], stride=plain), *option.layers[1:]))


class MixesUpShapes(Sound):
    def change(self, option: Option, site: Site) -> Option:
        return refilled(option, lambda last: Weights(last.weight.transpose(0, 1).contiguous(), last.bias))


class Grows(Sound):
    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        answer = super().propose(site)
        if not isinstance(answer, list):
            return answer
        full = answer[-1]
        return [*answer, replace(full, ranks=(full.ranks[0] - 1,), layers=_narrower(full.layers))]


def _narrower(layers: Sequence[LayerSpec]) -> tuple[LayerSpec, ...]:
    rank = layers[0].out_channels - 1
    return (replace(layers[0], out_channels=rank), replace(layers[1], in_channels=rank))


class Inexact(Sound):
    def change(self, option: Option, site: Site) -> Option:
        exact = option.ranks == option.full_ranks
        return refilled(option, lambda last: Weights(1.001 * last.weight, last.bias)) if exact else option


class OverwritesWeight(Sound):
    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        site.weight.clamp_(-0.1, 0.1)
        return super().propose(site)


class CentersStatisticsWhenFilled(Sound):
    def change(self, option: Option, site: Site) -> Option:
        def fill() -> Sequence[Weights]:
            site.statistics.inputs.total.zero_()
            return option.fill()

        return replace(option, fill=fill)


_ASKED: list[str] = []


class Counts(Sound):
    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        _ASKED.append(site.path)
        answer = super().propose(site)
        return answer[len(_ASKED) % 2 :] if isinstance(answer, list) else answer


class Dices(Sound):
    def change(self, option: Option, site: Site) -> Option:
        noise = 1e-6 * float(torch.rand(()))
        return replace(option, predicted_loss=option.predicted_loss * (1 + noise))


class Raises(Sound):
    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        raise IndexError("list index out of range")


class CannotFill(Sound):
    def change(self, option: Option, site: Site) -> Option:
        def fill() -> Sequence[Weights]:
            raise RuntimeError("did not converge")

        return replace(option, fill=fill)


class Cheap(LayerSpec):
    """A layer that says it has no parameters."""

    @property
    def params(self) -> int:
        return 1


class Understates(Sound):
    def change(self, option: Option, site: Site) -> Option:
        return replace(option, layers=tuple(Cheap(**vars(layer)) for layer in option.layers))


class Optimistic(Sound):
    def change(self, option: Option, site: Site) -> Option:
        return replace(option, predicted_loss=0.01 * option.predicted_loss)


class KeepsTensors(Sound):
    def change(self, option: Option, site: Site) -> Option:
        loss: Any = torch.tensor(option.predicted_loss)
        return replace(option, predicted_loss=loss)


class BareRank(Sound):
    def change(self, option: Option, site: Site) -> Option:
        rank: Any = option.ranks[0] if option.ranks != option.full_ranks else option.ranks
        return replace(option, ranks=rank)


@dataclass(frozen=True)
class OddOption(Sound):
    name: ClassVar[str] = "odd-option"
    ranks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class WrongDefault(Sound):
    name: ClassVar[str] = "wrong-default"
    steps: int = 0.5  # type: ignore[assignment]  # what is wrong with it


@dataclass
class Thawed:
    """A pass that can be changed."""

    name: ClassVar[str] = "thawed"

    def propose(self, site: Site) -> None:
        return None


@dataclass(frozen=True)
class OnlyPartly(Sound):
    name: ClassVar[str] = "only-partly"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        answer = super().propose(site)
        return answer[:-1] if isinstance(answer, list) else answer


@dataclass(frozen=True)
class NeverExact(Sound):
    """Loses something at every rank, and says so."""

    name: ClassVar[str] = "never-exact"

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        answer = super().propose(site)
        return [replace(option, full_ranks=()) for option in answer[:-1]] if isinstance(answer, list) else answer


@dataclass(frozen=True)
class Shy:
    """A pass that wants nothing."""

    name: ClassVar[str] = "shy"

    def propose(self, site: Site) -> Skip:
        return Skip("not today")
