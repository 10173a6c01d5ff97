"""One rewrite close up: the layer that went, what stands in its place, the sum behind it, and where it sits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bottleneck_opt.diagrams.arithmetic import MEANING, product_text, sentence
from bottleneck_opt.diagrams.cards import Bar, Block, Card, Cell, Figure, Grid, Legend, Strip, centered
from bottleneck_opt.diagrams.colors import Theme
from bottleneck_opt.diagrams.composing import Scale, make_card
from bottleneck_opt.diagrams.folding import Bundle, join_steps
from bottleneck_opt.diagrams.heat import MACS, Measure
from bottleneck_opt.diagrams.layout import Box, Line, box_parts, lay_out
from bottleneck_opt.diagrams.picture import Change, Part, Picture
from bottleneck_opt.diagrams.tags import rank_words
from bottleneck_opt.diagrams.wording import (
    CHANGE_MEANING,
    ascii_text,
    change_text,
    count_text,
    elide_end,
    elide_middle,
    loss_text,
    share_text,
    shrink_text,
)
from bottleneck_opt.errors import InputError
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.plan import Sharing, Step

_LINE_LIMIT = 140
_MOST_CELLS = 60
_MOST_NEIGHBOURS = 8
_MOST_NAMES = 3


@dataclass(frozen=True)
class Rewrite:
    """What is looked at.

    Attributes:
        path: What the user asked for.
        steps: The rewritten layer, or all that read a shared bottleneck.
        sharing: That bottleneck.
    """

    path: str
    steps: tuple[Step, ...]
    sharing: Sharing | None

    def has(self, part: Part) -> bool:
        """Whether a part belongs to it; of a layer that is called several times, the first call."""
        if part.change is Change.SAME or part.unit.head.call:
            return False
        return part.step in self.steps or (part.sharing is not None and part.sharing == self.sharing)


def find_rewrite(outcome: Outcome, path: str | None) -> Rewrite:
    """The rewrite at a path.

    Raises:
        InputError: The layer there was not rewritten; the message says why, or names the nearest that were.
    """
    for step in outcome.plan.steps:
        if path in (step.path, *step.names):
            return Rewrite(step.path, (step,), next((s for s in outcome.plan.sharings if step.path in s.members), None))
    for sharing in outcome.plan.sharings:
        if path == sharing.path:
            return Rewrite(path, tuple(step for step in outcome.plan.steps if step.path in sharing.members), sharing)
    raise InputError(_why_not(outcome, path))


def _why_not(outcome: Outcome, path: str | None) -> str:
    known = [*(step.path for step in outcome.plan.steps), *(sharing.path for sharing in outcome.plan.sharings)]
    if not known:
        return "draw('pass'): no layer was rewritten. Draw 'before', or give optimize a smaller budget."
    if path is None:
        return f"draw('pass'): expected the path of a rewritten layer, such as draw('pass', {known[0]!r})."
    for entry in outcome.skipped:
        if entry.path == path:
            return f"draw('pass', {path!r}): this layer was left alone: {entry.reason}. Rewritten: {_names(known)}."
    close = difflib.get_close_matches(path, known, n=_MOST_NAMES, cutoff=0.3) or known[:_MOST_NAMES]
    return f"draw('pass', {path!r}): no layer of that path was rewritten. Nearest: {', '.join(map(repr, close))}."


def _names(known: Sequence[str]) -> str:
    more = [f"{len(known) - _MOST_NAMES} more"] if len(known) > _MOST_NAMES else []
    return ", ".join([*map(repr, known[:_MOST_NAMES]), *more])


def compose_rewrite(
    outcome: Outcome, picture: Picture, rewrite: Rewrite, *, theme: Theme, measure: Measure = MACS
) -> Figure:
    """The figure of one rewrite.

    Args:
        outcome: What was done.
        picture: Both models.
        rewrite: The one to show.
        theme: The colours.
        measure: What fill and bars say.
    """
    subject = [part for part in picture.parts if rewrite.has(part)]
    removed = [box_parts((part,)) for part in subject if part.change is Change.REMOVED]
    added = [box_parts((part,)) for part in subject if part.change is Change.ADDED]
    above, below = _neighbours(picture, subject)
    boxes = [*above, *removed, *added, *below]
    shown = {part.key for box in boxes for part in box.parts}
    edges = tuple(edge for edge in picture.edges if edge.source in shown and edge.target in shown)
    lines = lay_out(replace(picture, edges=edges), tuple(boxes)).lines
    longest = max(measure.of(box.parts) for box in (*removed, *added))
    scale = Scale(measure, measure.whole(picture), longest)
    items = (
        *(make_card(box, scale) for box in above),
        *(_detailed(box, scale) for box in (*removed, *added)),
        *(make_card(box, scale) for box in below),
    )
    heading = _heading(outcome, picture, rewrite, subject, measure)
    marked = [_mark(line, removed, added) for line in lines]
    marked.sort(key=lambda line: line.change is not Change.REMOVED)
    return Figure(heading, items, tuple(marked), theme, ordered=True)


def _neighbours(picture: Picture, subject: Sequence[Part]) -> tuple[list[Box], list[Box]]:
    """What the subject reads, and what reads it."""
    own = {part.key for part in subject}
    sources = {edge.source for edge in picture.edges if edge.target in own and edge.source not in own}
    targets = {edge.target for edge in picture.edges if edge.source in own and edge.target not in own}
    bundles = [bundle for bundle in join_steps(picture.parts) if not own & {part.key for part in bundle}]
    return _boxes(bundles, sources), _boxes(bundles, targets - sources)


def _boxes(bundles: Iterable[Bundle], keys: set[str]) -> list[Box]:
    return [box_parts(bundle) for bundle in bundles if keys & {part.key for part in bundle}][:_MOST_NEIGHBOURS]


def _detailed(box: Box, scale: Scale) -> Card:
    """A card with the product behind its multiply-adds."""
    card = make_card(box, scale)
    node = box.first.unit.head
    if node.layer is None:
        return card
    product = Grid(((Cell(product_text(node), bold=True),),))
    bars = tuple(block for block in card.blocks if isinstance(block, Bar))
    return replace(card, blocks=(*card.blocks[: len(card.blocks) - len(bars)], product, *bars))


def _mark(line: Line, removed: Sequence[Box], added: Sequence[Box]) -> Line:
    ends = {line.source, line.target}
    for boxes, change in ((removed, Change.REMOVED), (added, Change.ADDED)):
        if ends & {box.key for box in boxes}:
            return replace(line, change=change)
    return line


def _heading(
    outcome: Outcome, picture: Picture, rewrite: Rewrite, subject: Sequence[Part], measure: Measure
) -> tuple[Block, ...]:
    removed = [part.unit.head for part in subject if part.change is Change.REMOVED]
    added = [part.unit.head for part in subject if part.change is Change.ADDED]
    before, after = sum(node.cost.macs for node in removed), sum(node.cost.macs for node in added)
    title = f"{elide_middle(ascii_text(rewrite.path), 40)} ({_kind(rewrite)})"
    saved = f"{change_text(before, after).lstrip('+-')} {'fewer' if after < before else 'more'} multiply-adds"
    quiet = [*_notes(outcome, rewrite), f"{MEANING}; predicted loss: {CHANGE_MEANING}",
             _share(before, after, outcome), _place(subject)]  # fmt: skip
    return (
        centered(f"{title}: {saved}", size=20, bold=True),
        centered(sentence(removed, added), size=13),
        *(centered(elide_end(text, _LINE_LIMIT), size=11) for text in _fit(rewrite)),
        *(centered(elide_end(ascii_text(text), _LINE_LIMIT), quiet=True) for text in quiet if text),
        Strip(tuple(_strip(picture, rewrite, measure))),
        Legend((), measure.words),
    )


def _fit(rewrite: Rewrite) -> tuple[str, str]:
    """What became of what, at which rank and loss, and what that does to the parameters."""
    steps, sharing = rewrite.steps, rewrite.sharing
    before = sum(step.before.params for step in steps)
    after = sum(step.after.params for step in steps) + (sharing.cost.params if sharing else 0)
    params = f"{shrink_text(count_text(before), count_text(after))} parameters ({change_text(before, after)})"
    loss = f"predicted loss {loss_text(sum(step.predicted_loss for step in steps))}"
    rank = f"rank {sharing.rank} of {sharing.full_rank}" if sharing else rank_words(steps)
    return f"{_becomes(rewrite)}, {rank}", f"{loss}, {params}"


def _kind(rewrite: Rewrite) -> str:
    steps = rewrite.steps
    return steps[0].original.label if len(steps) == 1 else f"{len(steps)} layers"


def _becomes(rewrite: Rewrite) -> str:
    if len(rewrite.steps) > 1:
        return f"one 1x1 before {len(rewrite.steps)} layers"
    step = rewrite.steps[0]
    return f"{step.original.label} -> {' + '.join(layer.label for layer in step.layers)}"


def _notes(outcome: Outcome, rewrite: Rewrite) -> Iterable[str]:
    """What a reader of this one rewrite must know."""
    passes = sorted({step.pass_name for step in rewrite.steps})
    yield f"made by the pass {', '.join(passes)}"
    if rewrite.sharing is not None:
        yield f"the 1x1 at {rewrite.sharing.path} is shared by {', '.join(rewrite.sharing.members)}"
    paths = {step.path for step in rewrite.steps}
    for each in outcome.plan.selections:
        if paths & {each.producer, each.consumer}:
            gone = each.channels - len(each.kept)
            yield f"{gone} of the {each.channels} channels between '{each.producer}' and '{each.consumer}' are dropped"
    calls = max((node.calls for path in paths for node in outcome.before.structure.calls_of(path)), default=1)
    if calls > 1:
        yield f"called {calls} times: the first call is shown; parameters are there once"


def _place(subject: Sequence[Part]) -> str:
    stack = [(path, kind) for path, kind in subject[0].unit.head.stack if path]
    return f"where it is: {' > '.join(f'{path} ({kind})' for path, kind in stack)}" if stack else ""


def _share(before: int, after: int, outcome: Outcome) -> str:
    whole = outcome.before.cost.macs
    if not whole:
        return ""
    share = shrink_text(share_text(before / whole), share_text(after / whole))
    return f"share of the original model's multiply-adds: {share}"


def _strip(picture: Picture, rewrite: Rewrite, measure: Measure) -> Iterable[tuple[float, bool]]:
    """The original model's parts in a row, neighbours put together where there are too many to see."""
    whole = measure.whole(picture) or 1.0
    parts = [part for part in picture.parts if part.change is not Change.ADDED and measure.of([part])]
    size = -(-len(parts) // _MOST_CELLS) or 1
    for start in range(0, len(parts), size):
        chunk = parts[start : start + size]
        yield measure.of(chunk) / whole, any(rewrite.has(part) for part in chunk)
