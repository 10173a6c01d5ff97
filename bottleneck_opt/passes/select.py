"""Keep some of the channels between two layers, and let the first no longer make the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bottleneck_opt.elimination import Elimination, eliminate_channels
from bottleneck_opt.sites import Site, Skip


@dataclass(frozen=True)
class Select:
    """Drop input channels and the filters that made them; adds no layer. What is left is fitted to the whole again.

    Attributes:
        counts: How many numbers of channels to weigh against each other for each pair of layers.
        caution: What predicted losses are multiplied by before they compete with those of other passes. A channel that
            is gone is missed at many positions in the same way, which the prediction takes for independent errors:
            on a plain VGG of digits, dropping half the channels of one link changed the output 2 to 4 times as much as
            predicted, factors 1 to 1.6 times. With 3, at 0.15 of the multiply-adds, the output changed by 0.65 %; with
            1, by 1.1 %; without dropping channels, by 1.1 %.

    Source: He et al. 2017 (channels chosen for the consumer's output), in the metric of the network's output.
    """

    name: ClassVar[str] = "select"
    counts: int = 16
    caution: float = 3.0

    def eliminate(self, site: Site) -> Elimination | Skip | None:
        """The order in which the site needs its input channels."""
        if site.layer.in_channels == 1:
            return Skip("one input channel: there is nothing to drop")
        if site.statistics.inputs.outer is None:
            width = len(site.statistics.inputs.total)
            return Skip(f"its patches have {width} entries: the {width} x {width} covariance is too large to fit")
        found = eliminate_channels(site.offset_weight, site.covariance(), site.curvature())
        return Elimination(found.order, found.losses * self.caution)
