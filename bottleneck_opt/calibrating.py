"""``calibrate``: look at the data once, for any number of budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import collect_statistics
from bottleneck_opt.calibration_data import CalibrationData
from bottleneck_opt.distribution import ALONE, Ranks
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Traced
from bottleneck_opt.inputs import batch_size
from bottleneck_opt.keeping import Cache, Form, open_cache
from bottleneck_opt.layers import class_name
from bottleneck_opt.progress import Stages
from bottleneck_opt.sampling import Sampling, choose_probes, choose_together
from bottleneck_opt.spilling import Storage, read_memory
from bottleneck_opt.statistics import Origin, Statistics
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.tensor_bytes import bytes_of
from bottleneck_opt.working_copy import undisturbed, unwrap_model

_FORM = Form(".safetensors", Statistics.load, lambda path, statistics: statistics.save(path))


def calibrate(
    model: nn.Module,
    inputs: Any = None,
    *,
    calibration: Any = None,
    calibration_limit: int = 256,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    memory: int | str | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    ranks: Ranks = ALONE,
) -> Statistics:
    """What :func:`optimize` learns from the calibration data, to be used again with ``optimize(statistics=...)``.

    With the same data and seed the plan is the same as without, byte for byte, unless ``recipe=`` or ``recover=`` asks
    for another number of mixes: here there are as many as :class:`Recipe` makes by default.

    Args:
        model: Any module. It is not run, not moved and not changed; all work is done on copies.
        inputs, calibration, calibration_limit, device, seed: As for :func:`optimize`.
        include, exclude: Glob patterns over module paths: the layers to watch. ``optimize`` may take fewer of them.
        memory: What the covariances may take, such as ``"2GB"``; the rest is kept in files of a temporary folder, which
            goes away with the statistics. None takes half of what is free.
        cache: A folder to keep them in, or to read them back from, as for :func:`optimize`.
        progress: Show progress on standard error.
        ranks: Who shares the work, from :func:`bottleneck_opt.distribution.joined_ranks`.

    Returns:
        The statistics; ``save`` and ``Statistics.load`` keep them in a file.

    Raises:
        ModelError, InputError, PatternError, FileError, RanksError: See each; all are :class:`BottleneckOptError`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> statistics = calibrate(net, calibration=torch.randn(4, 3, 16, 16), progress=False)
        >>> list(statistics.layers), statistics.origin.data
        (['0', '2'], '4 unlabelled examples')
    """
    stages = Stages(shown=progress)
    storage = Storage(read_memory(memory, processes=ranks.local))
    original = unwrap_model(model)
    with undisturbed(), open_cache(cache, seed=seed, stages=stages, ranks=ranks) as kept:
        torch.manual_seed(seed)
        with stages.stage("trace"):
            request = Request(inputs, calibration, calibration_limit, device, seed, include, exclude)
            subject = prepare_subject(original, request)
        kept.identify(subject)
        return keep_statistics(kept, subject, stages, storage)


def keep_statistics(cache: Cache, subject: Subject, stages: Stages, storage: Storage) -> Statistics:
    """The statistics with their origin: those that an earlier run kept, or new ones, which are kept.

    Args:
        cache: Where.
        subject, stages, storage: As for :func:`measure_statistics`.
    """
    seed, ranks = cache.seed, cache.ranks

    def measure() -> Statistics:
        found = measure_statistics(subject, stages, seed=seed, storage=storage, ranks=ranks)
        return replace(found, origin=_describe_origin(subject, seed))

    return cache.take("calibrate", "", _FORM, measure)


def _describe_origin(subject: Subject, seed: int) -> Origin:
    return Origin(
        model=class_name(subject.original),
        weights_sha256=hash_weights(subject.working),
        layers=dict(subject.candidates.layers),
        data=subject.data.description,
        noise=subject.data.noise,
        seed=seed,
    )


def measure_statistics(
    subject: Subject, stages: Stages, *, seed: int, storage: Storage, ranks: Ranks = ALONE
) -> Statistics:
    """Run the data through the working copy.

    Args:
        subject: Model and data.
        stages: Where to announce it.
        seed: Of positions and output directions.
        storage: Where covariances are kept.
        ranks: Who shares the work.
    """
    if ranks.count > 1:
        ranks.check_agreement("the model or the data", _fingerprint(subject))
    sampling = choose_sampling(subject, seed)
    with stages.stage("calibrate", total=2 * len(subject.fitting.batches)) as advance:
        return collect_statistics(
            subject.working, subject.candidates.layers, subject.fitting, sampling,
            names=subject.candidates.names, advance=advance, storage=storage, ranks=ranks,
        )  # fmt: skip


def choose_sampling(subject: Subject, seed: int) -> Sampling:
    """How much of the subject's data to look at."""
    macs = subject.traced.cost.macs / max(1, batch_size(subject.example))
    examples = subject.fitting.examples
    together = choose_together(_count_bytes(subject.traced))
    return Sampling(examples, choose_probes(examples, macs), seed, together=together)


def _fingerprint(subject: Subject) -> list[str]:
    return [hash_weights(subject.working), hash_data(subject.fitting), *subject.candidates.layers]


def _count_bytes(traced: Traced) -> float:
    """All activations of one example, in float32."""
    entries = sum(torch.Size(shape).numel() for node in traced.structure.nodes for shape in node.output_shapes)
    return 4 * entries / max(1, batch_size(traced.inputs))


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(name.encode())
            _hash_tensor(digest, value)
    return digest.hexdigest()


def hash_data(data: CalibrationData) -> str:
    """SHA-256 over the shapes and values of all examples."""
    digest = hashlib.sha256()
    for batch in data.batches:
        for tensor in batch.tensors():
            _hash_tensor(digest, tensor)
    return digest.hexdigest()


def _hash_tensor(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(bytes_of(tensor))


def read_statistics(given: Statistics | str | Path, subject: Subject) -> Statistics:
    """Statistics that were taken before, for the layers of this model that may be rewritten now.

    Args:
        given: From :func:`calibrate`, or the file they were saved to.
        subject: The model.

    Raises:
        FileError: The file cannot be read.
        InputError: They are of another model, or lack a layer.
    """
    statistics = given if isinstance(given, Statistics) else Statistics.load(given)
    origin = statistics.origin
    if origin is None:
        raise InputError(
            "statistics: they do not say of which model they are; expected what calibrate() returned or saved. "
            "Pass calibrate(model, ...) or the file it was saved to."
        )
    if hash_weights(subject.working) != origin.weights_sha256:
        raise InputError(
            f"statistics: they are of a {origin.model} with other weights than this "
            f"{class_name(subject.original)}; expected the very model that calibrate() ran on. "
            "Calibrate again, or pass that model."
        )
    for path, layer in subject.candidates.layers.items():
        if origin.layers.get(path) != layer or path not in statistics.layers:
            raise InputError(
                f"statistics: '{path}' ({layer.label}) is not among the {len(origin.layers)} layers they are of; "
                "expected all layers that may be rewritten. Calibrate again, or leave the layer out with exclude=."
            )
    kept = {path: statistics.layers[path] for path in subject.candidates.layers}
    return replace(statistics, layers=kept)
