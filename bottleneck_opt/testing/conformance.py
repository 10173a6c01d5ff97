"""The conformance kit: ``check_pass(MyPass())`` says whether a pass keeps all promises that the tool relies on."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from bottleneck_opt.common_factor import CommonBasis
from bottleneck_opt.elimination import Elimination
from bottleneck_opt.pass_options import find_option_fault
from bottleneck_opt.registry import check_pass_kind
from bottleneck_opt.sites import AnyPass, ChannelPass, Pass, SharingPass, Skip
from bottleneck_opt.testing.answers import Question, Watch, ask, check_same_answers, read_options
from bottleneck_opt.testing.channels import check_basis, check_elimination
from bottleneck_opt.testing.faults import make_error
from bottleneck_opt.testing.options import check_options, summarise_options
from bottleneck_opt.testing.sample_layers import Sample, Shown, make_samples, show, standard_samples
from bottleneck_opt.testing.sample_models import SampleModel, residual_model
from bottleneck_opt.testing.whole_runs import Ran, run_model
from bottleneck_opt.working_copy import undisturbed

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ALONE = 2


@dataclass(frozen=True)
class Conformance:
    """What was checked; printed, it is a short text.

    Attributes:
        name: The pass.
        accepted: For each sample layer that it has an answer for, what that is.
        declined: For each other, its reason; empty where it is not its kind.
        runs: For each model that was optimised, what came of it.
        worst: Largest relative difference at full rank; None where no option claims to be exact.
    """

    name: str
    accepted: dict[str, str]
    declined: dict[str, str]
    runs: dict[str, Ran]
    worst: float | None

    def __str__(self) -> str:
        """The checks in a few lines."""
        exact = "no option claims to be exact" if self.worst is None else f"exact at full rank ({self.worst:.0e})"
        lines = [f"pass '{self.name}' keeps its promises: {exact}; costs, state, seed, options"]
        lines += [f"  {where}: {what}" for where, what in self.accepted.items()]
        strange = [where for where, reason in self.declined.items() if not reason]
        lines += [f"  {where}: declined, {reason}" for where, reason in self.declined.items() if reason]
        lines += [f"  not its kind: {'; '.join(strange)}"] if strange else []
        for where, ran in self.runs.items():
            what = f"{ran.steps} layers, {ran.share:.0%} of the multiply-adds" if ran.steps else "nothing to do"
            lines.append(f"  {where}: {what}" + ("; saved, loaded, exported, drawn" if ran.steps else ""))
        return "\n".join(lines)


def check_pass(pass_: AnyPass, *, layers: Sequence[nn.Module] | None = None) -> Conformance:
    """Check that a pass keeps all promises that the tool relies on; it takes some seconds.

    It is shown small layers (1d, 2d, 3d, strided, dilated, padded in every mode, grouped, transposed, Linear) and may
    decline them, all but one. What it offers must have the layer's output shape, lose nothing at full rank, cost what
    its description says and never more than the layer, and lose about what it predicts. It must change nothing, keep
    nothing and give the same answer again. Small models rewritten by it must save, load, export and draw.

    Args:
        pass_: A pass object.
        layers: Layers of your own to show it instead, where the standard ones are not its kind.

    Returns:
        What was checked.

    Raises:
        ConformanceError: A promise is broken; the message names the fault, the layer and what to do.
        PassError: It is no pass, or a layer cannot be used as a sample.

    Example:
        >>> from bottleneck_opt.passes.reduce import Reduce
        >>> print(str(check_pass(Reduce(), layers=[nn.Conv2d(12, 16, 3)])).splitlines()[1])
          conv 3x3 12 -> 16: 12 options (reduce)
    """
    owner = check_pass_kind(pass_, repr(pass_))
    _check_description(owner)
    with undisturbed():
        samples = standard_samples() if layers is None else make_samples(layers)
        shown = [show(sample) for sample in samples]
        accepted, declined, worst, paying = _check_layers(owner, shown)
        if not accepted:
            raise make_error(
                owner.name, "", "accepts nothing", f"it declined all of {len(samples)} sample layers",
                "Pass layers=[...] of the kind and size that it is for.",
            )  # fmt: skip
        runs = _check_models(owner, paying)
    return Conformance(owner.name, accepted, declined, runs, worst)


def _check_description(owner: AnyPass) -> None:
    """Name and options can be listed and typed."""
    if not _NAME.fullmatch(owner.name):
        raise make_error(
            owner.name, "", "bad name", f"got '{owner.name}'; expected small letters, digits and hyphens",
            "Name it like svd-linear.",
        )  # fmt: skip
    fault = find_option_fault(owner)
    if fault:
        raise make_error(
            owner.name, "", "bad options", fault,
            "A pass is a @dataclass(frozen=True) whose fields are int, float, bool, str, Literal[...] or one of them "
            "or None, each with a default of that type; a constant is a ClassVar.",
        )  # fmt: skip


def _check_layers(
    owner: AnyPass, shown: Sequence[Shown]
) -> tuple[dict[str, str], dict[str, str], float | None, list[Sample]]:
    """What was answered to each question, the worst difference at full rank, and the samples that a run can save on."""
    questions = _make_questions(owner, shown)
    accepted: dict[str, str] = {}
    declined: dict[str, str] = {}
    gaps: list[float] = []
    paying: list[Sample] = []
    for question in questions:
        watch = Watch(owner.name, question)
        answer = ask(owner.name, owner, question)
        watch()
        if answer is None or isinstance(answer, Skip) or (isinstance(owner, Pass) and not _as_list(owner, answer)):
            declined[question.where] = answer.reason if isinstance(answer, Skip) else ""
            continue
        accepted[question.where], pays, gap = _check_answer(owner, question, answer, watch)
        gaps += [] if gap is None else [gap]
        paying += [question.shown[0].sample] if pays else []
    check_same_answers(owner.name, owner, questions)
    return accepted, declined, max(gaps, default=None), paying


def _make_questions(owner: AnyPass, shown: Sequence[Shown]) -> list[Question]:
    if isinstance(owner, Pass):
        return [
            Question(
                each.sample.name, [each], partial(_ask_to_propose, each),
                partial(read_options, owner.name, f"'{each.sample.name}'"),
            )
            for each in shown
        ]  # fmt: skip
    if isinstance(owner, ChannelPass):
        return [Question(each.sample.name, [each], partial(_ask_to_eliminate, each), _read_order) for each in shown]
    plain = [each for each in shown if each.site.layer.groups == 1]
    return [
        Question(f"twice {each.sample.name}", [each, each], partial(_ask_to_share, each), _read_basis) for each in plain
    ]


def _ask_to_propose(shown: Shown, asked: Pass) -> Any:
    return asked.propose(shown.site)


def _ask_to_eliminate(shown: Shown, asked: ChannelPass) -> Any:
    return asked.eliminate(shown.site)


def _ask_to_share(shown: Shown, asked: SharingPass) -> Any:
    return asked.share([shown.site, shown.site], shown.site.layer.in_channels)


def _read_order(found: Elimination) -> list[Tensor]:
    return [found.order.double(), found.losses]


def _read_basis(found: CommonBasis) -> list[Tensor]:
    return [found.projection, found.losses]


def _as_list(owner: AnyPass, answer: Any) -> list[Any]:
    if not isinstance(answer, Sequence):
        raise make_error(
            owner.name, "", "impossible answer", f"expected a list of options, got a {type(answer).__name__}",
            "Return a list of bottleneck_opt.sites.Option, a Skip, or None.",
        )  # fmt: skip
    return list(answer)


def _check_answer(
    owner: AnyPass, question: Question, answer: Any, watch: Watch
) -> tuple[str, bool, float | None]:  # fmt: skip
    """What it is in words, whether it can save something, and the difference at full rank."""
    first = question.shown[0]
    if isinstance(owner, ChannelPass):
        check_elimination(owner.name, f"'{question.where}'", answer, first)
        return "an order of its channels", False, None
    if isinstance(owner, SharingPass):
        check_basis(
            owner.name, f"'{question.where}'", answer, question.shown, first.site.layer.in_channels
        )  # fmt: skip
        return "a common first factor", False, None
    found = check_options(owner.name, first, answer, watch)
    forms = ", ".join(summarise_options(answer))
    return f"{found.options} options ({forms})", found.pays, found.full_rank


def _check_models(owner: AnyPass, paying: Sequence[Sample]) -> dict[str, Ran]:
    """Whole runs: on a network, and on layers alone where something can be saved, one of each kind."""
    by_kind = {type(sample.layer): sample for sample in reversed(paying)}
    models = [residual_model(), *(_as_model(sample) for sample in list(by_kind.values())[:_ALONE])]
    runs: dict[str, Ran] = {}
    for model in models:
        runs[model.name] = run_model(owner, model, thoroughly=True)
    if not any(ran.steps for ran in runs.values()):
        raise make_error(
            owner.name, "", "saves nothing", "none of its options was ever worth using on the sample models",
            "Offer ranks at which the layers cost less than what they replace, or pass layers=[...] of the size that "
            "it is for.",
        )  # fmt: skip
    return runs


def _as_model(sample: Sample) -> SampleModel:
    def make() -> nn.Module:
        return nn.Sequential(copy.deepcopy(sample.layer), nn.Tanh()).eval()

    return SampleModel(f"{sample.name} alone", make, sample.inputs)
