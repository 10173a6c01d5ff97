from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrizations import weight_norm

from bottleneck_opt import (
    Budget,
    BudgetError,
    InputError,
    ModelError,
    NotAvailableError,
    PassError,
    PatternError,
    Plan,
    Result,
    calibrate,
    optimize,
    to_graph_module,
)
from bottleneck_opt.graph import Cost
from bottleneck_opt.optimizer import _is_met
from bottleneck_opt.outcome import Skipped
from bottleneck_opt.passes.reduce import Reduce
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.sites import Option, Site, Skip
from tests.networks import Computes, Repeated, Residual, classifier, conv, measured, noise, seeded

X = noise(2, 3, 8, 8)


def run(model: nn.Module, inputs: Any = X, **options: Any) -> Result:
    return optimize(model, inputs, **{"progress": False, **options})


def skipped(result: Result) -> dict[str, Skipped]:
    return {each.path: each for each in result.skipped}


def layers_of(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)}


@dataclass
class Snapshot:
    """Everything about a model that optimising must leave alone."""

    tensors: dict[str, tuple[int, Tensor]]
    gradients: dict[str, tuple[int, Tensor]]
    flags: dict[str, tuple[bool, tuple[int, ...]]]
    frozen: list[bool]
    modules: dict[str, int]

    @classmethod
    def take(cls, model: nn.Module) -> Snapshot:
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return cls(
            {name: (tensor.data_ptr(), tensor.detach().clone()) for name, tensor in named.items()},
            {name: (t.grad.data_ptr(), t.grad.clone()) for name, t in named.items() if t.grad is not None},
            {
                path: (module.training, tuple(map(id, module._forward_hooks.values())))
                for path, module in model.named_modules()
            },
            [parameter.requires_grad for parameter in model.parameters()],
            {path: id(module) for path, module in model.named_modules()},
        )

    def check(self, model: nn.Module) -> None:
        now = Snapshot.take(model)
        for mine, theirs in ((self.tensors, now.tensors), (self.gradients, now.gradients)):
            assert mine.keys() == theirs.keys()
            for name, (place, values) in mine.items():
                assert theirs[name][0] == place, name
                assert torch.equal(theirs[name][1], values), name
        assert (self.flags, self.frozen, self.modules) == (now.flags, now.frozen, now.modules)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_callers_model_is_bit_identical_afterwards(training: bool, dtype: torch.dtype) -> None:
    net = seeded(lambda: Residual(dropout=0.5), dtype=dtype)
    net(X.to(dtype)).sum().backward()
    net.train(training)
    net.blocks.eval()
    net.stem.requires_grad_(False)
    net.head.register_forward_hook(lambda module, args, output: output + 1)
    snapshot = Snapshot.take(net)
    torch.manual_seed(3)
    state, call = torch.get_rng_state(), nn.Module.__call__
    result = run(net, X.to(dtype), evaluate=lambda model: float(model(X.to(dtype)).mean().detach()), budget=0.7)
    assert result.plan.steps
    snapshot.check(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.Module.__call__ is call
    assert torch.is_grad_enabled()
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert not shared


@pytest.mark.parametrize("training", [True, False])
def test_the_result_has_the_callers_class_and_flags(training: bool) -> None:
    net = seeded(Residual).train(training)
    net.blocks[1].eval()
    result = run(net)
    assert type(result.model) is Residual
    for path, module in net.named_modules():
        assert result.model.get_submodule(path).training is module.training


def test_an_error_leaves_model_and_global_state_alone() -> None:
    net = seeded(Residual).train()
    snapshot, state = Snapshot.take(net), torch.get_rng_state()
    with pytest.raises(BudgetError):
        run(net, budget=0.001)
    with pytest.raises(InputError, match="ZeroDivisionError"):
        run(net, evaluate=lambda model: 1 / 0)
    snapshot.check(net)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_and_calibration_are_not_changed() -> None:
    net = seeded(lambda: nn.Sequential(nn.ReLU(inplace=True), classifier()))
    x, data = X.clone(), noise(6, 3, 8, 8, seed=1)
    kept = data.clone()
    run(net, x, calibration=data)
    assert torch.equal(x, X)
    assert torch.equal(data, kept)


def test_a_model_that_writes_into_its_input_is_calibrated_on_the_data_as_they_were() -> None:
    def inside(net: Any, x: Tensor) -> Tensor:
        return net.c(x.sub_(1).mul_(3))  # type: ignore[no-any-return]

    def outside(net: Any, x: Tensor) -> Tensor:
        return net.c(3 * (x - 1))  # type: ignore[no-any-return]

    one, two = (run(seeded(lambda f=f: Computes(f, c=conv(3, 16)))) for f in (inside, outside))  # type: ignore[misc]
    assert one.plan == two.plan
    assert measured(one.verification) == pytest.approx(measured(two.verification))


def test_a_model_alone_is_enough() -> None:
    layers = conv(3, 8, stride=4), nn.ReLU(), conv(8, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = seeded(lambda: nn.Sequential(*layers, nn.Linear(16, 5)), dtype=torch.float32)
    result = optimize(net, progress=False)
    assert result.budget_met
    assert result.after.cost.macs <= 0.5 * result.before.cost.macs
    assert any("Tensor 1x3x224x224 float32, noise, from the first convolution" in note for note in result.notes)
    assert any("calibrated on noise" in note for note in result.notes)
    assert not any("were enough" in note or "more examples would help" in note for note in result.notes)
    assert result.verification.kl is not None
    assert result.verification.examples == 32


def test_a_model_that_needs_another_size_is_given_one() -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 12, stride=2), conv(12, 12), nn.Flatten(), nn.Linear(12 * 16 * 16, 3)))
    result = optimize(net, progress=False)
    assert any("at size 32" in note for note in result.notes)


