"""A model's layers as a Keras user knows them from ``model.summary()``."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from bottleneck_opt.graph import Node, Traced
from bottleneck_opt.layers import LINEAR

WIDTH = 88
_COLUMNS = (36, 28, 14)
_BYTE_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_NEVER = "(did not run)"


@dataclass(frozen=True)
class Weight:
    """One tensor of a model's state.

    Attributes:
        name: Its path; of a tensor that has several, the first.
        count: How many numbers it holds.
        bytes: What they take in the model's own precision.
        trainable: Whether an optimizer would change it.
        statistic: A buffer, such as the running mean of a batch norm: Keras counts it, torch does not.
    """

    name: str
    count: int
    bytes: int
    trainable: bool
    statistic: bool = False


@dataclass(frozen=True)
class SummaryRow:
    """One layer or single weight.

    Attributes:
        path: Where it is.
        kind: Its class.
        shapes: Of its output in its first call; a text where nothing was called.
        weights: Its own, and those of what is inside it.
    """

    path: str
    kind: str
    shapes: tuple[tuple[int, ...], ...] | str
    weights: tuple[Weight, ...]


@dataclass(frozen=True)
class ModelSummary:
    """All layers in the order they ran, then those with weights that did not run.

    Attributes:
        model: Class name.
        batch: Size of the batch axis of the example input; None when it has no axes.
        convolves: Whether some layer is a convolution.
        rows: The layers.
    """

    model: str
    batch: int | None
    convolves: bool
    rows: tuple[SummaryRow, ...]

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Each weight once, however many layers share it."""
        return tuple({weight.name: weight for row in self.rows for weight in row.weights}.values())


def summarize_model(model: nn.Module, built: nn.Module, traced: Traced) -> ModelSummary:
    """Which layers ran and what weights they have.

    Args:
        model: The caller's, which tells the precision and what is trained.
        built: A copy of it in which every lazy weight has its shape.
        traced: Its recorded run.
    """
    nodes = traced.structure.nodes
    weights = _list_weights(model, built)
    ran = _list_ran(nodes, built, weights)
    shape = next((node.output_shapes[0] for node in nodes if node.output_shapes), ())
    return ModelSummary(
        model=type(model).__name__,
        batch=shape[0] if shape else None,
        convolves=any(node.layer is not None and node.layer.kind != LINEAR for node in nodes),
        rows=(*ran, *_list_rest(ran, built, weights)),
    )


def _list_ran(nodes: Iterable[Node], built: nn.Module, weights: Mapping[str, Weight]) -> tuple[SummaryRow, ...]:
    """Each layer that was called, once, and each weight that the code of another module used."""
    modules = dict(built.named_modules(remove_duplicate=False))
    rows: dict[str, SummaryRow] = {}
    for node in nodes:
        if node.kind == "module" and node.path not in rows:
            module = modules[node.path]
            found = tuple(_inside(node.path, module, weights))
            rows[node.path] = SummaryRow(node.path, type(module).__name__, node.output_shapes, found)
        if node.kind == "attribute" and node.operation in weights:
            weight = weights[node.operation]
            kind = "Buffer" if weight.statistic else "Parameter"
            rows[weight.name] = SummaryRow(weight.name, kind, str(node.output_shapes[0]), (weight,))
    return tuple(rows.values())


def _list_rest(ran: Iterable[SummaryRow], built: nn.Module, weights: Mapping[str, Weight]) -> Iterator[SummaryRow]:
    """The modules with weights that nothing used."""
    used = {weight for row in ran for weight in row.weights}
    for path, module in built.named_modules():
        rest = tuple(weight for weight in _direct(path, module, weights) if weight not in used)
        if rest:
            yield SummaryRow(path, type(module).__name__, _NEVER, rest)


def _list_weights(model: nn.Module, built: nn.Module) -> dict[str, Weight]:
    """Every parameter and every floating-point buffer of the state dict, by each of its names."""
    own = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    kept = built.state_dict(keep_vars=True)
    first: dict[int, Weight] = {}
    for name, tensor in kept.items():
        if isinstance(tensor, Tensor) and (isinstance(tensor, nn.Parameter) or tensor.is_floating_point()):
            first.setdefault(id(tensor), _describe(name, tensor, own.get(name, tensor)))
    return {name: first[id(tensor)] for name, tensor in kept.items() if id(tensor) in first}


