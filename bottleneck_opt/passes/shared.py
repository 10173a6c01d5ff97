"""One 1x1 that reduces the channels for several layers that read the same tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bottleneck_opt.common_factor import CommonBasis, fit_common
from bottleneck_opt.sites import Site, Skip


@dataclass(frozen=True)
class Shared:
    """One 1x1 (in -> r) for several layers that read one tensor, each with r inputs left; exact at r = in.

    It stands between modules, so the result is a GraphModule: it is used only when asked for by name. The 1x1 carries
    no bias, so that the zero padding of every reader commutes with it. Where it could stand, ``select`` drops no
    channels that its readers read or make, whether it is chosen in the end or not.

    Attributes:
        subsets: Of at most this many readers every subset is tried too; of more only all of them together.

    Source: stacked two-sided reduced-rank regression, the readers' curvatures as blocks of one.
    """

    name: ClassVar[str] = "shared"
    subsets: int = 3

    def share(self, sites: Sequence[Site], most: int) -> CommonBasis | Skip | None:
        """The common first factor at every rank up to ``most``."""
        return fit_common([site.as_consumer() for site in sites], most)
