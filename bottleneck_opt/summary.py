"""What a careful user should know about a finished run, in sentences."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence

import torch

from bottleneck_opt.calibrating import hash_data, hash_weights
from bottleneck_opt.choosing import Choice
from bottleneck_opt.diagrams.wording import loss_text
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.graph_view import GraphView
from bottleneck_opt.joint import Joint
from bottleneck_opt.making_sites import name_unfelt
from bottleneck_opt.outcome import Provenance
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import Proposal
from bottleneck_opt.refitting import Refitted
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Stepping
from bottleneck_opt.subject import Subject
from bottleneck_opt.version import __version__
from bottleneck_opt.working_copy import model_device

ENOUGH = 0.1
WORTH_TELLING = 0.005


def list_checks(plan: Plan, after: Traced, view: GraphView) -> tuple[str, ...]:
    """What was checked and held."""
    layers = sum(len(step.layers) for step in plan.steps) + len(plan.sharings)
    checks = ["outputs have the same shapes and are finite"]
    if layers:
        checks.append(f"all {layers} new layers were called as often as the layers they replace")
    if view.graph_module is not None:
        checks.append(f"rewritten module and rewritten graph agree on a new input (difference {view.difference:.1e})")
    if after.cost.macs == plan.after.macs and after.cost.params == plan.after.params:
        checks.append("a new recording of the rewritten model costs exactly what was planned")
    return tuple(checks)


def list_notes(
    subject: Subject, choice: Choice, refitted: Refitted, *,
    recorded: Cost, budget: str, measured: float | None,
) -> tuple[str, ...]:  # fmt: skip
    """Where numbers come from, what was assumed, and what was not reached."""
    notes = [*subject.notes, *subject.traced.notes]
    notes.extend(_unfelt_notes(choice.proposals))
    notes.extend(_refit_notes(refitted))
    if not subject.data.noise:
        notes.extend(list_enough_notes(refitted, subject.data.examples))
    if measured is None:
        notes.append("the output has no floating values that vary: its change could not be measured")
    allocation = choice.allocation
    if not choice.changed:
        notes.append("nothing was rewritten: the result is an unchanged copy; result.skipped says why for each layer")
    if not allocation.met:
        ratio = allocation.cost.macs / max(subject.traced.cost.macs, 1)
        notes.append(f"the budget {budget} is out of reach: this is the smallest plan, {ratio:.1%} of the MACs")
    planned = allocation.cost
    if (planned.macs, planned.params) != (recorded.macs, recorded.params):
        notes.append(
            f"planned {planned.macs:,} MACs and {planned.params:,} params, "
            f"recorded {recorded.macs:,} and {recorded.params:,} after rewriting"
        )
    if allocation.gap > 0:
        notes.append(f"the choice of ranks may lose up to {allocation.gap:.2e} more than the best choice")
    if allocation.thinned:
        lists = f"{allocation.thinned} list{'s' if allocation.thinned > 1 else ''} of joint options"
        notes.append(f"{lists} grew too long and kept the best at each cost: near the best choice, not proven")
    return tuple(notes)


def list_step_notes(stepping: Stepping) -> tuple[str, ...]:
    """What fresh statistics on the way to the budget did, or why there were none."""
    if stepping.skipped:
        return (f"compressed in one step: {stepping.skipped}",)
    if stepping.one is None or stepping.several is None:
        return ()
    kept = "were kept" if stepping.kept else "were not kept"
    return (
        f"compressed in steps: on held-out examples the output changed by {loss_text(stepping.several)}, in one "
        f"step by {loss_text(stepping.one)}; the steps {kept}",
    )


def list_joint_notes(joint: Joint, *, mixed: bool) -> tuple[str, ...]:
    """What fitting all layers together did, or why it was not done.

    Args:
        joint: What came of it.
        mixed: Whether mixes were fitted to, those of the held-out examples among them.
    """
    if joint.skipped:
        return (f"the layers were not fitted together to the model's outputs: {joint.skipped}",)
    if not joint.weights and not joint.before:
        return ()
    if not joint.weights:
        return ("fitting all layers together to the original's outputs did not help on the held-out examples",)
    judges = "examples of which only mixes were fitted to" if mixed else "held-out examples"
    part = f" on {joint.examples} of the examples, which it can do more often than on all" if joint.examples else ""
    return (
        f"{len(joint.weights)} layers, rewritten or not, fitted together to the original's outputs{part}: on {judges} "
        f"the output's change fell from {loss_text(joint.before)} to {loss_text(joint.after)}",
    )


def lacks_data(subject: Subject, statistics: Statistics) -> bool:
    """Whether the statistics are of real data and there is none to go on with."""
    return subject.data.noise and statistics.origin is not None and not statistics.origin.noise


def list_data_notes(subject: Subject, statistics: Statistics) -> list[str]:
    """What the layers were fitted to, where that is not plainly the calibration data."""
    notes = []
    origin = statistics.origin
    if origin is not None:
        notes.append(f"fitted with statistics= taken earlier of {origin.data}, seed {origin.seed}")
    if statistics.undifferentiable:
        notes.append(f"the model could not be differentiated: {statistics.undifferentiable}")
    if lacks_data(subject, statistics):
        notes.append(
            "no calibration= was given beside statistics=: no layer was refitted to the original's outputs, and the "
            "output change was measured on noise"
        )
    elif subject.data.noise:
        notes.append(
            "calibrated on noise, and measured on noise: on real inputs the output can change far more. A few inputs "
            "of your own (calibration=) keep more accuracy; evaluate= measures it"
        )
    return notes


def _refit_notes(refitted: Refitted) -> list[str]:
    """How many layers were fitted again to the original's outputs, and why the others were not."""
    kept = sum(not each.accepted for each in refitted.corrections)
    reasons = Counter(refitted.skipped.values())
    if kept:
        reasons["it did not help on the held-out examples"] = kept
    if not reasons:
        return []
    why = "; ".join(f"{count} because {reason}" for reason, count in reasons.items())
    return [
        f"refitted to the original's outputs: {len(refitted.corrections) - kept} layers; left as first fitted: {why}"
    ]