def _describe(name: str, tensor: Tensor, own: Tensor) -> Weight:
    statistic = not isinstance(tensor, nn.Parameter)
    return Weight(name, tensor.numel(), tensor.numel() * own.dtype.itemsize, own.requires_grad, statistic)


def _inside(path: str, module: nn.Module, weights: Mapping[str, Weight]) -> Iterable[Weight]:
    """A module's weights with those of the modules in it."""
    parts = (_direct(_join(path, name), child, weights) for name, child in module.named_modules())
    return dict.fromkeys(weight for part in parts for weight in part)


def _direct(path: str, module: nn.Module, weights: Mapping[str, Weight]) -> Iterable[Weight]:
    """A module's own weights."""
    names = (_join(path, name) for name in [*module._parameters, *module._buffers])
    return dict.fromkeys(weights[name] for name in names if name in weights)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def render_keras(summary: ModelSummary) -> str:
    """The table as plain text of 88 columns."""
    text = io.StringIO()
    console = Console(
        file=text, width=WIDTH, color_system=None, highlight=False, legacy_windows=False, force_jupyter=False
    )
    console.print(draw_keras(summary))
    return text.getvalue()


def draw_keras(summary: ModelSummary, *, width: int = WIDTH) -> Group:
    """The table with its totals, for a rich console of so many columns; it is never wider than 88."""
    width = min(width, WIDTH)
    spare = (WIDTH - width) // 2  # taken from names and shapes, which are folded
    names, shapes, counts = _COLUMNS
    widths = (max(1, names - spare), max(1, shapes - (WIDTH - width - spare)), counts)
    table = Table(show_lines=True, width=width)
    for heading, columns in zip(("Layer (type)", "Output Shape", "Param #"), widths, strict=True):
        table.add_column(heading, width=columns, justify="right" if heading == "Param #" else "left", overflow="fold")
    for row in summary.rows:
        name = f"{escape(row.path or summary.model)} ([color(33)]{escape(row.kind)}[/])"
        table.add_row(name, _shapes(row, summary.batch), f"[color(34)]{sum(w.count for w in row.weights):,}[/]")
    weights = summary.weights
    totals = [
        _total("Total", weights),
        _total("Trainable", [weight for weight in weights if weight.trainable]),
        _total("Non-trainable", [weight for weight in weights if not weight.trainable]),
    ]
    return Group(f'[bold]Model: "{escape(summary.model)}"[/]', table, *totals, *_remarks(summary))


def _shapes(row: SummaryRow, batch: int | None) -> str:
    if isinstance(row.shapes, str):
        return row.shapes
    return "\n".join(escape(_shape(shape, batch)) for shape in dict.fromkeys(row.shapes))


def _shape(shape: tuple[int, ...], batch: int | None) -> str:
    """A shape as Keras writes it.

    Example:
        >>> _shape((8, 2, 4, 4), 8), _shape((), 8)
        ('(None, 2, 4, 4)', '()')
    """
    if shape and shape[0] == batch:
        return f"({', '.join(['None', *map(str, shape[1:])])})"
    return str(shape)


def _total(name: str, weights: Iterable[Weight]) -> str:
    each = list(weights)
    count, size = sum(weight.count for weight in each), sum(weight.bytes for weight in each)
    return f"[bold] {name} params: [/][color(34)]{count:,}[/] ({_bytes(size)})"


def _bytes(size: float) -> str:
    """Bytes as Keras writes them, 1024 to the next unit.

    Example:
        >>> _bytes(224), _bytes(102_228_128)
        ('224.00 B', '97.49 MB')
    """
    unit = min(int(math.log(size, 1024)), len(_BYTE_UNITS) - 1) if size >= 1 else 0
    return f"{size / 1024**unit:.2f} {_BYTE_UNITS[unit]}"


def _remarks(summary: ModelSummary) -> list[str]:
    """What is not as in Keras."""
    remarks = []
    if summary.convolves:
        remarks.append(" Output shapes are in torch's order: the channels come right after the batch.")
    statistics = sum(weight.count for weight in summary.weights if weight.statistic)
    if statistics:
        remarks.append(f" As in Keras, {statistics:,} running statistics (torch's buffers) count as non-trainable.")
    return remarks
