"""What a pass sees and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bottleneck_opt.common_factor import CommonBasis, Consumer
from bottleneck_opt.conditioning import cholesky, choose_shrinkage, damp, shrink_in_place
from bottleneck_opt.costs import price_layers
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.factorization import ReduceFit, fit_reduce, loss_of
from bottleneck_opt.graph import Cost
from bottleneck_opt.kernels import by_offset, spread_groups
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.statistics import LayerStatistics

ROUNDING = 1e-12
Shapes = Sequence[Sequence[int]]


class Pacer(Protocol):
    """Says how long layers take on the machine that the result is for (:class:`bottleneck_opt.timing.pace.Pace`)."""

    def price(
        self, layers: Sequence[LayerSpec], shapes: Shapes, *, whole: LayerSpec, whole_shapes: Shapes
    ) -> int:  # fmt: skip
        """Nanoseconds of layers that stand in place of a whole one."""

    def price_alone(self, layers: Sequence[LayerSpec], shapes: Shapes) -> int:
        """Nanoseconds of layers that stand in no other's place."""

    def likes(self, channels: int) -> bool:
        """Whether a width wastes no time."""


@dataclass(frozen=True)
class Site:
    """One convolution or Linear, read-only: all a pass may look at.

    A grouped layer is split (:meth:`split`) and each group fitted by itself, all at one rank.

    Attributes:
        path: Module path.
        names: Every path the same module is reachable by, ``path`` first.
        layer: What it computes.
        weight: Its weight as a plain convolution's kernel ``(out, in / groups, *kernel)``, float64; a transposed
            layer's is turned round (:mod:`bottleneck_opt.kernels`).
        bias: ``(out,)``, float64, or None.
        input_shapes: Input shape of each call, batch axis included.
        cost: Its cost over all calls.
        statistics: What calibration learnt about it.
        examples: Calibration examples behind the statistics.
        fallback_curvature: Curvature of an output channel to assume where no gradient arrived.
        shrinkage: Pull of the covariance towards the identity; None lets the number of examples decide.
        output_shapes: Output shape of each call; empty when they are what ``layer`` makes of the input shapes.
        mixable_input, mixable_output: Whether a 1x1 may stand before the layer, and after it. False for a
            subclass whose forward does more with its input or output than a convolution.
        original: The module that stands there, where that is not what it computes (a weight-normalised layer computes
            a plain one); None when it is.
        whole: The site with all its channels, where this one has lost some; None when it has not.
        kept_inputs, kept_outputs: The numbers of the channels that are left, where some were lost; else empty.
        rounds: In how many rounds to improve the factors of an option that was chosen, at most.
        pacer: Says how long layers take; None where time does not matter.
    """

    path: str
    names: tuple[str, ...]
    layer: LayerSpec
    weight: Tensor
    bias: Tensor | None
    input_shapes: tuple[tuple[int, ...], ...]
    cost: Cost
    statistics: LayerStatistics
    examples: int
    fallback_curvature: float = 1.0
    shrinkage: float | None = None
    output_shapes: tuple[tuple[int, ...], ...] = ()
    mixable_input: bool = True
    mixable_output: bool = True
    original: LayerSpec | None = None
    whole: Site | None = None
    kept_inputs: tuple[int, ...] = ()
    kept_outputs: tuple[int, ...] = ()
    rounds: int = 0
    pacer: Pacer | None = None

    def price(self, layers: Sequence[LayerSpec]) -> Cost:
        """What layers in place of this one cost over all its calls."""
        cost = price_layers(layers, self.input_shapes, self.output_shapes or None)
        return replace(cost, latency=self.price_time(layers, self.input_shapes))

    def price_time(self, layers: Sequence[LayerSpec], shapes: Shapes) -> int:
        """Nanoseconds of layers with inputs of these shapes in place of the whole layer; 0 without a pacer."""
        whole = self.whole or self
        if self.pacer is None:
            return 0
        return self.pacer.price(layers, shapes, whole=whole.layer, whole_shapes=whole.input_shapes)

    @property
    def channels_second(self) -> bool:
        """Whether all that it is called with has its channels on axis 1, where torch's activations look for them."""
        return all(len(shape) == len(self.layer.kernel) + 2 for shape in self.input_shapes)

    @property
    def offset_weight(self) -> Tensor:
        """The weight as ``(out, offsets, in)``, zero between groups."""
        full = spread_groups(self.weight, self.layer.groups)
        return by_offset(full).contiguous()

    @property
    def flat_weight(self) -> Tensor:
        """The weight as ``(out, offsets * in)``, offset-major, the order of the patches."""
        return self.offset_weight.flatten(1)

    @cached_property
    def reduced(self) -> ReduceFit:
        """The fit of a 1x1 before the kernel, for a site without groups, at the ranks that can pay; made once, for all
        passes that build on it.
        """
        out, offsets, width = self.offset_weight.shape
        most = break_even(before=width, after=offsets * out)
        return fit_reduce(
            self.offset_weight, self.covariance(), self.curvature(), most=most, crossed=self.crossed()
        )  # fmt: skip

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep what several passes ask for, as long as the block runs: it is large."""
        self.__dict__["_kept"] = {}
        try:
            yield
        finally:
            for name in ("_kept", "reduced"):
                self.__dict__.pop(name, None)

    def as_consumer(self) -> Consumer:
        """Weight, covariance and curvature as :mod:`bottleneck_opt.common_factor` asks for them; without groups."""
        return lambda: (self.offset_weight, self.covariance(), self.curvature())

    def split(self) -> tuple[Site, ...]:
        """One site for each group, with that group's part of weight and statistics; itself without groups."""
        count = self.layer.groups
        return (self,) if count == 1 else tuple(self._take_group(group) for group in range(count))

    def _take_group(self, group: int) -> Site:
        layer = self.layer
        width, out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        rows = slice(group * out, (group + 1) * out)
        channels = torch.arange(group * width, (group + 1) * width, device="cpu")
        entries = (torch.arange(layer.offsets, device="cpu")[:, None] * layer.in_channels + channels).flatten()
        part = layer.named(layer.name, in_channels=width, out_channels=out, groups=1)
        bias = None if self.bias is None else self.bias[rows]
        statistics = self.statistics.take(entries, torch.arange(rows.start, rows.stop, device="cpu"))
        return replace(self, layer=part, weight=self.weight[rows], bias=bias, statistics=statistics)

    @property
    def has_gradient(self) -> bool:
        """Whether the output feels this layer at all, as far as calibration saw."""
        return self.statistics.probes > 0 and bool(self.statistics.curvature.diagonal().sum() > 0)

    def curvature(self) -> Tensor:
        """``G (out, out)``, damped; a multiple of the identity where no gradient arrived."""
        if not self.has_gradient:
            return self.weight.new_zeros(len(self.weight)).add_(self.fallback_curvature).diag()
        return damp(self.statistics.mean_curvature())

    def covariance(self) -> Tensor:
        """``S (offsets * in, offsets * in)``, shrunk; not to be written to. ValueError where it was not collected."""
        kept: dict[str, Tensor] = self.__dict__.get("_kept", {})
        if "covariance" not in kept:
            covariance = shrink_in_place(self.statistics.inputs.covariance(), self._shrinkage)
            covariance.diagonal().add_(self._rounding)
            kept["covariance"] = covariance
        return kept["covariance"]

    def crossed(self) -> Tensor:
        """``S W^T L (offsets * in, out)`` with ``G = L L^T``, for :func:`bottleneck_opt.factorization.fit_reduce`."""
        kept: dict[str, Tensor] = self.__dict__.get("_kept", {})
        if "crossed" not in kept:
            kept["crossed"] = self.covariance() @ (self.flat_weight.T @ cholesky(self.curvature()))
        return kept["crossed"]

    def output_covariance(self) -> Tensor:
        """``W S W^T (out, out)`` with the shrunk S, from the outputs themselves, so that S is not needed."""
        amount = self._shrinkage
        covariance = self.statistics.outputs.covariance() * (1 - amount)
        lifted = amount * self.statistics.inputs.variance + self._rounding
        covariance += lifted * (self.flat_weight @ self.flat_weight.T)
        return (covariance + covariance.T) / 2

    @property
    def _rounding(self) -> float:
        """What rounding leaves of the variance of inputs that never vary: without it, theirs would be noise."""
        return ROUNDING * self.statistics.inputs.power

    @property
    def _shrinkage(self) -> float:
        return choose_shrinkage(self.examples) if self.shrinkage is None else self.shrinkage

    def predict_loss(self, approximation: Tensor) -> float:
        """``tr(G (W - W~) S (W - W~)^T)``: predicted squared change of the model's output, relative to its variance.

        Args:
            approximation: ``W~ (out, offsets * in)``, offset-major.
        """
        return loss_of(self.flat_weight, approximation, self.covariance(), self.curvature())

    def corrected_bias(self, approximation: Tensor) -> Tensor:
        """``b + (W - W~) m (out,)``: the bias that keeps the mean output, the exact optimum over b.

        Args:
            approximation: ``W~ (out, offsets * in)``, offset-major.
        """
        shift = (self.flat_weight - approximation) @ self.statistics.inputs.mean
        return shift if self.bias is None else self.bias + shift


