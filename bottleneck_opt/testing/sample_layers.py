"""Small layers of every kind that a pass may be shown, each alone in a model, as a pass sees it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.errors import PassError
from bottleneck_opt.layers import LINEAR, LayerSpec, describe_layer
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.sites import Site
from bottleneck_opt.subject import Request, Subject, prepare_subject
from bottleneck_opt.working_copy import undisturbed

EXAMPLES = 24
SHRINKAGE = 1e-9
_SPARE = {1: (9,), 2: (6, 5), 3: (3, 2, 3)}


@dataclass(frozen=True)
class Sample:
    """A layer with inputs to run it on.

    Attributes:
        name: What it is, in words.
        layer: The layer, in float64.
        inputs: What it is calibrated on ``(examples, ...)``.
        others: Further inputs, of another size where it takes any.
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    others: Tensor


@dataclass(frozen=True)
class Shown:
    """A sample as the tool sees it, and as a pass does.

    Attributes:
        sample: The sample.
        subject: The model that consists of it.
        site: What a pass is shown.
    """

    sample: Sample
    subject: Subject
    site: Site


_STANDARD: tuple[tuple[Callable[[], nn.Module], int], ...] = (
    (lambda: nn.Conv2d(8, 12, 3, padding=1), 0),
    (lambda: nn.Conv2d(12, 8, 3, stride=2, bias=False), 0),
    (lambda: nn.Conv2d(8, 8, (5, 3), dilation=(1, 2), padding=2), 0),
    (lambda: nn.Conv2d(8, 10, 3, padding="same"), 0),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), 0),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"), 0),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), 0),
    (lambda: nn.Conv2d(12, 12, 3, padding=1, groups=2), 0),
    (lambda: nn.Conv2d(12, 16, 1), 0),
    (lambda: nn.Conv1d(8, 12, 5, stride=2, padding=2), 0),
    (lambda: nn.Conv3d(6, 8, 3, padding=1), 0),
    (lambda: nn.ConvTranspose1d(8, 6, 4, stride=2), 0),
    (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), 0),
    (lambda: nn.Linear(16, 12), 0),
    (lambda: nn.Linear(12, 16, bias=False), 1),  # rows of rows, as in a transformer
)


def standard_samples() -> list[Sample]:
    """Convolutions in one, two and three dimensions, of every padding mode, grouped, transposed; and Linears."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [_make_sample(make(), rows=rows) for make, rows in _STANDARD]


def make_samples(layers: Sequence[nn.Module]) -> list[Sample]:
    """Samples of layers of one's own, which are not changed.

    Raises:
        PassError: One is no convolution or Linear.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [_make_sample(copy.deepcopy(layer)) for layer in layers]


def _make_sample(layer: nn.Module, *, rows: int = 0) -> Sample:
    spec = describe_layer(layer)
    if spec is None:
        raise PassError(
            f"layers: got a {type(layer).__name__}; expected convolutions and Linears. Pass for instance "
            "layers=[torch.nn.Conv2d(64, 64, 3)]."
        )
    return Sample(_describe(spec, rows), layer.double().eval(), _make_input(spec, rows), _make_input(spec, rows, 2))


def _describe(spec: LayerSpec, rows: int) -> str:
    """What makes a layer unlike others: ``conv 3x3, 8 -> 12, reflect padding``."""
    extras = [
        f"{len(spec.kernel)}d" if len(spec.kernel) in (1, 3) else "",
        f"dilation {'x'.join(map(str, spec.dilation))}" if set(spec.dilation) > {1} else "",
        f"groups {spec.groups}" if spec.groups > 1 else "",
        f"{spec.padding_mode} padding" if spec.padding_mode != "zeros" else "",
        f"padding '{spec.padding}'" if isinstance(spec.padding, str) else "",
        "" if spec.bias else "no bias",
        "rows of rows" if rows else "",
    ]
    return ", ".join([f"{spec.label} {spec.in_channels} -> {spec.out_channels}", *filter(None, extras)])


def _make_input(spec: LayerSpec, rows: int, grown: int = 0) -> Tensor:
    """Correlated channels of uneven size that are not centred on zero, as real ones are."""
    width = spec.in_channels
    spread = torch.randn(width, width, dtype=torch.float64) * torch.logspace(0, -1, width, dtype=torch.float64)
    shift = torch.randn(width, dtype=torch.float64)
    mixed = torch.randn(EXAMPLES, *_size(spec, rows, grown), width, dtype=torch.float64) @ spread + shift
    return mixed if spec.kind == LINEAR else mixed.movedim(-1, 1).contiguous()


def _size(spec: LayerSpec, rows: int, grown: int) -> tuple[int, ...]:
    if spec.kind == LINEAR:
        return (3 + grown,) * rows
    spans = (d * (k - 1) for k, d in zip(spec.kernel, spec.dilation, strict=True))
    spare = _SPARE[len(spec.kernel)]
    return tuple(span + extra + grown for span, extra in zip(spans, spare, strict=True))


def show(sample: Sample) -> Shown:
    """Record and calibrate a model that consists of the layer alone.

    Raises:
        PassError: The tool itself cannot rewrite such a layer.
    """
    with undisturbed():
        torch.manual_seed(0)
        request = Request(sample.inputs[:2], sample.inputs, EXAMPLES, None, 0, None, None)
        subject = prepare_subject(nn.Sequential(sample.layer), request)
        layers, names = subject.candidates.layers, subject.candidates.names
        if not layers:
            reason = next(iter(subject.candidates.refused.values())).reason
            raise PassError(f"layers: '{sample.name}' cannot be rewritten by any pass: {reason}. Leave it out.")
        statistics = collect_statistics(
            subject.working, layers, subject.data, Sampling(EXAMPLES, 4, 0), names=names
        )  # fmt: skip
        site = make_sites(subject.working, subject.traced, subject.candidates, statistics, shrinkage=SHRINKAGE)[0]
    return Shown(sample, subject, site)
