"""Everything that is asked of one model, in the process of its own."""

from __future__ import annotations

import copy
import math
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

import bottleneck_opt as bo
from bottleneck_opt.diagrams import draw_model
from bottleneck_opt.graph import Node, Traced
from bottleneck_opt.inputs import Inputs, find_tensors, read_inputs, vary_inputs
from bottleneck_opt.testing import FullRankRewrite, rewrite_everything
from tests.zoo.entries import Entry
from tests.zoo.orthogonal import Orthogonal
from tests.zoo.preparation import prepare, rescale, run
from tests.zoo.row import Row

_DOUBLE_TOLERANCE = 1e-4  # rounding alone makes 3e-6 of it in the deepest, with random weights
_FLOAT_TOLERANCE = 1e-2
_LARGE = 120_000_000  # parameters; beyond, float64 would need too much memory
_VARIES = 1e-6  # an output that varies less than this between two inputs, relative to its size, says nothing
_CONTROLS = 3
_PACKAGE = str(Path(bo.__file__).parent)


@dataclass(frozen=True)
class _Subject:
    """A model ready to be asked, its example call, and a call it has not seen."""

    model: nn.Module
    inputs: Inputs
    other: Inputs


def check_entry(entry: Entry, tell: Callable[[Row], None] = lambda row: None) -> Row:
    """Build the entry's model and ask everything of it.

    Args:
        entry: The model.
        tell: Called with the row after every stage: a process may be ended before the last.
    """
    started = time.perf_counter()
    row = Row(entry.name, entry.family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in _ask(entry, row):
            row.seconds = time.perf_counter() - started
            row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            tell(row)
    row.finished = True
    tell(row)
    return row


def _ask(entry: Entry, row: Row) -> Iterator[None]:
    """Stage after stage; what needs the answer of one that failed is left out."""
    subject = _stage(row, "build", lambda: _build(entry, row))
    yield
    if subject is None:
        return
    traced = _stage(row, "trace", lambda: _trace(row, subject))
    yield
    if traced is None:
        return
    _stage(row, "count", lambda: _count(row, subject))
    _stage(row, "draw", lambda: _draw(row, traced))
    yield
    precise = _stage(row, "precision", lambda: _in_precision(entry, row, subject))
    if precise is None:
        return
    rewritten = _stage(row, "rewrite", lambda: _rewrite(row, precise))
    yield
    if rewritten is None:
        return
    _note_shares(row, precise.model, rewritten)
    _stage(row, "compare", lambda: _compare(row, precise, rewritten))
    yield


def _stage(row: Row, name: str, work: Callable[[], Any]) -> Any:
    """The stage's answer, or None with the error in the row."""
    try:
        return work()
    except Exception as error:  # whatever a stranger's model or the tool raises is a result
        short = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        row.failures["memory" if short else name] = _describe(error)
        return None


def _describe(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {''.join(first)[:400]} ({place})"


def _build(entry: Entry, row: Row) -> _Subject:
    started = time.perf_counter()
    torch.manual_seed(0)
    model = entry.build().eval()
    inputs = read_inputs(entry.inputs(model))
    other = vary_inputs(inputs, seed=7)
    row.build_seconds = time.perf_counter() - started
    if _is_lazy(model):  # the tool has to cope with it as it is
        return _Subject(model, inputs, other)
    prepare(model, inputs)
    if _variation(run(model, inputs), run(model, other)) <= _VARIES:
        rescale(model, inputs)
        row.rescaled = True
    return _Subject(model, inputs, other)


def _is_lazy(model: nn.Module) -> bool:
    return any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters())


def _trace(row: Row, subject: _Subject) -> Traced:
    started = time.perf_counter()
    traced = bo.trace(subject.model, subject.inputs)
    row.trace_seconds = time.perf_counter() - started
    row.forward_seconds = min(_time(lambda: run(subject.model, subject.inputs)) for _ in range(2))
    row.nodes, row.macs, row.params = len(traced.structure.nodes), traced.cost.macs, traced.cost.params
    row.replay_exact, row.replay_reason = traced.replay.exact, traced.replay.reason
    row.notes, row.unexecuted = list(traced.notes), len(traced.unexecuted)
    row.layers = sum(isinstance(module, _ConvNd | nn.Linear) for module in subject.model.modules())
    return traced


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# -- counting and drawing -----------------------------------------------------------------------------------------


def _two_per_entry(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


# Products that torch's counter leaves out: of a matrix and a vector, and of two vectors.
_LEFT_OUT: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _two_per_entry, torch.ops.aten.dot: _two_per_entry, torch.ops.aten.vdot: _two_per_entry,
    torch.ops.aten.addmv: lambda added, matrix, *_, **__: _two_per_entry(matrix),
}  # fmt: skip


def _count(row: Row, subject: _Subject) -> None:
    counter = FlopCounterMode(display=False, custom_mapping=dict(_LEFT_OUT))
    model = copy.deepcopy(subject.model)
    with counter, _attention_in_parts():
        run(model, subject.inputs)
    row.torch_macs = counter.get_total_flops() // 2


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Torch counts nothing inside the fused kernels of attention on a CPU."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _draw(row: Row, traced: Traced) -> None:
    started = time.perf_counter()
    picture = draw_model(traced)
    row.draw_seconds = time.perf_counter() - started
    row.drawn = picture.source.startswith(("digraph", "strict digraph"))


# -- rewriting ----------------------------------------------------------------------------------------------------


def _in_precision(entry: Entry, row: Row, subject: _Subject) -> _Subject:
    """The model in float64, where rounding cannot be mistaken for a fault; in its own where it has to keep that."""
    own = entry.tolerance
    if own is None and row.params > _LARGE:
        own = _FLOAT_TOLERANCE
    row.tolerance = _DOUBLE_TOLERANCE if own is None else own
    row.dtype = "float64" if own is None else _main_dtype(subject.model)
    if own is not None:
        return subject
    model = copy.deepcopy(subject.model).double()
    inputs, other = subject.inputs.map(_widen), subject.other.map(_widen)
    try:
        run(model, inputs)
    except RuntimeError:  # it makes float32 tensors of its own, which do not mix with float64
        row.tolerance, row.dtype = _FLOAT_TOLERANCE, _main_dtype(subject.model)
        return subject
    return _Subject(model, inputs, other)


def _main_dtype(model: nn.Module) -> str:
    kinds = Counter(str(parameter.dtype) for parameter in model.parameters())
    return kinds.most_common(1)[0][0].removeprefix("torch.") if kinds else "float32"


def _widen(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _rewrite(row: Row, subject: _Subject) -> FullRankRewrite:
    started = time.perf_counter()
    made = rewrite_everything(subject.model, subject.inputs, passes=[Orthogonal()], calibrate=False)
    row.rewrite_seconds = time.perf_counter() - started
    return made


def _note_shares(row: Row, model: nn.Module, made: FullRankRewrite) -> None:
    """How much of the model was rewritten, and why the rest was not."""
    modules = dict(model.named_modules())
    rewritten = {step.path for step in made.plan.steps}
    skipped: Counter[str] = Counter()
    row.rewritten = len(rewritten)
    for node in made.traced.structure.nodes:
        dense = _is_dense(node, modules)
        row.dense_macs += node.cost.macs if dense else 0
        row.rewritten_dense_macs += node.cost.macs if dense and node.path in rewritten else 0
        if node.kind == "module" and node.path in made.refused:
            skipped[made.refused[node.path].reason] += node.cost.macs
        elif dense and node.path not in rewritten:
            skipped["a function on a tensor, not a layer"] += node.cost.macs
    row.skipped_macs = dict(skipped)


def _is_dense(node: Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a convolution with a kernel above 1x1 that is not depthwise."""
    if node.kind == "module":
        layer = modules.get(node.path)
        if not isinstance(layer, _ConvNd):
            return False
        return math.prod(layer.kernel_size) > 1 and not 1 < layer.groups == layer.in_channels
    if not any(name.startswith(("aten::conv", "aten::_conv")) for name, _ in node.operations):
        return False
    shapes = node.input_shapes
    if len(shapes) < 2 or len(shapes[1]) < 3:
        return False
    depthwise = shapes[1][1] == 1 < shapes[0][1]
    return math.prod(shapes[1][2:]) > 1 and not depthwise


def _compare(row: Row, subject: _Subject, made: FullRankRewrite) -> None:
    """The output on a new input before and after, and after with one factor wrong."""
    example, expected = run(subject.model, subject.inputs), run(subject.model, subject.other)
    scale = _scale(example, expected)
    row.vacuous = scale <= 0
    if not made.plan.steps:
        return
    row.error = _change(expected, run(made.model, subject.other), scale)
    paths = [step.path for step in made.plan.steps]
    chosen = dict.fromkeys(paths[len(paths) * index // _CONTROLS] for index in range(_CONTROLS))
    row.control = max(_spoilt_change(made.model, path, subject.other, expected, scale) for path in chosen)


def _spoilt_change(model: nn.Module, path: str, inputs: Inputs, expected: Any, scale: float) -> float:
    """The change when the first factor of one layer has its rows moved on by one."""
    factor = next(iter(model.get_submodule(path).children()))
    weight = factor.get_parameter("weight")
    sound = weight.detach().clone()
    weight.data.copy_(-sound.roll(1, 0))
    try:
        return _change(expected, run(model, inputs), scale)
    finally:
        weight.data.copy_(sound)


def _variation(first: Any, second: Any) -> float:
    """How far two outputs are apart, relative to their size; infinite where their shapes differ."""
    size = _norm(list(find_tensors(first)))
    return _distance(first, second) / size if size > 0 else 0.0


def _scale(example: Any, expected: Any) -> float:
    """What a change is measured by: the distance of two outputs, their size if shapes differ; 0 if all is alike."""
    distance, size = _distance(example, expected), _norm(list(find_tensors(expected)))
    if math.isinf(distance):
        return size
    return distance if distance > _VARIES * size else 0.0


def _change(expected: Any, got: Any, scale: float) -> float:
    distance = _distance(expected, got)
    return distance / scale if scale > 0 else distance


def _distance(first: Any, second: Any) -> float:
    """Euclidean distance of all tensors of two outputs; infinite where their shapes or NaNs differ."""
    ours, theirs = list(find_tensors(first)), list(find_tensors(second))
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return math.inf
    pairs = [(_wide(a), _wide(b)) for a, b in zip(ours, theirs, strict=True)]
    if any(not torch.equal(torch.isfinite(a), torch.isfinite(b)) for a, b in pairs):
        return math.inf
    return _norm([(a - b)[torch.isfinite(a)] for a, b in pairs])


def _norm(tensors: Sequence[Tensor]) -> float:
    squares = sum(float(_wide(tensor)[torch.isfinite(tensor)].abs().square().sum()) for tensor in tensors)
    return math.sqrt(squares)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
