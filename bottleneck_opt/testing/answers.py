"""Ask a pass, and see that it changes nothing, keeps nothing and answers the same again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from bottleneck_opt.errors import tell
from bottleneck_opt.sites import Option, Skip
from bottleneck_opt.testing.faults import make_error
from bottleneck_opt.testing.options import fill
from bottleneck_opt.testing.sample_layers import Shown

_Kind = TypeVar("_Kind")
_SAME = 1e-9


@dataclass(frozen=True)
class Question:
    """One question to a pass.

    Attributes:
        where: What it is about, in words.
        shown: The layers it is about.
        ask: Asks a pass.
        read: The numbers behind an answer that is no Skip, all that has to be the same next time.
    """

    where: str
    shown: Sequence[Shown]
    ask: Callable[[Any], Any]
    read: Callable[[Any], Sequence[Tensor]]


def copy_pass(owner: _Kind) -> _Kind:
    """A pass with the same options and nothing else: what it keeps beside its fields is not in the copy."""
    if not is_dataclass(owner) or isinstance(owner, type):
        return copy.deepcopy(owner)
    made: _Kind = type(owner)(**{field.name: getattr(owner, field.name) for field in fields(owner) if field.init})
    return made


class Watch:
    """Remembers what a pass is shown, and says when it was changed."""

    def __init__(self, name: str, question: Question) -> None:
        self._name, self._question = name, question
        self._before = _look(question.shown)

    def __call__(self) -> None:
        """Raise ConformanceError when anything is not what it was."""
        for what, tensor in _look(self._question.shown).items():
            if not torch.equal(tensor, self._before[what]):
                raise make_error(
                    self._name, f"'{self._question.where}'", "changes what it is shown", f"{what} is not what it was",
                    "A pass only looks: clone a tensor before changing it, and use no functions that end with _.",
                )  # fmt: skip


def ask(name: str, owner: Any, question: Question) -> Any:
    """A pass's answer to a question.

    Raises:
        ConformanceError: It raised.
    """
    try:
        return question.ask(owner)
    except Exception as error:  # a stranger's pass can raise anything
        raise make_error(
            name, f"'{question.where}'", "raises", tell(error),
            "Answer None to what is not its kind, and Skip(reason) to what it cannot do.",
        ) from error  # fmt: skip


def _look(shown: Sequence[Shown]) -> dict[str, Tensor]:
    """Copies of all tensors of sites and models."""
    found: dict[str, Tensor] = {}
    for number, each in enumerate(shown):
        for what, tensor in _tensors(each):
            found[f"{what} of layer {number + 1}" if len(shown) > 1 else what] = tensor.clone()
    return found


def _tensors(shown: Shown) -> Iterator[tuple[str, Tensor]]:
    site = shown.site
    yield "site.weight", site.weight
    if site.bias is not None:
        yield "site.bias", site.bias
    yield "site.statistics.curvature", site.statistics.curvature
    for what, moments in (("inputs", site.statistics.inputs), ("outputs", site.statistics.outputs)):
        yield f"site.statistics.{what}.total", moments.total
        if isinstance(moments.outer, Tensor):
            yield f"site.statistics.{what}.outer", moments.outer
    for what, value in shown.subject.original.state_dict().items():
        yield f"the model's {what}", value


def check_same_answers(name: str, owner: Any, questions: Sequence[Question]) -> None:
    """Ask all questions, then a copy of the pass the same in another order, with other random numbers at hand.

    Raises:
        ConformanceError: An answer was not the same the second time, or the pass changed what it was shown.
    """
    torch.manual_seed(1)
    first = [_read(name, owner, question) for question in questions]
    torch.manual_seed(2)
    again = [_read(name, copy_pass(owner), question) for question in reversed(questions)]
    torch.manual_seed(3)
    once_more = [_read(name, owner, question) for question in reversed(questions)]
    for question, *answers in zip(questions, first, reversed(again), reversed(once_more), strict=True):
        for other in answers[1:]:
            if not _agree(answers[0], other):
                raise make_error(
                    name, f"'{question.where}'", "keeps state",
                    "asked again in another order, or as a copy with the same options, it answers something else",
                    "Keep nothing between calls, in the pass or in its module, and draw random numbers from a "
                    "torch.Generator that is made and seeded in the call.",
                )  # fmt: skip


def _read(name: str, owner: Any, question: Question) -> Sequence[Tensor]:
    watch = Watch(name, question)
    answer = ask(name, owner, question)
    numbers = [] if answer is None or isinstance(answer, Skip) else [each.clone() for each in question.read(answer)]
    watch()
    return numbers


def _agree(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(
        each.shape == again.shape and torch.allclose(each, again, rtol=_SAME, atol=_SAME) for each, again in pairs
    )


def read_options(name: str, where: str, options: Sequence[Option]) -> list[Tensor]:
    """Ranks, losses and, of the first, middle and last option, weights."""
    if not options:
        return []
    chosen = {0, len(options) // 2, len(options) - 1}
    weights = [each for index in sorted(chosen) for each in fill(name, where, options[index])]
    ranks = [torch.as_tensor(each.ranks, device="cpu").double() for each in options]
    losses = [torch.as_tensor(each.predicted_loss, device="cpu").double() for each in options]
    values = [tensor for each in weights for tensor in (each.weight, each.bias) if tensor is not None]
    return [*ranks, *losses, *(each.detach().double() for each in values)]
