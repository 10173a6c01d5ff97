"""What layers cost in nanoseconds of the whole model's time, in all settings at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.timing.layer_times import LayerTimes, Shapes
from bottleneck_opt.timing.setting import Timing


@dataclass(frozen=True)
class Pace:
    """Prices layers by what they save in the setting where they save least.

    What replacements save at least in every setting adds up to what the model saves at least in every setting, so that
    a budget is kept in all of them.

    Attributes:
        times: Times of single layers.
        timings: The settings.
        whole: Nanoseconds of one call of the original in each of them.
        scales: What a nanosecond of each setting counts: with a budget relative to the original the same share of its
            time counts the same in all of them.
        batch: Examples in the example input.
    """

    times: LayerTimes
    timings: tuple[Timing, ...]
    whole: tuple[float, ...]
    scales: tuple[float, ...]
    batch: int

    @property
    def total(self) -> int:
        """Nanoseconds that the original counts as."""
        return round(self.join(self.whole))

    def join(self, times: Sequence[float]) -> float:
        """Nanoseconds in each setting as one number, that of the worst of them."""
        return max(time * scale for time, scale in zip(times, self.scales, strict=True))

    def price(self, layers: Sequence[LayerSpec], shapes: Shapes, *, whole: LayerSpec, whole_shapes: Shapes) -> int:
        """Nanoseconds of the layers that stand in place of a whole one.

        Args:
            layers: First to last.
            shapes: Input shape of each call.
            whole: The layer as it was.
            whole_shapes: Input shape of each call of that.
        """
        before = self._predict((whole,), whole_shapes)
        after = self._predict(layers, shapes)
        saved = min((b - a) * scale for b, a, scale in zip(before, after, self.scales, strict=True))
        return round(before[0] * self.scales[0] - saved)

    def price_alone(self, layers: Sequence[LayerSpec], shapes: Shapes) -> int:
        """Nanoseconds of layers that stand in no other's place."""
        return round(self.join(self._predict(layers, shapes)))

    def _predict(self, layers: Sequence[LayerSpec], shapes: Shapes) -> list[int]:
        return [self.times.predict(layers, timing.fit_shapes(shapes, self.batch), timing) for timing in self.timings]

    def likes(self, channels: int) -> bool:
        """Whether a width wastes nothing of the processor's vectors: a smaller one than the next would be as slow."""
        return channels <= self.times.width or channels % self.times.width == 0