@dataclass(frozen=True)
class Weights:
    """Values for one layer: ``weight`` of ``LayerSpec.weight_shape`` (a plain kernel), ``bias (out,)`` or None."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Option:
    """One way to replace a site.

    Attributes:
        form: Shape of the replacement, such as ``reduce``.
        ranks: Its bottleneck widths.
        full_ranks: The widths at which nothing is lost; empty where something is lost at any width.
        layers: The layers in its place, first to last.
        predicted_loss: Predicted squared change of the model's output, relative to the output's variance, before any
            alternating rounds, which can only lower it.
        fill: Computes the layers' weights, in their order; called only if the option is chosen.
    """

    form: str
    ranks: tuple[int, ...]
    full_ranks: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    predicted_loss: float
    fill: Callable[[], Sequence[Weights]]


@dataclass(frozen=True)
class Skip:
    """A pass's no to a site it knows: the reason, and what the user can do about it."""

    reason: str
    advice: str = ""


@runtime_checkable
class Pass(Protocol):
    """A rewrite rule: a frozen dataclass whose fields are its options.

    :func:`bottleneck_opt.testing.check_pass` says whether one keeps what the tool relies on.
    """

    @property
    def name(self) -> str:
        """Short lower-case name, unique among passes."""

    def propose(self, site: Site) -> Sequence[Option] | Skip | None:
        """Options for a site; a Skip when it is this pass's kind but cannot be done; None when it is not its kind."""


