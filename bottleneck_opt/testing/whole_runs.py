"""Run the whole tool with a pass on a small model: the plan, saving, exporting, drawing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bottleneck_opt.errors import tell
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.plan import Plan
from bottleneck_opt.result import Result
from bottleneck_opt.saving import load
from bottleneck_opt.sites import AnyPass
from bottleneck_opt.testing.answers import copy_pass
from bottleneck_opt.testing.faults import make_error
from bottleneck_opt.testing.sample_models import SampleModel

_CLOSE = 1e-5


@dataclass(frozen=True)
class Ran:
    """What came of a run: how many layers were changed, and the share of the multiply-adds that is left."""

    steps: int
    share: float


def run_model(owner: AnyPass, sample: SampleModel, *, thoroughly: bool) -> Ran:
    """Optimise a model with nothing but this pass, and check what comes back.

    Args:
        owner: The pass.
        sample: The model.
        thoroughly: Also do it again, save, load, export and draw, where anything was changed.

    Raises:
        ConformanceError: Something does not work.
    """
    model = sample.make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = _optimize(owner, sample, model)
    _check_model(owner.name, sample.name, model, before)
    share = result.after.cost.macs / max(1, result.before.cost.macs)
    if result.after.cost.macs > result.before.cost.macs:
        raise make_error(
            owner.name, sample.name, "grows the layer", f"the model got {share:.2f} times its multiply-adds",
            "Offer what saves something.",
        )  # fmt: skip
    if thoroughly and result.plan.steps:
        _check_drawing(owner.name, sample.name, result)
        _check_again(owner, sample, result.plan)
        _check_saving(owner.name, sample, result)
        _check_export(owner.name, sample, result.model)
    return Ran(len(result.plan.steps), share)


def _optimize(owner: AnyPass, sample: SampleModel, model: nn.Module) -> Result:
    try:
        return optimize(
            model, sample.example, calibration=sample.inputs, passes=[owner], allow_slower=True, progress=False
        )
    except Exception as error:  # the pass's own, or what the tool makes of its answer
        raise make_error(
            owner.name, sample.name, "raises", f"bottleneck_opt.optimize failed with {tell(error)}", "Mend the pass."
        ) from error


def _check_model(name: str, where: str, model: nn.Module, before: Mapping[str, Tensor]) -> None:
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise make_error(
            name, where, "changes what it is shown", f"the model's {changed[0]} is not what it was",
            "A pass only looks: clone a tensor before changing it.",
        )  # fmt: skip


def _check_again(owner: AnyPass, sample: SampleModel, plan: Plan) -> None:
    again = _optimize(copy_pass(owner), sample, sample.make())
    if _write_plan(owner.name, sample.name, again.plan) != _write_plan(owner.name, sample.name, plan):
        raise make_error(
            owner.name, sample.name, "keeps state", "the same model, data and seed gave another plan",
            "Keep nothing between calls, and use no random numbers without a seed.",
        )  # fmt: skip


def _check_drawing(name: str, where: str, result: Result) -> None:
    try:
        sources = [result.draw("before").source, result.draw("after").source, result.draw("diff").source]
        texts = [str(result), *sources]
    except Exception as error:  # a picture is made of what the pass said
        raise make_error(
            name, where, "cannot be drawn", tell(error),
            "Pictures show Option.form, .ranks, .full_ranks and .predicted_loss: a str, two tuples of int, a float.",
        ) from error  # fmt: skip
    assert all(texts)


def _write_plan(name: str, where: str, plan: Plan) -> str:
    try:
        text = plan.to_json()
        Plan.from_json(text)
    except Exception as error:  # whatever JSON cannot hold
        raise make_error(
            name, where, "cannot be saved", f"the plan: {tell(error)}",
            "Ranks and widths must be int, predicted_loss a finite float, form a str: no tensors or numpy numbers.",
        ) from error  # fmt: skip
    return text


def _check_saving(name: str, sample: SampleModel, result: Result) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            loaded = load(result.save(folder), sample.make(), sample.example)
        except Exception as error:  # whatever a file cannot hold
            raise make_error(
                name, sample.name, "cannot be saved", tell(error), "Describe layers by LayerSpec and numbers alone."
            ) from error
    with torch.no_grad():
        if not torch.equal(loaded.eval()(sample.example), result.model.eval()(sample.example)):
            raise make_error(
                name, sample.name, "cannot be saved", "the loaded model gives other outputs",
                "Keep all that the layers need in their weights.",
            )  # fmt: skip


def _check_export(name: str, sample: SampleModel, model: nn.Module) -> None:
    model = model.eval()
    try:
        exported = torch.export.export(model, (sample.example,)).module()
        with torch.no_grad():
            got, expected = exported(sample.example), model(sample.example)
    except Exception as error:  # torch.export raises all kinds
        raise make_error(
            name, sample.name, "cannot be exported", f"torch.export: {tell(error)}", "Use torch's own layers."
        ) from error
    if not torch.allclose(got, expected, rtol=_CLOSE, atol=_CLOSE):
        raise make_error(
            name, sample.name, "cannot be exported", "the exported model gives other outputs", "Use torch's own layers."
        )