def test_a_model_without_a_convolution_needs_an_input() -> None:
    with pytest.raises(ModelError, match=r"^Sequential: no input was given and none of the guesses ran.*Pass inputs="):
        optimize(nn.Sequential(nn.Linear(4, 4)), progress=False)


def test_the_same_seed_gives_the_same_plan_and_weights() -> None:
    first, second = (run(seeded(Residual), seed=4, calibration=noise(12, 3, 8, 8)) for _ in range(2))
    assert first.plan.to_json() == second.plan.to_json()
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.state_dict().items())


def test_the_global_seed_does_not_matter() -> None:
    plans = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        plans.append(run(seeded(Residual)).plan.to_json())
    assert plans[0] == plans[1]


def test_what_the_plan_says_is_what_the_model_costs() -> None:
    result = run(seeded(Residual))
    assert result.plan.before == result.before.cost
    assert result.plan.after == result.after.cost
    assert result.after.cost.params == sum(parameter.numel() for parameter in result.model.parameters())
    for step in result.plan.steps:
        assert sum(spec.params for spec in step.layers) == step.after.params
        assert step.after.macs < step.before.macs


@pytest.mark.parametrize(
    ("budget", "macs", "params"),
    [
        (0.6, 0.6, 2.0), ("0.6", 0.6, 2.0), ("macs=0.6", 0.6, 2.0), ("params=0.6", 2.0, 0.6),
        ("macs=0.8, params=0.6", 0.8, 0.6), (Budget(macs=0.6, params=0.7), 0.6, 0.7), ({"macs": 0.7}, 0.7, 2.0),
    ],
)  # fmt: skip
def test_every_form_of_budget_is_kept(budget: Any, macs: float, params: float) -> None:
    result = run(seeded(Residual), budget=budget)
    assert result.budget_met
    assert result.plan.steps
    assert result.after.cost.macs <= macs * result.before.cost.macs
    assert result.after.cost.params <= params * result.before.cost.params


def test_an_absolute_budget_is_kept() -> None:
    result = run(seeded(Residual), budget="macs=500k")
    assert result.after.cost.macs <= 500_000


def test_a_budget_of_everything_changes_nothing() -> None:
    net = seeded(Residual)
    result = run(net, budget=1.0)
    assert not result.plan.steps
    assert torch.equal(result.model(X), net(X))


def test_a_default_budget_out_of_reach_gives_the_smallest_plan_and_says_so() -> None:
    result = run(seeded(Residual), include=["head", "stem"])
    assert not result.budget_met
    assert result.after.cost.macs < result.before.cost.macs
    assert any("the budget macs=0.5 is out of reach: this is the smallest plan" in note for note in result.notes)


