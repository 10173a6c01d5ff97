"""The plan: which layers become what. Frozen, and the same text for the same plan."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from bottleneck_opt.errors import FileError
from bottleneck_opt.graph import Cost
from bottleneck_opt.layers import LayerSpec, are_child_names, find_fault, find_order_fault

FORMAT = 5
READABLE = (1, 2, 3, 4, 5)  # 1 knew fewer layers, 2 no dropped channels, 3 no activations, 4 no time; all mean the same
IN_PLACE = "select"  # the form of a layer that only got narrower
SHARED = "shared"  # the form of a layer that reads a shared bottleneck


@dataclass(frozen=True)
class Step:
    """One layer and the layers that take its place.

    Attributes:
        path: Module path of the layer.
        names: Every path the same module is reachable by, ``path`` first.
        pass_name: The pass that proposed it.
        form: The shape of the replacement: ``reduce``, ``expand``, ...
        ranks: Its bottleneck widths.
        full_ranks: The widths at which nothing would be lost; empty where something is lost at any width.
        original: The layer as it was.
        layers: The layers in its place, first to last.
        before, after: Cost over all calls of the layer.
        predicted_loss: Predicted squared change of the model's output, relative to the output's variance.

    Where channels were dropped (:class:`Selection`), ``layers`` read or make fewer than ``original``; where a
    bottleneck is shared (:class:`Sharing`), they read as many as it makes.
    """

    path: str
    names: tuple[str, ...]
    pass_name: str
    form: str
    ranks: tuple[int, ...]
    full_ranks: tuple[int, ...]
    original: LayerSpec
    layers: tuple[LayerSpec, ...]
    before: Cost
    after: Cost
    predicted_loss: float

    @property
    def in_place(self) -> bool:
        """Whether one narrower layer of the same kind stands at the path itself."""
        return self.form in (IN_PLACE, SHARED)

    @property
    def layer_paths(self) -> tuple[str, ...]:
        """Paths of the new layers."""
        return (self.path,) if self.in_place else tuple(f"{self.path}.{layer.name}" for layer in self.layers)

    @property
    def narrowed(self) -> LayerSpec:
        """The layer as it was, with the channels only that are left."""
        first, last = self.layers[0], self.layers[-1]
        return self.original.named(
            self.original.name, in_channels=first.in_channels, out_channels=last.out_channels
        )  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Channels between two layers of which some are no longer made.

    Attributes:
        producer, consumer: Paths of the layers; both have a step of their own.
        between: Paths of the modules between them that hold values for each channel, and got narrower too.
        channels: How many there were.
        kept: The numbers of those that are left, ascending.
        pass_name: The pass that chose them.
        saved: What the modules between them cost less.
        predicted_loss: As for :class:`Step`; of dropping, on top of what the two steps lose.
    """

    producer: str
    consumer: str
    between: tuple[str, ...]
    channels: int
    kept: tuple[int, ...]
    pass_name: str
    saved: Cost
    predicted_loss: float


@dataclass(frozen=True)
class Sharing:
    """A 1x1 that stands before several layers, which all read one tensor before and read what it makes now.

    Attributes:
        path: Where it is in the model, which is a GraphModule.
        members: Paths of the layers; each has a step of its own, of form ``shared``.
        rank: How many channels it makes.
        full_rank: With how many nothing would be lost.
        layer: The 1x1.
        pass_name: The pass that proposed it.
        cost: What it costs; the steps count the layers after it only.
        predicted_loss: As for :class:`Step`; that of its members' steps added up.
    """

    path: str
    members: tuple[str, ...]
    rank: int
    full_rank: int
    layer: LayerSpec
    pass_name: str
    cost: Cost
    predicted_loss: float


@dataclass(frozen=True)
class Argument:
    """A tensor of the example call that a graph was recorded with.

    Attributes:
        name: The keyword it was given by; empty for a positional argument.
        shape: Its shape.
        dtype: Its type as torch spells it: ``float32``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Plan:
    """All steps, with the costs of the whole model before and after.

    Attributes:
        model: Qualified class name of the model that the plan was made for.
        budget: The budget in words, such as ``macs=0.5``.
        predicted_loss: The steps' and selections' predicted losses added up.
        optimality_gap: The chosen steps lose at most this much more than the best choice would.
        arguments: The call that the model was recorded with, where it is this recording that was rewritten; empty where
            the call is more than tensors. None where the result is a model of the original's class.

    Example:
        >>> plan = Plan(model="torch.nn.Sequential", budget="macs=0.5", passes=("reduce",), seed=0,
        ...             before=Cost(10, 10), after=Cost(10, 10), predicted_loss=0.0, optimality_gap=0.0, steps=())
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    model: str
    budget: str
    passes: tuple[str, ...]
    seed: int
    before: Cost
    after: Cost
    predicted_loss: float
    optimality_gap: float
    steps: tuple[Step, ...]
    selections: tuple[Selection, ...] = ()
    sharings: tuple[Sharing, ...] = ()
    arguments: tuple[Argument, ...] | None = None
    format: int = FORMAT

    def kept_inputs(self, path: str) -> tuple[int, ...]:
        """The numbers of the input channels that a layer still reads; empty when it reads all."""
        return next((each.kept for each in self.selections if each.consumer == path), ())

    def count_inputs(self, path: str) -> int:
        """How many input channels a layer with dropped ones or a shared bottleneck reads; 0 when it reads all."""
        shared = next((each.rank for each in self.sharings if path in each.members), 0)
        return shared or len(self.kept_inputs(path))

    def kept_outputs(self, path: str) -> tuple[int, ...]:
        """The numbers of the output channels that a layer still makes; empty when it makes all."""
        return next((each.kept for each in self.selections if each.producer == path), ())

    def to_json(self) -> str:
        """The plan as indented JSON, the same text for the same plan."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            FileError: The text is not a plan of this format; the message names the first wrong field.
        """
        try:
            plan = _reader().validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text as a whole"
            raise FileError(
                f"this is not a valid plan: {where}: {first['msg']}. Use the plan.json that result.save() wrote."
            ) from error
        _check_plan(plan)
        return plan


