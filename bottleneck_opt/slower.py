"""Options that are no faster than the layer they would replace: told apart by their structure, and left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.proposing import Priced, Proposal
from bottleneck_opt.sites import Site, Skip

_ADVICE = "allow_slower=True takes it all the same"


@dataclass(frozen=True)
class SlowOption:
    """A replacement that was timed and is no faster; nor are those of the same form with larger ranks.

    Attributes:
        layer: The layer it would replace.
        shapes: Input shape of each call of that.
        form: Its form.
        ranks: Its ranks; empty for all of this form.
        before, after: Milliseconds of the layer and of the replacement, over all calls.
    """

    layer: LayerSpec
    shapes: tuple[tuple[int, ...], ...]
    form: str
    ranks: tuple[int, ...]
    before: float
    after: float

    def covers(self, site: Site, priced: Priced) -> bool:
        """Whether an option is one of these."""
        option = priced.option
        if (site.layer.named(""), site.input_shapes, option.form) != (self.layer, self.shapes, self.form):
            return False
        return not self.ranks or all(one >= other for one, other in zip(option.ranks, self.ranks, strict=True))


def leave_out(proposals: Sequence[Proposal], slower: Sequence[SlowOption]) -> list[Proposal]:
    """The proposals without the slower options; where a pass has none left, it says so."""
    return [_leave_out(each, slower) if slower else each for each in proposals]


def _leave_out(proposal: Proposal, slower: Sequence[SlowOption]) -> Proposal:
    covers = [(p, next((each for each in slower if each.covers(proposal.site, p)), None)) for p in proposal.options]
    kept = tuple(priced for priced, cover in covers if cover is None)
    if len(kept) == len(proposal.options):
        return proposal
    named = {priced.pass_name for priced in kept}
    gone = {p.pass_name: cover for p, cover in covers if cover is not None and p.pass_name not in named}
    skips = tuple(
        (name, Skip(f"no faster here: {each.after:.3g} ms instead of {each.before:.3g} ms", _ADVICE))
        for name, each in gone.items()
    )
    return replace(proposal, options=kept, skips=(*proposal.skips, *skips))