@pytest.mark.parametrize("budget", [0.01, "macs=0.01", "params=0.01", "macs=0.01,params=0.01", "macs=10"])
def test_a_typed_budget_out_of_reach_is_an_error_that_names_the_smallest(budget: Any) -> None:
    with pytest.raises(BudgetError, match=r"cannot be reached: the smallest reachable is (macs|params)=0\.") as caught:
        run(seeded(Residual), budget=budget)
    smallest = caught.value.smallest
    assert smallest is not None
    for unit, ratio in smallest.items():
        assert run(seeded(Residual), budget=f"{unit}={ratio + 1e-6}").budget_met


def test_the_smallest_budget_that_is_named_can_be_typed() -> None:
    with pytest.raises(BudgetError) as caught:
        run(seeded(Residual), budget=0.01)
    named = str(caught.value).partition("the smallest reachable is ")[2].split(".")
    assert run(seeded(Residual), budget=".".join(named[:2])).budget_met


def test_nothing_worth_rewriting_gives_an_unchanged_copy_with_reasons() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1)))
    result = run(net, noise(1, 1, 8, 8))
    assert result.plan.steps == ()
    assert type(result.model) is nn.Sequential
    assert result.model is not net
    assert torch.equal(result.model(noise(1, 1, 8, 8)), net(noise(1, 1, 8, 8)))
    assert {each.path for each in result.skipped} == {"0", "2"}
    assert all(each.reason for each in result.skipped)
    assert any("nothing was rewritten" in note for note in result.notes)
    assert not result.budget_met
    assert result.graph_module is not None


def test_a_model_without_any_layer_is_an_unchanged_copy() -> None:
    result = run(nn.Sequential(nn.ReLU()), noise(1, 4))
    assert not result.plan.steps
    assert not result.skipped


def test_include_and_exclude_are_globs_over_paths() -> None:
    net = seeded(Residual)
    result = run(net, include=["blocks.*"], exclude=["*.conv2"], budget=0.9)
    rewritten = {step.path for step in result.plan.steps}
    assert rewritten
    assert rewritten <= {"blocks.0.conv1", "blocks.1.conv1"}
    reasons = {path: each.reason for path, each in skipped(result).items()}
    assert reasons["stem"] == reasons["head"] == "not in include="
    assert reasons["blocks.0.conv2"] == "excluded by exclude='*.conv2'"


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(option: str) -> None:
    message = rf"^{option}='block\.0\.conv1' matches none of the model's 6 convolutions.*such as blocks\.0\.conv1"
    with pytest.raises(PatternError, match=message):
        run(seeded(Residual), **{option: ["block.0.conv1"]})


@pytest.mark.parametrize(("option", "pattern"), [("include", "blocks.*"), ("exclude", "*.conv2")])
def test_one_pattern_may_be_given_as_text(option: str, pattern: str) -> None:
    net = seeded(Residual)
    one, several = (run(net, budget=0.9, **{option: given}) for given in (pattern, [pattern]))
    assert one.plan == several.plan
    assert {path: each.reason for path, each in skipped(one).items()} == {
        path: each.reason for path, each in skipped(several).items()
    }


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("wrong", [3, [3], ["blocks.*", 3]])
def test_a_pattern_that_is_no_text_is_refused(option: str, wrong: Any) -> None:
    with pytest.raises(PatternError, match=rf"^{option}: got 3 \(int\); expected globs over module paths as text"):
        run(seeded(Residual), **{option: wrong})


@pytest.mark.parametrize("seed", ["a", 2.5, None, 2**63, 2**70])
def test_a_seed_that_is_no_whole_number_in_range_is_refused(seed: Any) -> None:
    with pytest.raises(InputError, match=rf"^seed: got {seed!r}; expected a whole number of at most 63 bits"):
        run(seeded(Residual), seed=seed)


@pytest.mark.parametrize("name", ["reduce", "expand"])
def test_only_the_chosen_pass_is_used(name: str) -> None:
    result = run(seeded(Residual), passes=[name], budget=0.8)
    assert {step.pass_name for step in result.plan.steps} == {name}
    assert result.plan.passes == (name,)


def test_a_pass_object_may_be_given() -> None:
    assert {step.pass_name for step in run(seeded(Residual), passes=[Reduce()]).plan.steps} == {"reduce"}


@dataclass(frozen=True)
class Picky:
    """A pass that says no to everything."""

    name: ClassVar[str] = "picky"

    def propose(self, site: Site) -> Skip:
        return Skip("not to my taste", "try another day")


@dataclass(frozen=True)
class Broken:
    """A pass that fails."""

    name: ClassVar[str] = "broken"

    def propose(self, site: Site) -> Skip:
        raise KeyError("oops")


