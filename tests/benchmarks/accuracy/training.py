"""Trained networks, each trained once and kept.

The denoisers are kept beside this program, so that rows measured on several machines are about the same networks: the
same program and seeds give other weights on another processor. They are what ``task.train`` made of them on one.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from bottleneck_opt.files import write_whole
from tests.benchmarks.accuracy.networks import build
from tests.benchmarks.accuracy.tasks import TASKS, Task

FOLDER = Path("out/accuracy/weights")
KEPT = Path(__file__).parent / "weights"


def load_trained(task: Task, training: int, folder: Path = FOLDER) -> nn.Module:
    """The network of this training in eval mode: its kept weights, or trained now on one thread and kept."""
    model = build(task.kind, training)
    beside = weights_file(task.name, training, KEPT)
    file = beside if beside.is_file() else weights_file(task.name, training, folder)
    if not file.is_file():
        torch.set_num_threads(1)  # as many threads always, for the same weights
        task.train(model, training)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}))
    model.load_state_dict(safetensors.torch.load_file(file))
    return model.eval()


def weights_file(name: str, training: int, folder: Path = FOLDER) -> Path:
    """Where the weights of a training are kept."""
    return folder / f"{name}-{training}.safetensors"


def train_all(names: list[str], trainings: list[int]) -> None:
    """Train what is not there yet, and say how good it is."""
    for name in names:
        for training in trainings:
            task = TASKS[name]
            model = load_trained(task, training)
            score = task.score(task.run(model, training), training)
            print(f"{name}, training {training}: {score:.2f}", flush=True)
