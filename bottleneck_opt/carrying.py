"""From a choice to the finished model: filled in, refitted, fitted together, rewritten and, when asked for, trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bottleneck_opt.applying import Rewritten, apply_plan
from bottleneck_opt.choosing import Choice
from bottleneck_opt.fingerprints import fingerprint
from bottleneck_opt.fitting import Fit
from bottleneck_opt.graph import Cost
from bottleneck_opt.joint import Joint
from bottleneck_opt.joint.stage import fit_plan
from bottleneck_opt.kept_answers import identify_pass
from bottleneck_opt.kept_training import find_spare
from bottleneck_opt.kept_weights import FITTED, JOINT
from bottleneck_opt.outcome import Recovered
from bottleneck_opt.plan import Plan
from bottleneck_opt.recovery import Recovery, teach
from bottleneck_opt.recovery.weights import copy_weights
from bottleneck_opt.refitting import Refitted
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.stepping import Stepping
from bottleneck_opt.summary import lacks_data

UNKNOWN_DATA = "no calibration= was given beside statistics="


@dataclass(frozen=True)
class Carried:
    """A choice that was carried out.

    Attributes:
        stepping: How it was come to.
        plan: What was replaced.
        refitted: What fitting each layer again did.
        joint: What fitting all of them together did.
        rewritten: The model.
        recovered: What training did; None where it was not asked for or there was nothing to train back.
    """

    stepping: Stepping
    plan: Plan
    refitted: Refitted
    joint: Joint
    rewritten: Rewritten
    recovered: Recovered | None

    @property
    def choice(self) -> Choice:
        """The choice."""
        return self.stepping.choice

    @property
    def cost(self) -> Cost:
        """The rewritten model's cost as recorded, and its time as measured, where that is limited."""
        clocked = self.stepping.clocked
        return replace(self.rewritten.traced.cost, latency=0 if clocked is None else clocked.latency)


def carry_out(
    fit: Fit, stepping: Stepping, statistics: Statistics, recovery: Recovery | None, *,
    filled: Callable[[], None] = lambda: None,
) -> Carried:  # fmt: skip
    """The model of a choice with everything that was done to it.

    Args:
        fit: What to fit with.
        stepping: The choice.
        statistics: What calibration saw of the original.
        recovery: How to train the model; None leaves it as it was fitted.
        filled: Called once the covariances are no longer needed: refitting needs room for activations.

    Raises:
        RewriteError: The model does not use the new layers as it used the old.
    """
    subject, plan = fit.subject, fit.make_plan(stepping.choice)
    key = _identify(fit, plan)
    refitted = fit.cache.take("fit", key, FITTED, lambda: _fit_alone(fit, plan, stepping, statistics, filled))
    joint = fit.cache.take("fit together", key, JOINT, lambda: _fit_together(fit, plan, refitted, statistics))
    with fit.stages.stage("rewrite"):
        rewritten = apply_plan(subject, plan, refitted.weights, joint.weights)
    recovered = None if recovery is None else _recover(fit, rewritten, statistics, recovery, key)
    return Carried(stepping, plan, refitted, joint, rewritten, recovered)


def _identify(fit: Fit, plan: Plan) -> str:
    """Fingerprint of all that decides the weights of a plan, beside the subject and the seed; empty if none is kept."""
    if fit.cache.folder is None:
        return ""
    return fingerprint(fit.known, plan.to_json(), fit.recipe, list(map(identify_pass, fit.wish.passes)))


def _fit_alone(
    fit: Fit, plan: Plan, stepping: Stepping, statistics: Statistics, filled: Callable[[], None]
) -> Refitted:  # fmt: skip
    choice = stepping.choice
    weights = fit.fill(choice)
    filled()
    if lacks_data(fit.subject, statistics):
        return Refitted(weights, (), dict.fromkeys(weights, UNKNOWN_DATA))
    return fit.refit(plan, choice, weights, fit.subject.fitting)


def _fit_together(fit: Fit, plan: Plan, refitted: Refitted, statistics: Statistics) -> Joint:
    if lacks_data(fit.subject, statistics):
        return Joint(skipped=UNKNOWN_DATA)
    return fit_plan(fit.subject, plan, refitted.weights, statistics.scales, fit.recipe, fit.stages)


def _recover(fit: Fit, rewritten: Rewritten, statistics: Statistics, recovery: Recovery, key: str) -> Recovered:
    """Train the rewritten model; its working copy takes the values over as the model's precision rounds them."""
    subject = fit.subject
    spare = find_spare(fit.cache, key, recovery)
    with fit.stages.stage("recover", total=recovery.steps) as shown:
        recovered = teach(
            subject.working, rewritten.model, subject.data, recovery, scales=statistics.scales, shown=shown, spare=spare
        )
    if recovered.accepted:
        copy_weights(rewritten.model, rewritten.working)
    return recovered