@dataclass(frozen=True)
class Growing:
    """A pass whose only option is larger than the layer."""

    name: ClassVar[str] = "growing"

    def propose(self, site: Site) -> list[Option]:
        wide = 10 * site.layer.in_channels
        layers = (
            site.layer.pointwise("reduce", site.layer.in_channels, wide, bias=False),
            site.layer.named("conv", in_channels=wide, bias=True),
        )
        return [Option("growing", (wide,), (wide,), layers, 0.0, lambda: [])]


@dataclass(frozen=True)
class Misfit:
    """A pass whose layers do not fit the site."""

    name: ClassVar[str] = "misfit"

    def propose(self, site: Site) -> list[Option]:
        return [Option("misfit", (1,), (1,), (site.layer.named("conv", out_channels=1),), 0.0, lambda: [])]


def test_a_passs_reason_and_advice_reach_the_report() -> None:
    result = run(seeded(Residual), passes=[Picky()])
    assert not result.plan.steps
    assert {(each.reason, each.advice, each.passes) for each in result.skipped} == {
        ("not to my taste", "try another day", ("picky",))
    }
    assert "not to my taste" in str(result)


def test_a_pass_that_fails_is_named_with_the_layer() -> None:
    with pytest.raises(
        PassError, match=r"^pass 'broken' failed on 'stem' \(conv 3x3\): KeyError: 'oops'\. Leave it out"
    ):
        run(seeded(Residual), passes=[Broken()])


def test_an_option_that_costs_more_is_never_used() -> None:
    result = run(seeded(Residual), passes=[Growing()])
    assert not result.plan.steps
    assert all("no rank of 'growing' costs fewer macs" in each.reason for each in result.skipped)


def test_an_option_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PassError, match=r"pass 'misfit' on 'stem', ranks \(1,\): got channel widths .*; expected"):
        run(seeded(Residual), passes=[Misfit()])


