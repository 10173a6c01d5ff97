"""Name every convolution and Linear that stays as it was, with its reason and its share of the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.graph import Cost, FunctionalLayer, Traced
from bottleneck_opt.layers import describe_layer
from bottleneck_opt.outcome import Skipped
from bottleneck_opt.proposing import Priced, Proposal
from bottleneck_opt.sites import Skip

UNUSED = Skip("not needed to meet the budget: others lose less", "a smaller budget may reach it")


def list_skipped(
    working: nn.Module, traced: Traced, candidates: Candidates, proposals: Sequence[Proposal],
    chosen: Sequence[Priced | None], *, unused: Skip = UNUSED,
) -> tuple[Skipped, ...]:  # fmt: skip
    """Everything left alone, largest share of the model's MACs first; ``unused`` says why where it need not be."""
    reasons: dict[str, tuple[Skip, tuple[str, ...]]] = {path: (skip, ()) for path, skip in candidates.refused.items()}
    for proposal, option in zip(proposals, chosen, strict=True):
        if option is None and proposal.site.whole is None:
            reasons[proposal.site.path] = _why_not(proposal, unused)
    skipped = [_skipped(working, traced, path, *reason) for path, reason in reasons.items()]
    skipped += _list_functions(working, traced)
    return tuple(sorted(skipped, key=lambda each: (-each.share, each.path)))


def _list_functions(working: nn.Module, traced: Traced) -> list[Skipped]:
    """The convolutions and matrix products that the model's code calls as functions: there is no module to replace."""
    found: dict[tuple[str, str], list[FunctionalLayer]] = {}
    for call in traced.functional:
        found.setdefault((call.weight or f"{call.path or 'the model'}.{call.operation}", call.source), []).append(call)
    trained = {name for name, _ in working.named_parameters()}
    return [
        _skipped_function(traced, name, source, calls, trained=name in trained)
        for (name, source), calls in found.items()
    ]


def _skipped_function(
    traced: Traced, name: str, source: str, calls: Sequence[FunctionalLayer], *, trained: bool
) -> Skipped:
    macs = sum(call.macs for call in calls)
    on = "a parameter" if trained else "a fixed tensor" if calls[0].weight else "a computed tensor"
    advice = "bo.to_graph_module(model, inputs) makes it a layer" if trained else ""
    share = macs / traced.cost.macs if traced.cost.macs else 0.0
    reason = f"{calls[0].operation} as a function on {on}, at {source}: no module to replace"
    return Skipped(name, calls[0].operation, reason, advice, Cost(macs=macs), share)


def main_reasons(
    working: nn.Module, traced: Traced, candidates: Candidates, proposals: Sequence[Proposal], most: int = 3
) -> str:
    """What keeps most of the multiply-adds from being rewritten, with what to do about it; empty when nothing does."""
    refused = [_skipped(working, traced, path, skip, ()) for path, skip in candidates.refused.items()]
    unable = [_skipped(working, traced, p.site.path, *_why_not(p)) for p in proposals if not p.options]
    shares: Counter[tuple[str, str]] = Counter()
    for each in (*refused, *unable, *_list_functions(working, traced)):
        shares[each.reason, each.advice] += each.cost.macs
    told = [(reason, advice, macs) for (reason, advice), macs in shares.most_common(most) if macs]
    if not traced.cost.macs or not told:
        return ""
    parts = [
        f"{macs / traced.cost.macs:.1%}: {reason}{f' ({advice})' if advice else ''}" for reason, advice, macs in told
    ]
    return f"Left alone, by share of the MACs: {'; '.join(parts)}."


def _why_not(proposal: Proposal, unused: Skip = UNUSED) -> tuple[Skip, tuple[str, ...]]:
    if proposal.options:
        return unused, tuple(dict.fromkeys(option.pass_name for option in proposal.options))
    if not proposal.skips:
        return Skip(f"no chosen pass handles a {proposal.site.layer.label}", "add a pass with passes="), ()
    texts = dict.fromkeys(skip.reason for _, skip in proposal.skips)
    advice = next((skip.advice for _, skip in proposal.skips if skip.advice), "")
    return Skip("; ".join(texts), advice), tuple(name for name, _ in proposal.skips)


def _skipped(working: nn.Module, traced: Traced, path: str, skip: Skip, passes: tuple[str, ...]) -> Skipped:
    module = working.get_submodule(path)
    described = describe_layer(module)
    cost = sum((node.cost for node in traced.structure.calls_of(path)), Cost())
    share = cost.macs / traced.cost.macs if traced.cost.macs else 0.0
    operation = type(module).__name__ if described is None else described.label
    return Skipped(path, operation, skip.reason, skip.advice, cost, share, passes)