@runtime_checkable
class ChannelPass(Protocol):
    """A rule that drops channels between two layers: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """Short lower-case name, unique among passes."""

    @property
    def counts(self) -> int:
        """How many numbers of channels to weigh against each other for each pair of layers."""

    def eliminate(self, site: Site) -> Elimination | Skip | None:
        """The order in which a site needs its input channels, with losses; a Skip when they all have to stay."""


@runtime_checkable
class SharingPass(Protocol):
    """A rule that puts one 1x1 before several layers that read one tensor: a frozen dataclass, fields are options.

    It adds a node between modules, so the result is a GraphModule; it is never among the passes used by default.
    """

    @property
    def name(self) -> str:
        """Short lower-case name, unique among passes."""

    @property
    def subsets(self) -> int:
        """Of at most this many readers every subset is tried too."""

    def share(self, sites: Sequence[Site], most: int) -> CommonBasis | Skip | None:
        """A first factor for all sites, none of which has groups, at every rank up to ``most``; or a Skip."""


AnyPass = Pass | ChannelPass | SharingPass


def rank_steps(full: int) -> tuple[int, ...]:
    """Ranks worth offering below ``full``: every one up to 32 channels, multiples of 4 up to 64, of 8 above.

    Example:
        >>> rank_steps(4), rank_steps(40)[-3:], rank_steps(80)[-3:]
        ((1, 2, 3), (28, 32, 36), (56, 64, 72))
    """
    step = 1 if full <= 32 else 4 if full <= 64 else 8
    return tuple(range(step, full, step))


def break_even(*, before: int, after: int) -> int:
    """The highest rank at which a weight ``(after, before)`` has no fewer entries than its two factors.

    Example:
        >>> break_even(before=64, after=64), break_even(before=64, after=9 * 64)
        (32, 57)
    """
    return before * after // (before + after)


def paying_ranks(*, before: int, after: int) -> tuple[int, ...]:
    """Ranks worth offering for a weight ``(after, before)``: those that save, and the full one.

    Example:
        >>> paying_ranks(before=8, after=12)
        (1, 2, 3, 4, 8)
    """
    full = min(before, after)
    return (*(rank for rank in rank_steps(full) if rank <= break_even(before=before, after=after)), full)