def test_evaluate_is_measured_before_and_after_on_models_in_eval_mode() -> None:
    net, seen = seeded(Residual).train(), []

    def evaluate(model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        seen.append(model)
        return sum(parameter.numel() for parameter in model.parameters())

    result = run(net, evaluate=evaluate)
    assert result.verification.metric_before == result.before.cost.params
    assert result.verification.metric_after == result.after.cost.params
    assert len(seen) == 2
    assert net not in seen
    assert result.model not in seen


def test_scores_a_sample_are_averaged() -> None:
    assert run(seeded(Residual), evaluate=lambda model: [1.0, 2.0]).verification.metric_before == 1.5
    assert run(seeded(Residual), evaluate=lambda model: torch.tensor([1, 4])).verification.metric_after == 2.5


@pytest.mark.parametrize("answer", ["good", None, float("nan"), [], [1.0, float("inf")], object(), {"accuracy": 0.5}])
def test_an_evaluation_that_returns_no_number_is_refused(answer: Any) -> None:
    with pytest.raises(InputError, match=r"^evaluate: returned .* for the model before; expected a finite number"):
        run(seeded(Residual), evaluate=lambda model: answer)


def test_an_evaluation_that_is_no_function_is_refused() -> None:
    with pytest.raises(InputError, match=r"^evaluate: got float; expected a function of a model"):
        run(seeded(Residual), evaluate=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": {"memory": "50MB"}}, "^budget memory=50MB: this version limits macs, params, latency only"),
    ],
)
def test_what_this_version_lacks_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    never = Computes(lambda net, x: pytest.fail("ran"), c=conv(3, 3))
    with pytest.raises(NotAvailableError, match=message):
        run(never, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_constants_of_the_graph_module_are_as_exact_as_the_models(dtype: torch.dtype) -> None:
    third = np.full(1, 1 / 3)
    net = seeded(lambda: Computes(lambda net, x: net.a(x).double() * torch.from_numpy(third), a=conv(3, 16)))
    result, x = run(net.to(dtype), noise(1, 3, 8, 8).to(dtype), budget=0.5), noise(1, 3, 8, 8, seed=1).to(dtype)
    assert result.graph_module is not None
    assert torch.equal(result.graph_module(x), result.model(x))


def test_unknown_options_are_refused_by_python_itself() -> None:
    with pytest.raises(TypeError, match="bugdet"):
        run(seeded(Residual), bugdet=0.5)


@pytest.mark.parametrize("wrong", [nn.Conv2d, {"a": 1}, "resnet50", None])
def test_what_is_no_module_is_refused(wrong: Any) -> None:
    with pytest.raises(ModelError, match=rf"^model: got {type(wrong).__name__}; expected a torch.nn.Module"):
        run(wrong)


def test_the_prediction_is_near_the_measured_change() -> None:
    result = run(
        seeded(Residual), noise(1, 3, 8, 8), calibration=noise(64, 3, 8, 8, seed=1), budget=0.8,
        passes=["reduce", "expand", "tucker", "spatial"], recipe=Recipe(joint=0),
    )  # fmt: skip
    check = result.verification
    assert check.predicted_change == pytest.approx(sum(step.predicted_loss for step in result.plan.steps))
    assert 0 < measured(check) < 1
    assert measured(check) / 4 < check.predicted_change < measured(check) * 4
    assert check.examples == 64
    assert check.speed is not None
    assert check.speed.before > 0
    assert check.agreement is not None


def test_the_prediction_counts_dropped_channels_too() -> None:
    result = run(seeded(Residual), noise(1, 3, 8, 8), calibration=noise(64, 3, 8, 8, seed=1), budget=0.5)
    dropped = sum(selection.predicted_loss for selection in result.plan.selections)
    replaced = sum(step.predicted_loss for step in result.plan.steps)
    assert dropped > 0
    assert result.verification.predicted_change == pytest.approx(dropped + replaced)


def test_less_budget_changes_the_output_more() -> None:
    data = noise(32, 3, 8, 8, seed=1)
    changes = [
        measured(run(seeded(Residual), calibration=data, budget=budget).verification) for budget in (0.95, 0.7, 0.4)
    ]
    assert changes == sorted(changes)


def test_planted_low_rank_layers_are_compressed_without_any_loss() -> None:
    net = seeded(Residual)
    for index in range(2):
        kernel = noise(12, 4, 3, 3).flatten(2)
        net.get_parameter(f"blocks.{index}.conv1.weight").data.copy_(
            torch.einsum("ork,ri->oik", kernel, noise(4, 12, seed=1)).view(12, 12, 3, 3)
        )
    options = {"include": ["blocks.*.conv1"], "passes": ["reduce", "expand"]}
    result = run(net, calibration=noise(32, 3, 8, 8, seed=1), budget=0.8, **options)
    assert {(step.path, step.ranks) for step in result.plan.steps} >= {
        ("blocks.0.conv1", (4,)),
        ("blocks.1.conv1", (4,)),
    }
    assert measured(result.verification) < 1e-4


def test_a_model_whose_path_depends_on_data_has_no_graph_module_and_says_why() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.c(x) * x.max().item(), c=conv(3, 12)))
    result = run(net, budget=0.7)
    assert result.plan.steps
    assert result.graph_module is None
    assert any(note.startswith("no graph_module: ") for note in result.notes)


def test_outputs_of_other_forms_have_no_class_agreement() -> None:
    net = seeded(lambda: Computes(lambda net, x: {"a": net.c(x), "b": [net.c(x).mean((2, 3))]}, c=conv(3, 12)))
    check = run(net, budget=0.7).verification
    assert check.kl is None
    assert check.agreement is None
    assert measured(check) > 0


def test_keyword_and_tuple_inputs_work_end_to_end() -> None:
    two = seeded(lambda: Computes(lambda net, x, y=None: net.c(x) + (0 if y is None else y), c=conv(3, 12)))
    for inputs in ((X,), {"x": X}, (X, noise(2, 12, 8, 8)), {"x": X, "y": noise(2, 12, 8, 8)}):
        result = run(two, inputs, budget=0.7)
        assert result.plan.steps
        assert result.graph_module is not None


def test_the_result_can_be_drawn_printed_and_saved(tmp_path: Path) -> None:
    result = run(seeded(Residual))
    for which in ("before", "after", "diff"):
        assert result.draw(which).source.startswith("digraph")
    with pytest.raises(InputError, match="draw: got 'sideways'; expected 'before', 'after', 'diff' or 'pass'"):
        result.draw("sideways")  # type: ignore[arg-type]
    assert "MACs" in str(result)
    assert repr(result).startswith("Result(Residual, ")
    folder = result.save(tmp_path / "out")
    assert {"plan.json", "model.safetensors", "report.html", "report.json"} <= {path.name for path in folder.iterdir()}
    assert Plan.from_json((folder / "plan.json").read_text()) == result.plan


