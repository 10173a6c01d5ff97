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
            predicted, factors 1 to 1.6 times; of a whole choice made with 3, the KL was three times that without
            dropping at 0.75 of the multiply-adds. Mean KL over nine runs with 3, 10 and 30, at 0.75, 0.5, 0.33, 0.25
            and 0.15: 1.2e-4, 4.4e-5, 4.1e-5; 5.7e-4, 3.2e-4, 2.9e-4; 1.03e-3, 0.84e-3, 0.78e-3; 1.83e-3, 1.69e-3,
            1.58e-3; 6.1e-3, 4.9e-3, 5.0e-3. A ResNet gains a little with 10 (five runs), a denoiser nothing (three).

    Source: He et al. 2017 (channels chosen for the consumer's output), in the metric of the network's output.
    """

    name: ClassVar[str] = "select"
    counts: int = 16
    caution: float = 10.0

    def eliminate(self, site: Site) -> Elimination | Skip | None:
        """The order in which the site needs its input channels."""
        if site.layer.in_channels == 1:
            return Skip("one input channel: there is nothing to drop")
        if site.statistics.inputs.outer is None:
            width = len(site.statistics.inputs.total)
            return Skip(f"its patches have {width} entries: the {width} x {width} covariance is too large to fit")
        found = eliminate_channels(site.offset_weight, site.covariance(), site.curvature())
        return Elimination(found.order, found.losses * self.caution)
