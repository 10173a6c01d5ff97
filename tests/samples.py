"""Small hand-made recorded runs and outcomes for tests of pictures and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.fx

from bottleneck_opt.graph import Cost, ModelGraph, Node, Replay, Traced
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.outcome import Outcome, Provenance, Skipped, Speed, Verification
from bottleneck_opt.plan import Plan, Step

Shape = tuple[int, ...]
_FREE = Cost()


def conv_spec(name: str, i: int, o: int, kernel: int = 3) -> LayerSpec:
    """A stride 1 convolution that keeps the size."""
    return LayerSpec(name, "Conv2d", i, o, (kernel, kernel), (1, 1), (kernel // 2,) * 2, (1, 1), bias=False)


@dataclass
class Run:
    """Writes down a run, one operation after another, on a batch of one at a fixed size."""

    size: int = 8
    nodes: list[Node] = field(default_factory=list)

    def input(self, channels: int, name: str = "x") -> str:
        return self._add(Node(name, "input", name, "", (), (), (), (self._shape(channels),)))

    def conv(self, path: str, source: str, i: int, o: int, *, kernel: int = 3, classes: Sequence[str] = ()) -> str:
        spec = conv_spec(path.rpartition(".")[2], i, o, kernel)
        cost = Cost(macs=spec.params * self.size**2, params=spec.params)
        return self.module(path, "Conv2d", (source,), o, cost=cost, layer=spec, classes=classes)

    def module(
        self, path: str, operation: str, sources: Iterable[str], channels: int, *, cost: Cost = _FREE,
        layer: LayerSpec | None = None, classes: Sequence[str] = (),
    ) -> str:  # fmt: skip
        node = self._node("module", operation, path, tuple(sources), channels)
        return self._add(replace(node, cost=cost, layer=layer, stack=_stack(path.rpartition(".")[0], classes)))

    def function(self, operation: str, sources: Iterable[str], channels: int, *, path: str = "") -> str:
        node = self._node("function", operation, path, tuple(sources), channels)
        return self._add(replace(node, stack=_stack(path, ("Sequential", "Block"))))

    def output(self, source: str) -> str:
        shape = self._shapes((source,))
        return self._add(Node("output", "output", "output", "", (), (source,), shape, shape))

    def traced(self) -> Traced:
        cost = sum((node.cost for node in self.nodes), Cost())
        inputs = Inputs((torch.zeros(1, 3, self.size, self.size),))
        return Traced(torch.fx.Graph(), ModelGraph(tuple(self.nodes)), cost, Replay(True, 0.0), inputs)

    def _node(self, kind: str, operation: str, path: str, sources: tuple[str, ...], channels: int) -> Node:
        name = self._name(path if kind == "module" else operation)
        shape = self._shape(channels)
        return Node(name, kind, operation, path, (("", "Net"),), sources, self._shapes(sources), (shape,))

    def _name(self, wanted: str) -> str:
        plain, used = wanted.replace(".", "_"), {node.name for node in self.nodes}
        return next(name for name in (plain, *(f"{plain}_{i}" for i in range(1, 999))) if name not in used)

    def _shape(self, channels: int) -> Shape:
        return (1, channels, self.size, self.size)

    def _shapes(self, names: Iterable[str]) -> tuple[Shape, ...]:
        shapes = {node.name: node.output_shapes for node in self.nodes}
        return tuple(shape for name in names for shape in shapes[name])

    def _add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name


def _stack(path: str, classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The modules around a place, outermost first, of the classes given."""
    names = path.split(".") if path else []
    paths = [".".join(names[: i + 1]) for i in range(len(names))]
    return (("", "Net"), *zip(paths, [*classes, *["Sequential"] * len(paths)], strict=False))


def residual_run(blocks: int = 3, *, replaced: dict[str, int] | None = None, width: int = 16) -> Run:
    """A stem, residual blocks ``blocks.0``, ``blocks.1``, ... and a head.

    Args:
        blocks: How many blocks.
        replaced: Rank of each 3x3 that is already split into ``reduce`` and ``conv``.
        width: Channels of the blocks.
    """
    run, replaced = Run(), replaced or {}
    x = run.conv("stem", run.input(3), 3, width)
    for index in range(blocks):
        x = _residual_block(run, f"blocks.{index}", x, width, replaced)
    x = run.module("pool", "AdaptiveAvgPool2d", (x,), width)
    run.output(x)
    return run


def _residual_block(run: Run, path: str, x: str, width: int, replaced: dict[str, int]) -> str:
    y = x
    for name in ("conv1", "conv2"):
        y = _convolution(run, f"{path}.{name}", y, width, replaced.get(f"{path}.{name}"))
        y = run.module(f"{path}.bn_{name}", "BatchNorm2d", (y,), width, classes=("Sequential", "Block"))
        if name == "conv1":
            y = run.module(f"{path}.relu", "ReLU", (y,), width, classes=("Sequential", "Block"))
    added = run.function("add", (y, x), width, path=path)
    return run.module(f"{path}.relu2", "ReLU", (added,), width, classes=("Sequential", "Block"))