def _reader() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


def _check_plan(plan: Plan) -> None:
    if plan.format not in READABLE:
        raise FileError(
            f"the plan has format {plan.format}, this version reads formats {' and '.join(map(str, READABLE))}. "
            "Load it with the version that wrote it, or run optimize again."
        )
    for step in plan.steps:
        _check_layers(step)
        _check_chain(step, plan)
    for selection in plan.selections:
        _check_selection(selection, {step.path for step in plan.steps})
    _check_sharings(plan)


def _check_layers(step: Step) -> None:
    names = [layer.name for layer in step.layers]
    faults = [fault for layer in (step.original, *step.layers) if (fault := find_fault(layer))]
    if not are_child_names(names):
        faults.append(f"layer names {names} are not distinct names that torch.nn.Sequential leaves free")
    faults += [fault for fault in [find_order_fault(step.layers)] if fault]
    if any(layer.subclass not in ("", step.original.subclass) for layer in step.layers):
        faults.append(f"a layer is of another class than '{step.original.subclass}'")
    if faults:
        raise FileError(
            f"the plan's layers for '{step.path}' cannot be built: {faults[0]}. "
            "Use the plan.json that result.save() wrote."
        )


def _check_chain(step: Step, plan: Plan) -> None:
    if not step.layers:
        raise FileError(f"the plan's step for '{step.path}' has no layers. Use the plan.json that result.save() wrote.")
    first = plan.count_inputs(step.path) or step.original.in_channels
    last = len(plan.kept_outputs(step.path)) or step.original.out_channels
    widths = [first, *(layer.out_channels for layer in step.layers)]
    inputs = [layer.in_channels for layer in step.layers]
    if widths[:-1] != inputs or widths[-1] != last or (step.in_place and len(step.layers) > 1):
        raise FileError(
            f"the plan's layers for '{step.path}' do not fit each other: widths {inputs} -> {widths[1:]}, expected "
            f"{first} ... {last}. Use the plan.json that result.save() wrote."
        )


def _check_selection(selection: Selection, paths: set[str]) -> None:
    ascending = all(one < other for one, other in itertools.pairwise((-1, *selection.kept, selection.channels)))
    if not selection.kept or not ascending or not {selection.producer, selection.consumer} <= paths:
        raise FileError(
            f"the plan's selection between '{selection.producer}' and '{selection.consumer}' does not fit: expected "
            f"steps for both, and numbers below {selection.channels} in ascending order. Use the plan.json that "
            "result.save() wrote."
        )


def _check_sharings(plan: Plan) -> None:
    """Every step of form ``shared`` is a member of one sharing, and each sharing's 1x1 can stand before its members."""
    members = sorted(path for sharing in plan.sharings for path in sharing.members)
    expected = sorted(step.path for step in plan.steps if step.form == SHARED)
    paths = [sharing.path for sharing in plan.sharings]
    faults = [f"'{each.path}': {fault}" for each in plan.sharings if (fault := _find_sharing_fault(each, plan))]
    if members != expected:
        faults.append(f"its members are {members}; expected the steps of form '{SHARED}', {expected}")
    if len(set(paths)) < len(paths) or set(paths) & {step.path for step in plan.steps}:
        faults.append(f"the paths {paths} are not all different")
    if plan.sharings and plan.arguments is None:
        faults.append("it does not say what call the model was recorded with")
    if faults:
        raise FileError(
            f"the plan's shared bottlenecks do not fit: {faults[0]}. Use the plan.json that result.save() wrote."
        )


def _find_sharing_fault(sharing: Sharing, plan: Plan) -> str:
    layer, widths = sharing.layer, {s.original.in_channels for s in plan.steps if s.path in sharing.members}
    if not sharing.path.isidentifier():
        return "is not the name of a module of the model itself"
    if len(sharing.members) < 2:
        return "has fewer than two members"
    if fault := find_fault(layer):
        return fault
    if not layer.is_pointwise or layer.is_activation or layer.bias or layer.groups > 1:
        return "is no 1x1 without bias and groups"
    if layer.out_channels != sharing.rank or {layer.in_channels} != widths:
        return f"its widths {layer.in_channels} -> {layer.out_channels} are not {sorted(widths)} -> {sharing.rank}"
    return ""


for _record in (Cost, LayerSpec, Step, Selection, Sharing, Argument, Plan):
    with_config(ConfigDict(extra="forbid"))(_record)
