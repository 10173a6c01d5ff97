"""Fit all layers of the rewritten model together, to the original's final outputs."""

from bottleneck_opt.joint.fitting import Effort, Joint, fit_jointly, plan_iterations

__all__ = ["Effort", "Joint", "fit_jointly", "plan_iterations"]