def _convolution(run: Run, path: str, x: str, width: int, rank: int | None) -> str:
    classes = ("Sequential", "Block", "Factored")
    if rank is None:
        return run.conv(path, x, width, width, classes=classes)
    narrow = run.conv(f"{path}.reduce", x, width, rank, kernel=1, classes=classes)
    return run.conv(f"{path}.conv", narrow, rank, width, classes=classes)


def reduce_step(path: str, rank: int, *, width: int = 16, size: int = 8, loss: float = 0.01) -> Step:
    """A 3x3 convolution split into a 1x1 and a 3x3."""
    original = conv_spec(path.rpartition(".")[2], width, width)
    layers = (conv_spec("reduce", width, rank, 1), conv_spec("conv", rank, width))
    before, after = original.params, sum(layer.params for layer in layers)
    return Step(
        path, (path,), "reduce", "reduce", (rank,), (width,), original, layers,
        Cost(before * size**2, before), Cost(after * size**2, after), loss,
    )  # fmt: skip


def residual_outcome(
    ranks: dict[str, int] | None = None, *, blocks: int = 3, skipped: tuple[Skipped, ...] | None = None
) -> Outcome:
    """An optimised residual net.

    Args:
        ranks: Rank for each replaced path; by default ``blocks.1.conv1`` at rank 4.
        blocks: How many blocks the net has.
        skipped: What was left alone.
    """
    ranks = {"blocks.1.conv1": 4} if ranks is None else ranks
    before, after = residual_run(blocks).traced(), residual_run(blocks, replaced=ranks).traced()
    steps = tuple(reduce_step(path, rank) for path, rank in ranks.items())
    return _outcome(before, after, steps, (stem_skip(before),) if skipped is None else skipped)


def stem_skip(before: Traced) -> Skipped:
    """The stem, left alone."""
    cost = before.structure.node("stem").cost
    return Skipped("stem", "conv 3x3", "3 input channels: no rank is cheaper", "", cost, cost.macs / before.cost.macs)


def _outcome(before: Traced, after: Traced, steps: tuple[Step, ...], skipped: tuple[Skipped, ...]) -> Outcome:
    plan = Plan(
        model="tests.samples.Net", budget="macs=0.5", passes=("reduce",), seed=0, before=before.cost, after=after.cost,
        predicted_loss=sum(step.predicted_loss for step in steps), optimality_gap=0.0, steps=steps,
    )  # fmt: skip
    verification = Verification(
        data="64 digits", examples=64, predicted_change=plan.predicted_loss, measured_change=0.012, kl=0.003,
        agreement=0.984, graph_difference=1e-7, speed=Speed(2.0, 1.5, 30, 2, "cpu"), metric_before=0.97,
        metric_after=0.96, checks=("The rewritten module and the rewritten graph give the same output.",),
    )  # fmt: skip
    provenance = Provenance(
        "tests.samples.Net", "Tensor 1x3x8x8 float32", "64 digits", ("reduce",), "macs=0.5", 0,
        (("bottleneck_opt", "0.1.0"), ("torch", "2.13.0")), "cpu", 2,
    )  # fmt: skip
    return Outcome(
        plan,
        skipped,
        before,
        after,
        verification,
        True,
        ("A note.",),
        (("tracing", 0.1), ("calibration", 1.5)),
        provenance,
        (),
        None,
    )


def renamed_outcome(outcome: Outcome, old: str, new: str) -> Outcome:
    """The same outcome with ``old`` replaced by ``new`` in every path, operation, class name and free text."""

    def node(n: Node) -> Node:
        stack = tuple((path.replace(old, new), kind.replace(old, new)) for path, kind in n.stack)
        return replace(n, path=n.path.replace(old, new), operation=n.operation.replace(old, new), stack=stack)

    def traced(t: Traced) -> Traced:
        return replace(t, structure=ModelGraph(tuple(map(node, t.structure.nodes))))

    steps = tuple(
        replace(s, path=s.path.replace(old, new), names=tuple(n.replace(old, new) for n in s.names))
        for s in outcome.plan.steps
    )
    skipped = tuple(
        replace(s, path=s.path.replace(old, new), reason=f"{s.reason} {new}", advice=new) for s in outcome.skipped
    )
    return replace(
        outcome, plan=replace(outcome.plan, steps=steps), before=traced(outcome.before), after=traced(outcome.after),
        skipped=skipped, notes=(new,), provenance=replace(outcome.provenance, model=new),
    )  # fmt: skip
