"""The plan: which layers become what. Frozen, and the same text for the same plan."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from bottleneck_opt.errors import FileError
from bottleneck_opt.graph import Cost
from bottleneck_opt.layers import LayerSpec, are_child_names, find_fault

FORMAT = 3
READABLE = (1, 2, 3)  # 1 knew fewer kinds of layers, 2 no dropped channels; what they say means the same
IN_PLACE = "select"  # the form of a layer that only got narrower


@dataclass(frozen=True)
class Step:
    """One layer and the layers that take its place.

    Attributes:
        path: Module path of the layer.
        names: Every path the same module is reachable by, ``path`` first.
        pass_name: The pass that proposed it.
        form: The shape of the replacement: ``reduce``, ``expand``, ...
        ranks: Its bottleneck widths.
        full_ranks: The widths at which nothing would be lost.
        original: The layer as it was.
        layers: The layers in its place, first to last.
        before, after: Cost over all calls of the layer.
        predicted_loss: Predicted squared change of the model's output, relative to the output's variance.

    Where channels were dropped (:class:`Selection`), ``layers`` read or make fewer than ``original``.
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
        return self.form == IN_PLACE

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
class Plan:
    """All steps, with the costs of the whole model before and after.

    Attributes:
        model: Qualified class name of the model that the plan was made for.
        budget: The budget in words, such as ``macs=0.5``.
        predicted_loss: The steps' and selections' predicted losses added up.
        optimality_gap: The chosen steps lose at most this much more than the best choice would.

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
    format: int = FORMAT

    def kept_inputs(self, path: str) -> tuple[int, ...]:
        """The numbers of the input channels that a layer still reads; empty when it reads all."""
        return next((each.kept for each in self.selections if each.consumer == path), ())

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


def _check_layers(step: Step) -> None:
    names = [layer.name for layer in step.layers]
    faults = [fault for layer in (step.original, *step.layers) if (fault := find_fault(layer))]
    if not are_child_names(names):
        faults.append(f"layer names {names} are not distinct names that torch.nn.Sequential leaves free")
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
    first = len(plan.kept_inputs(step.path)) or step.original.in_channels
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


for _record in (Cost, LayerSpec, Step, Selection, Plan):
    with_config(ConfigDict(extra="forbid"))(_record)
