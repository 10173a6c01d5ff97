"""Drop channels on every link once and see whether the model does what it does when they are merely not read.

Where the graph says that one layer alone reads the channels of another, dropping some of them must give exactly what
the model gives when the reader's weights for them are zero. Code that counts on the old number of channels, or reads
them in a way that was not recorded, shows here, before anything is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.graph import Cost
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.links import Link, Links
from bottleneck_opt.making_sites import read_weights
from bottleneck_opt.plan import IN_PLACE, Plan, Selection, Step
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Skip, Weights
from bottleneck_opt.trying import find_culprit, find_difference
from bottleneck_opt.working_copy import copy_model


def rehearse_links(working: nn.Module, inputs: Inputs, candidates: Candidates, links: Links) -> Links:
    """The links on which channels can be dropped without the model noticing; the others are refused with the reason.

    Args:
        working: A copy that may be run, in eval mode; it is not changed.
        inputs: The example call.
        candidates: The layers.
        links: The links to try.
    """
    stage = _Stage(working, inputs, candidates)
    refused: dict[str, Skip] = {}
    while tried := [link for link in links.found if link.consumer not in refused]:
        fault = stage.find_fault(tried)
        if not fault:
            break
        link, fault = find_culprit(tried, stage.find_fault, fault)
        refused[link.consumer] = Skip(f"keeps its input channels: when some are dropped, {fault}")
    return links.without(refused)


@dataclass(frozen=True)
class _Stage:
    """A model whose links can be tried."""

    working: nn.Module
    inputs: Inputs
    candidates: Candidates

    def find_fault(self, links: Sequence[Link]) -> str:
        """How the model with dropped channels differs from the one that does not read them; empty when it does not."""
        return find_difference(lambda: self._silence(links), lambda: self._drop(links), self.inputs)

    def _silence(self, links: Sequence[Link]) -> nn.Module:
        """The model with zero weights for the channels that will be dropped."""
        model = copy_model(self.working)
        for link in links:
            layer = self.candidates.layers[link.consumer]
            weight = model.get_submodule(link.consumer).get_parameter("weight")
            axis = 0 if layer.transposed else 1
            gone = torch.ones(link.channels, dtype=torch.bool, device=weight.device)
            gone[list(_kept(link))] = False
            weight.index_fill_(axis, gone.nonzero()[:, 0], 0.0)
        return model

    def _drop(self, links: Sequence[Link]) -> nn.Module:
        selections = tuple(
            Selection(each.producer, each.consumer, each.between, each.channels, _kept(each), IN_PLACE, Cost(), 0.0)
            for each in links
        )
        plan = _plan((), selections)
        paths = dict.fromkeys(path for link in links for path in (link.producer, link.consumer))
        steps, weights = [], {}
        for path in paths:
            step, values = self._narrow(path, plan)
            steps.append(step)
            weights[path] = [values]
        return rewrite_model(self.working, _plan(steps, selections), weights)

    def _narrow(self, path: str, plan: Plan) -> tuple[Step, Weights]:
        layer = self.candidates.layers[path]
        inputs = plan.kept_inputs(path) or range(layer.in_channels)
        outputs = plan.kept_outputs(path) or range(layer.out_channels)
        kernel, bias = read_weights(self.working.get_submodule(path), layer, None)
        rows, columns = torch.tensor(outputs, device="cpu"), torch.tensor(inputs, device="cpu")
        narrow = layer.named(layer.name, in_channels=len(columns), out_channels=len(rows))
        values = Weights(kernel[rows][:, columns], None if bias is None else bias[rows])
        step = Step(path, (path,), IN_PLACE, IN_PLACE, (), (), layer, (narrow,), Cost(), Cost(), 0.0)
        return step, values


def _plan(steps: Sequence[Step], selections: Sequence[Selection]) -> Plan:
    return Plan("", "", (), 0, Cost(), Cost(), 0.0, 0.0, tuple(steps), tuple(selections))


def _kept(link: Link) -> tuple[int, ...]:
    """Every other channel."""
    return tuple(range(0, link.channels, 2))
