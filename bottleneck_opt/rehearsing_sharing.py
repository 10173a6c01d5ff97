"""Put an exact bottleneck before every group of layers once and see whether the model still does what it did.

The recorded graph says which layers read one tensor. It does not say that one of them may read it after something was
written into it. A 1x1 that turns the channels round, and layers that turn them back, must change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.graph import Cost
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.making_sites import read_weights
from bottleneck_opt.plan import SHARED, Plan, Sharing, Step
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sharing import Group, Groups
from bottleneck_opt.sites import Skip, Weights
from bottleneck_opt.trying import find_culprit, find_difference


def rehearse_groups(working: nn.Module, inputs: Inputs, candidates: Candidates, groups: Groups) -> Groups:
    """The groups that can share a bottleneck without the model noticing; the others are refused with the reason.

    Args:
        working: A copy that may be run, a GraphModule in eval mode; it is not changed.
        inputs: The example call.
        candidates: The layers.
        groups: The groups to try.
    """
    stage = _Stage(working, inputs, candidates)
    while groups.found:
        fault = stage.find_fault(groups.found)
        if not fault:
            break
        culprit, fault = find_culprit(groups.found, stage.find_fault, fault)
        groups = groups.without(culprit, Skip(f"shares no bottleneck: when one stands before it, {fault}"))
    return groups


@dataclass(frozen=True)
class _Stage:
    """A model whose groups can be tried."""

    working: nn.Module
    inputs: Inputs
    candidates: Candidates

    def find_fault(self, groups: Sequence[Group]) -> str:
        """How the model with exact bottlenecks differs from the one without; empty when it does not."""
        return find_difference(lambda: self.working, lambda: self._share(groups), self.inputs)

    def _share(self, groups: Sequence[Group]) -> nn.Module:
        steps, sharings, weights = [], [], dict[str, Sequence[Weights]]()
        for group in groups:
            for path in group.members:
                layer = self.candidates.layers[path].named("conv")
                kernel, bias = read_weights(self.working.get_submodule(path), layer, None)
                steps.append(Step(path, (path,), SHARED, SHARED, (), (), layer, (layer,), Cost(), Cost(), 0.0))
                weights[path] = [Weights(kernel.flip(1), bias)]
            width = layer.in_channels
            turn = layer.pointwise(SHARED, width, width, bias=False)
            sharings.append(Sharing(group.path, group.members, width, width, turn, SHARED, Cost(), 0.0))
            flipped = torch.eye(width, dtype=torch.float64, device="cpu").flip(1)
            weights[group.path] = [Weights(flipped.reshape(turn.weight_shape))]
        plan = Plan("", "", (), 0, Cost(), Cost(), 0.0, 0.0, tuple(steps), (), tuple(sharings))
        return rewrite_model(self.working, plan, weights)