def list_enough_notes(refitted: Refitted, examples: int) -> list[str]:
    """Whether the examples were enough, by how much worse half of them did on those held out."""
    made = [each for each in refitted.corrections if each.accepted]
    after, halved = sum(each.after for each in made), sum(each.halved for each in made)
    if not after > 0 or not math.isfinite(halved):
        return []
    worse = halved / after - 1
    verdict = f"{examples} examples were enough" if worse < ENOUGH else "more examples would help"
    rise = f"{worse:.0%} larger" if worse >= WORTH_TELLING else "no larger"
    return [f"{verdict}: fitted to only half of them, the refitted layers' error on held-out examples was {rise}"]


def _unfelt_notes(proposals: Sequence[Proposal]) -> list[str]:
    sites = [proposal.site for proposal in proposals if proposal.options]
    unfelt = name_unfelt(sites)
    if not unfelt:
        return []
    if len(unfelt) == len(sites):
        return ["no gradient reached any layer: predicted losses are squared errors of the layers, not of the output"]
    return [f"no gradient reached {', '.join(unfelt)}: the median importance of the other layers was assumed"]


def describe_run(subject: Subject, plan: Plan) -> Provenance:
    """What the run was given and what it ran on."""
    versions = (("bottleneck-opt", __version__), ("torch", torch.__version__), ("python", platform.python_version()))
    return Provenance(
        model=plan.model,
        inputs=subject.example.describe(),
        calibration=subject.data.description,
        passes=plan.passes,
        budget=plan.budget,
        seed=plan.seed,
        versions=versions,
        device=str(model_device(subject.working)),
        threads=torch.get_num_threads(),
        noise=subject.data.noise,
        weights_sha256=hash_weights(subject.working),
        data_sha256=hash_data(subject.data),
    )