def test_the_plan_is_frozen_and_survives_json() -> None:
    plan = run(seeded(Residual)).plan
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(AttributeError):
        plan.seed = 1  # type: ignore[misc]


STAGES = [
    "trace", "calibrate", "propose", "allocate", "narrow", "allocate again", "fit", "refit", "rewrite", "verify",
    "time",
]  # fmt: skip


def test_stages_are_timed_in_order() -> None:
    names = [name for name, _ in run(seeded(Residual)).seconds]
    assert names == STAGES


def test_progress_is_printed_as_plain_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    run(seeded(Residual), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(":")[0] for line in captured.err.splitlines()] == STAGES


class Idle(nn.Conv2d):
    """A convolution that :class:`Mixed` never runs."""


class Mixed(nn.Module):
    """A random network: convolutions of all kinds in a row, some tied, normalised or never run."""

    def __init__(self, kinds: list[str], width: int) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.body = nn.ModuleList([self._layer(kind, width) for kind in kinds])
        self.head = nn.Linear(width, 4)

    def _layer(self, kind: str, width: int) -> nn.Module:
        made = _KINDS[kind](width)
        if kind == "tied":
            made.weight = self.stem_twin(width).weight
        return made

    def stem_twin(self, width: int) -> nn.Conv2d:
        if not hasattr(self, "twin"):
            self.twin = conv(width, width)
        return self.twin

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.body:
            if isinstance(layer, nn.Conv1d):
                x = layer(x.flatten(2)).view_as(x)
            elif not isinstance(layer, Idle):
                x = torch.tanh(layer(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


_KINDS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda width: conv(width, width),
    "pointwise": lambda width: conv(width, width, 1),
    "groups": lambda width: conv(width, width, groups=2),
    "depthwise": lambda width: conv(width, width, groups=width),
    "1d": lambda width: nn.Conv1d(width, width, 3, padding=1),
    "transposed": lambda width: nn.ConvTranspose2d(width, width, 3, padding=1),
    "tied": lambda width: conv(width, width),
    "weight norm": lambda width: weight_norm(conv(width, width)),
    "idle": lambda width: Idle(width, width, 3),
    "batch norm": nn.BatchNorm2d,
    "circular": lambda width: conv(width, width, padding_mode="circular"),
}
_REASONS = {
    "depthwise": "depthwise",
    "1d": "the model fails when it is replaced",
    "idle": "not executed",
}


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(sorted(_KINDS)), min_size=1, max_size=5),
    width=st.sampled_from([4, 6, 8]),
    budget=st.sampled_from([None, 0.9, 0.6]),
)
def test_every_layer_is_either_rewritten_or_skipped_with_a_reason(
    kinds: list[str], width: int, budget: float | None
) -> None:
    net = seeded(lambda: Mixed(kinds, width))
    try:
        result = run(net, noise(1, 3, 4, 4), calibration=noise(4, 3, 4, 4), budget=budget)
    except BudgetError:
        result = run(net, noise(1, 3, 4, 4), calibration=noise(4, 3, 4, 4))
    rewritten, left = {step.path for step in result.plan.steps}, skipped(result)
    assert rewritten.isdisjoint(left)
    assert rewritten | set(left) == layers_of(net)
    assert all(each.reason for each in left.values())
    for index, kind in enumerate(kinds):
        if kind in _REASONS:
            assert re.search(_REASONS[kind], left[f"body.{index}"].reason)
    assert sum(each.share for each in left.values()) <= 1 + 1e-9


