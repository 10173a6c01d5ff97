"""The stage of a run in which all layers are fitted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bottleneck_opt.inputs import batch_size
from bottleneck_opt.joint.fitting import Effort, Joint, fit_jointly, plan_examples, plan_iterations, thin_data
from bottleneck_opt.plan import Plan
from bottleneck_opt.progress import Stages
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Weights
from bottleneck_opt.statistics import OutputScale
from bottleneck_opt.subject import Subject

NOISE = "the inputs are made up, and what helps on those does not help on real ones"
TOO_LARGE = "the model is too large for it to be quick; recipe=Recipe(joint=5) does it all the same"


def fit_plan(
    subject: Subject, plan: Plan, weights: Mapping[str, Sequence[Weights]], scales: Sequence[OutputScale],
    recipe: Recipe, stages: Stages,
) -> Joint:  # fmt: skip
    """Fit the rewritten layers, and those that might have been, together.

    Args:
        subject: What the plan was made for.
        plan: What is replaced.
        weights: For each step's path, values for its layers in order.
        scales: Spread of each output tensor.
        recipe: How many iterations are wanted.
        stages: Shows the progress.
    """
    if not plan.steps:
        return Joint()
    macs = plan.after.macs // max(1, batch_size(subject.example))
    data = subject.fitting
    if recipe.joint is None:
        data = thin_data(data, plan_examples(macs, data.examples))
    iterations = plan_iterations(macs, data.examples, recipe.joint)
    if not iterations:
        return Joint(skipped="recipe= leaves it out" if recipe.joint == 0 else TOO_LARGE)
    if subject.data.noise and recipe.joint is None:
        return Joint(skipped=NOISE)
    paths = [path for path in subject.candidates.layers if path not in subject.candidates.probes]
    new = (*(step.path for step in plan.steps), *(sharing.path for sharing in plan.sharings))
    paths = list(dict.fromkeys([*paths, *new]))
    rewritten = rewrite_model(subject.working, plan, weights)
    effort = Effort(iterations, plan.seed)
    with stages.stage("fit together", total=iterations) as advance:
        joint = fit_jointly(subject.working, rewritten, paths, data, scales, effort, advance)
    return joint if data is subject.fitting else replace(joint, examples=data.examples)
