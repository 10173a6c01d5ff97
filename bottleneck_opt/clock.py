"""Time what was chosen: each replacement against its layer, and the whole model against the original."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bottleneck_opt.budget import Budget
from bottleneck_opt.choosing import Choice
from bottleneck_opt.distribution import Ranks
from bottleneck_opt.errors import NotAvailableError
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.latency import compare_speed
from bottleneck_opt.outcome import LeftOut
from bottleneck_opt.plan import SHARED, Plan
from bottleneck_opt.progress import Stages
from bottleneck_opt.proposing import Priced
from bottleneck_opt.rewriting import rewrite_for_timing
from bottleneck_opt.sites import Site
from bottleneck_opt.slower import SlowOption
from bottleneck_opt.subject import Subject
from bottleneck_opt.timing.layer_times import LayerTimes, vector_width
from bottleneck_opt.timing.pace import Pace
from bottleneck_opt.timing.records import Records, timings_file
from bottleneck_opt.timing.setting import Timing
from bottleneck_opt.timing.targets import Place, fit_batch
from bottleneck_opt.working_copy import copy_model, model_device, working_inputs

MARGIN = 0.03  # what is not faster by this much may be slower the next time
STEADY = 0.1  # times that are spread wider were disturbed, and are not kept for later runs


@dataclass(frozen=True)
class Clock:
    """What to time with.

    Attributes:
        subject: The model.
        times: Times of layers.
        timings: In which settings.
        stages: Shows the progress.
        ranks: Who shares the work: one of them times.
    """

    subject: Subject
    times: LayerTimes
    timings: tuple[Timing, ...]
    stages: Stages
    ranks: Ranks

    def find_slower(self, choice: Choice) -> list[tuple[SlowOption, LeftOut]]:
        """The chosen replacements that are no faster than their layers in one of the settings.

        What reads a shared bottleneck is not looked at: it stands for its layer only together with the bottleneck.
        """
        chosen = [
            (proposal.site, priced)
            for proposal, priced in choice.changed
            if priced is not None and priced.option.form != SHARED
        ]
        with self.stages.stage("time layers", total=len(chosen)) as advance:

            def compare() -> list[tuple[float, float] | None]:
                found = []
                for site, priced in chosen:
                    found.append(self._find_worst(site, priced))
                    advance()
                return found

            worst = self.ranks.run_alone(compare)
        pairs = zip(chosen, worst, strict=True)
        return [_describe(site, priced, times) for (site, priced), times in pairs if times is not None]

    def _find_worst(self, site: Site, priced: Priced) -> tuple[float, float] | None:
        """Milliseconds of layer and replacement in the setting where that gains least; None where it is faster."""
        compared = [
            self.times.compare((site.layer,), priced.option.layers, self._fit_shapes(site, timing), timing)
            for timing in self.timings
        ]
        before, after = max(compared, key=lambda each: each[1] / each[0])
        return None if after <= (1 - MARGIN) * before else (before / 1e6, after / 1e6)

    def _fit_shapes(self, site: Site, timing: Timing) -> list[tuple[int, ...]]:
        return timing.fit_shapes(site.input_shapes, batch_size(self.subject.example))

    def time_original(self, budget: Budget) -> Pace:
        """What a nanosecond counts in each setting, from the original's times."""
        whole = tuple(before for before, _ in self.time_whole(None))
        first = whole[0]
        scales = tuple(1.0 if budget.is_absolute_time else first / each for each in whole)
        return Pace(self.times, self.timings, whole, scales, batch_size(self.subject.example))

    def time_whole(self, plan: Plan | None) -> list[tuple[float, float]]:
        """Nanoseconds of the original and of the model of a plan in each setting; of the original twice without one.

        What was timed on this machine before, undisturbed, is not timed again.
        """
        with self.stages.stage("time models", total=len(self.timings)) as advance:

            def time_all() -> list[tuple[float, float]]:
                found = []
                for timing in self.timings:
                    found.append(self._time_pair(plan, timing))
                    advance()
                return found

            return self.ranks.run_alone(time_all)

    def _time_pair(self, plan: Plan | None, timing: Timing) -> tuple[float, float]:
        name = f"whole {self._digest(plan, timing)}"
        records = self.times.records
        known = records.find(f"{name} 0"), records.find(f"{name} 1")
        if known[0] is not None and known[1] is not None:
            return known[0], known[1]
        device = model_device(self.subject.working)
        before = copy_model(self.subject.original).to(device).eval()
        after = before if plan is None else rewrite_for_timing(before, plan).eval()
        speed = compare_speed(
            before, after, working_inputs(self.subject.example, before, device), device=device, timing=timing
        )  # fmt: skip
        times = round(speed.before * 1e6), round(speed.after * 1e6)
        if speed.spread > STEADY:
            return times
        return records.keep(f"{name} 0", times[0]), records.keep(f"{name} 1", times[1])

    def _digest(self, plan: Plan | None, timing: Timing) -> str:
        """Everything that the time depends on, weights left aside."""
        nodes = [
            (node.operation, node.path, node.input_shapes, node.output_shapes)
            for node in self.subject.traced.structure.nodes
        ]
        structure = () if plan is None else _describe_structure(plan)
        setting = self.times.describe(timing), timing.target, timing.batch, self.subject.example.describe()
        text = json.dumps([self.subject.name, nodes, structure, setting], default=repr)
        return hashlib.sha256(text.encode()).hexdigest()


def _describe_structure(plan: Plan) -> tuple[object, ...]:
    steps = [(step.path, step.layers) for step in plan.steps]
    dropped = [(each.producer, each.consumer, len(each.kept)) for each in plan.selections]
    return steps, dropped, [(each.path, each.members, each.layer) for each in plan.sharings]


def _describe(site: Site, priced: Priced, times: tuple[float, float]) -> tuple[SlowOption, LeftOut]:
    option = priced.option
    slow = SlowOption(site.layer.named(""), site.input_shapes, option.form, option.ranks, *times)
    return slow, LeftOut(site.path, option.form, option.ranks, *times)


def start_clock(subject: Subject, timings: Sequence[Timing], stages: Stages, ranks: Ranks) -> Clock:
    """What to time this model with.

    Raises:
        NotAvailableError: A setting does not fit the example input or the device.
    """
    for timing in timings:
        fit_batch(subject.example, timing)
    device = model_device(subject.working)
    if device.type != "cpu" and any(timing.target == "onnxruntime" for timing in timings):
        raise NotAvailableError(
            f"timing: target=onnxruntime runs on the CPU here; the model is on {device}. Pass device='cpu'."
        )
    place = Place(device, _find_dtype(subject.original), _is_channels_last(subject.original))
    return Clock(subject, LayerTimes(place, Records(timings_file()), vector_width()), tuple(timings), stages, ranks)


def _find_dtype(model: nn.Module) -> torch.dtype:
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [each for each in model.parameters() if each.dim() == 4 and each.shape[1] > 1 and each.shape[2] > 1]
    return bool(kernels) and kernels[0].is_contiguous(memory_format=torch.channels_last)
