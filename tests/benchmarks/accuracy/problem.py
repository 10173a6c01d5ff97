"""One thing to compress: a trained network and one draw of unlabelled inputs, with what was learnt from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from bottleneck_opt.budget import Budget
from bottleneck_opt.calibration import Sampling, choose_probes, collect_statistics
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.working_copy import undisturbed
from tests.benchmarks.accuracy.tasks import TASKS, Task
from tests.benchmarks.accuracy.training import load_trained


@dataclass(frozen=True, eq=False)
class Problem:
    """A network to compress, given unlabelled inputs; ``training`` and ``draw`` are seeds.

    Attributes:
        original: The trained network; nobody changes it.
        calibration: Unlabelled inputs, the same for all methods.
    """

    task: Task
    training: int
    draw: int
    original: nn.Module
    calibration: Tensor

    @property
    def example(self) -> Tensor:
        """One input, the one whose MACs are counted."""
        return self.calibration[:1]

    @cached_property
    def outputs(self) -> Tensor:
        """The original's outputs for the test data."""
        return self.task.run(self.original, self.training)

    @cached_property
    def subject(self) -> Subject:
        """What ``optimize`` prepares from the same arguments."""
        with undisturbed():
            torch.manual_seed(self.draw)
            return prepare_subject(
                self.original, Request(self.example, self.calibration, 256, None, self.draw, None, None)
            )

    @cached_property
    def statistics(self) -> Statistics:
        """What ``optimize`` learns from the same arguments."""
        subject = self.subject
        probes = choose_probes(subject.data.examples, subject.traced.cost.macs / batch_size(subject.example))
        sampling = Sampling(subject.data.examples, probes, self.draw)
        with undisturbed():
            return collect_statistics(
                subject.working, subject.candidates.layers, subject.data, sampling, names=subject.candidates.names
            )

    def limit(self, budget: float) -> int:
        """The MACs that a share of the original's allows."""
        return Budget(macs=budget).limits(self.subject.traced.cost)["macs"]


@lru_cache(maxsize=2)
def pose(name: str, training: int, draw: int) -> Problem:
    """The problem of these seeds; the last two are kept, with their statistics."""
    task = TASKS[name]
    return Problem(task, training, draw, load_trained(task, training), task.calibrate(training, draw))