def test_weights_read_outside_their_layer_are_left_alone() -> None:
    def reads(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.c(x) + net.c.weight.sum()
        return y

    result = run(seeded(lambda: Computes(reads, c=conv(3, 16), d=conv(3, 3))))
    assert skipped(result)["c"].reason == "Computes reads its weight and may use it without calling the layer"


def test_a_layer_with_many_calls_counts_each() -> None:
    result = run(seeded(lambda: Repeated(16)), budget=0.6)
    assert result.after.cost.macs <= 0.6 * result.before.cost.macs
    assert copy.deepcopy(result.plan) == result.plan


def test_logits_that_are_ruled_out_do_not_spoil_the_numbers() -> None:
    def masked(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.head(torch.relu(net.c(x)).mean((2, 3)))
        return y.masked_fill(torch.arange(5) == 2, float("-inf"))

    net = seeded(lambda: Computes(masked, c=conv(3, 16), head=nn.Linear(16, 5)))
    result = run(net, calibration=noise(16, 3, 8, 8), budget=0.7)
    check = result.verification
    assert 0 < check.predicted_change < 1
    assert 0 < measured(check) < 1
    assert check.kl is not None
    assert 0 < check.kl < 1


def test_a_layer_that_no_calibration_example_reached_is_left_alone() -> None:
    def branch(net: Any, x: Tensor) -> Tensor:
        y: Tensor = net.a(x).relu()
        return torch.as_tensor(net.b(y) if x.mean() > 0 else net.c(y))

    net = seeded(lambda: Computes(branch, a=conv(3, 16), b=conv(16, 16), c=conv(16, 16)))
    result = run(net, noise(1, 3, 8, 8).abs(), calibration=-noise(8, 3, 8, 8).abs())
    assert "no calibration example reached it" in skipped(result)["b"].reason
    assert all(step.path != "b" for step in result.plan.steps)


def test_layers_whose_weight_torch_reads_for_its_fused_path_are_left_alone() -> None:
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).double().eval()
    result = run(net, noise(1, 5, 16))
    assert "TransformerEncoderLayer reads its weight" in skipped(result)["linear1"].reason
    assert result.after.cost.macs <= result.before.cost.macs


def test_a_result_over_the_budget_is_never_called_met() -> None:
    limits = {"macs": 100}
    assert _is_met(Cost(macs=100), limits, contract=True, promised=False)
    assert not _is_met(Cost(macs=101), limits, contract=False, promised=False)
    with pytest.raises(BudgetError, match="recorded with 101 macs, more than planned"):
        _is_met(Cost(macs=101), limits, contract=True, promised=False)


def test_a_budget_may_be_missed_for_a_promise_and_where_none_was_typed_none_is() -> None:
    limits = {"macs": 100}
    assert not _is_met(Cost(macs=101), limits, contract=True, promised=True)
    assert _is_met(Cost(macs=101), limits, contract=False, promised=True)


def test_parts_run_without_gradients_are_rewritten_all_the_same() -> None:
    def frozen(net: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = net.a(x).relu()
        return torch.as_tensor(net.b(y))

    result = run(seeded(lambda: Computes(frozen, a=conv(3, 16), b=conv(16, 16))), noise(1, 3, 8, 8), budget=0.5)
    assert result.budget_met
    assert any("no gradient reached a" in note for note in result.notes)


def changes_in_place(net: Any, x: Tensor) -> Tensor:
    """Runs, and cannot be differentiated as it is: what ReLU gave is needed for its derivative."""
    y = net.a(x)
    y[:, 4:].relu_()
    y.add_(1)
    return torch.as_tensor(net.b(y))


def test_what_operations_in_place_do_to_derivatives_is_made_up_for() -> None:
    net, x = seeded(lambda: Computes(changes_in_place, a=conv(3, 16), b=conv(16, 16))), noise(4, 3, 8, 8)

    def without(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        return torch.as_tensor(net.b(torch.cat([y[:, :4], y[:, 4:].relu()], 1) + 1))

    same = seeded(lambda: Computes(without, a=conv(3, 16), b=conv(16, 16)))
    in_place, plain = (calibrate(each, x[:1], calibration=x, progress=False) for each in (net, same))
    assert not in_place.undifferentiable
    for path in ("a", "b"):
        torch.testing.assert_close(in_place.layers[path].curvature, plain.layers[path].curvature)
    result = run(net, x[:1], calibration=noise(16, 3, 8, 8), budget=0.5)
    assert result.budget_met
    assert not any("differentiated" in note for note in result.notes)


def test_a_model_that_cannot_be_differentiated_is_rewritten_and_the_reason_told() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            raise NotImplementedError("no derivative here")

    def one_way(net: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(net.b(OneWay.apply(net.a(x))))  # type: ignore[no-untyped-call]

    result = run(seeded(lambda: Computes(one_way, a=conv(3, 16), b=conv(16, 16))), noise(1, 3, 8, 8), budget=0.5)
    assert result.budget_met
    assert "the model could not be differentiated: NotImplementedError: no derivative here" in result.notes
    assert any("no gradient reached any layer" in note for note in result.notes)


def test_optimize_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        result = run(seeded(Residual))
    assert result.plan.steps


def test_an_output_without_floating_values_is_said_to_be_unmeasured() -> None:
    def top(net: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(net.b(net.a(x).relu()).argmax(1))

    result = run(seeded(lambda: Computes(top, a=conv(3, 16), b=conv(16, 16))), noise(1, 3, 8, 8))
    assert result.verification.measured_change is None
    assert any("could not be measured" in note for note in result.notes)


def test_complex_outputs_are_measured() -> None:
    def spectrum(net: Any, x: Tensor) -> Any:
        return torch.fft.fft2(net.b(net.a(x).relu()))

    result = run(seeded(lambda: Computes(spectrum, a=conv(3, 16), b=conv(16, 16))), noise(1, 3, 8, 8))
    assert 0 < measured(result.verification) < 2


def test_an_output_that_is_never_finite_is_refused() -> None:
    def broken(net: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(net.b(net.a(x)).detach() * float("nan"))

    with pytest.raises(InputError, match="NaN or infinite throughout"):
        run(seeded(lambda: Computes(broken, a=conv(3, 16), b=conv(16, 16))), noise(1, 3, 8, 8))


def test_a_layer_whose_type_the_model_checks_is_left_alone_with_the_models_own_error() -> None:
    def checks(net: Any, x: Tensor) -> Tensor:
        assert isinstance(net.b, nn.Conv2d), "b must be a Conv2d"
        return torch.as_tensor(net.b(net.a(x).relu()))

    net = seeded(lambda: Computes(checks, a=conv(3, 16), b=conv(16, 16)))
    reason = skipped(run(net, noise(1, 3, 8, 8)))["b"].reason
    assert reason.startswith("the model fails when it is replaced")
    assert "b must be a Conv2d" in reason


def test_an_unreachable_budget_says_what_keeps_the_rest() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(BudgetError, match=r"Left alone, by share of the MACs: 100\.0%: depthwise"):
        run(net, torch.randn(1, 8, 8, 8), budget=0.5)


def test_the_result_can_be_compiled_and_exported() -> None:
    result = run(seeded(Residual), budget=0.6)
    expected = result.model.eval()(X)
    compiled: Any = torch.compile(result.model, backend="eager", fullgraph=True)
    exported = torch.export.export(result.model, (X,)).module()
    assert torch.equal(compiled(X), expected)
    assert torch.equal(exported(X), expected)


def test_the_callers_default_device_does_not_matter() -> None:
    net = seeded(classifier)
    expected = run(net).plan
    with torch.device("meta"):
        assert run(net).plan == expected


def test_a_lazy_model_is_built_in_the_result_and_stays_lazy_itself() -> None:
    net = nn.Sequential(nn.LazyConv2d(16, 3), nn.ReLU(), nn.LazyConv2d(16, 3))
    result = run(net)
    assert result.model.get_submodule("0").in_channels == 3
    assert net.get_submodule("0").in_channels == 0


def test_functions_on_parameters_are_named_with_their_line_and_rewritten_in_the_graph_view() -> None:
    def calls(net: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(net.a(F.conv2d(x, net.kernel).relu()))

    net = seeded(lambda: Computes(calls, a=conv(16, 16)))
    net.kernel = nn.Parameter(noise(16, 3, 3, 3))
    left = skipped(run(net))["kernel"]
    assert re.search(r"conv2d as a function on a parameter, at \S*test_optimizer\.py:\d+", left.reason)
    assert "to_graph_module" in left.advice
    view = to_graph_module(net, X)
    assert torch.equal(view(X), net(X))
    assert "kernel_layer" in {step.path for step in run(view, exclude="a").plan.steps}


def test_the_change_on_held_out_examples_is_known_where_all_layers_were_fitted_together() -> None:
    net, x = (
        seeded(lambda: nn.Sequential(conv(4, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 4))),
        noise(20, 4, 8, 8),
    )
    known = optimize(net, x[:1], calibration=x, budget=0.4, recipe=Recipe(mixes=0), progress=False).verification
    assert known.held_out_change is not None
    assert known.held_out_change == pytest.approx(measured(known), rel=0.5)  # alike, but not the same examples
    assert known.held_out_change != measured(known)
    unknown = Recipe(joint=0, mixes=0)
    apart = optimize(net, x[:1], calibration=x, budget=0.4, recipe=unknown, progress=False).verification
    assert apart.held_out_change is None
