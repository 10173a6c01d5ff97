"""Drop channels on every link once and see whether the model does what it does when they are merely not read.

Where the graph says that one layer alone reads the channels of another, dropping some of them must give exactly what
the model gives when the reader's weights for them are zero. Code that counts on the old number of channels, or reads
them in a way that was not recorded, shows here, before anything is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bottleneck_opt.eligibility import Candidates
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Cost
from bottleneck_opt.inputs import Inputs, find_tensors
from bottleneck_opt.links import Link, Links
from bottleneck_opt.plan import IN_PLACE, Plan, Selection, Step
from bottleneck_opt.proposing import read_weights
from bottleneck_opt.rewriting import rewrite_model
from bottleneck_opt.sites import Skip, Weights
from bottleneck_opt.working_copy import copy_model, run_on_example

T = TypeVar("T")
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


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
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                expected = self._run(self._silence(links))
                got = self._run(self._drop(links))
        except InputError as error:
            return f"the model fails: {error.__cause__!r}"
        if [each.shape for each in expected] != [each.shape for each in got]:
            return "the model's output has another shape"
        same = all(are_close(one, other) for one, other in zip(expected, got, strict=True))
        return "" if same else "the model's output is not what it is without reading them"

    def _run(self, model: nn.Module) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        return tuple(find_tensors(run_on_example(model, self.inputs)))

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


def find_culprit(tried: Sequence[T], find_fault: Callable[[Sequence[T]], str], fault: str) -> tuple[T, str]:
    """The last of the shortest run of first changes that is at fault, by halving, with the fault.

    Args:
        tried: Changes that are at fault together.
        find_fault: What happens when some of them are made, in words; empty when nothing does.
        fault: What happens when all are.
    """
    good, bad = 0, len(tried)
    while bad - good > 1:
        middle = (good + bad) // 2
        answer = find_fault(tried[:middle])
        good, bad, fault = (good, middle, answer) if answer else (middle, bad, fault)
    return tried[bad - 1], fault


def are_close(before: Tensor, after: Tensor) -> bool:
    """Whether two outputs are the same up to the rounding of their precision."""
    a, b = (torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in (before, after))
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    tolerance = _TOLERANCE.get(before.dtype, 1e-3)
    return a.numel() == 0 or bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-30))
