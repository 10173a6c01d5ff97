"""A bottleneck that several layers share, from end to end: who can share, what is gained, and what comes back."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor, nn

import bottleneck_opt as bo
from bottleneck_opt.applying import apply_plan
from bottleneck_opt.calibration import Sampling, collect_statistics
from bottleneck_opt.choosing import find_shareable
from bottleneck_opt.common_factor import fit_common
from bottleneck_opt.making_sites import make_sites
from bottleneck_opt.plan import Plan
from bottleneck_opt.proposing import make_step
from bottleneck_opt.registry import find_passes
from bottleneck_opt.report import render_text, report_json
from bottleneck_opt.shared_options import make_shared_option
from bottleneck_opt.sharing import Groups
from bottleneck_opt.subject import Request, Subject, prepare_subject
from tests.networks import Computes, conv, measured, noise, seeded

WIDTH, RANK = 24, 4


class Branches(nn.Module):
    """A 1x1, a 3x3 and a 5x5 that read the same tensor, and a head."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.one, self.three, self.five = conv(width, 12, 1), conv(width, 12, 3), conv(width, 12, 5)
        self.head = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        made = torch.cat([self.one(x), self.three(x), self.five(x)], 1)
        out: Tensor = self.head(torch.relu(made).mean((2, 3)))
        return out


def plant(net: Branches, rank: int = RANK, spread: float = 0.02) -> Branches:
    """The branches read the same few directions of their input, and others only by ``spread``."""
    span = noise(rank, WIDTH, seed=5)
    for number, layer in enumerate([net.one, net.three, net.five]):
        weight = layer.weight.data
        inner = noise(weight.shape[0], rank, *weight.shape[2:], seed=number) / weight[0, 0].numel() ** 0.5
        planted = torch.einsum("orhw,ri->oihw", inner, span) / WIDTH**0.5
        weight.copy_(planted + spread * noise(*weight.shape, seed=10 + number))
    return net


X = noise(32, 3, 10, 10, seed=3)


def subject_of(net: nn.Module, inputs: Any) -> Subject:
    return prepare_subject(net, Request(inputs, None, 16, None, 0, None, None), as_graph=True)


def groups_of(net: nn.Module, *inputs: Tensor) -> Groups:
    return find_shareable(subject_of(net, inputs), find_passes(["shared"]))


def members_of(net: nn.Module, *inputs: Tensor) -> list[tuple[str, ...]]:
    return [group.members for group in groups_of(net, *inputs).found]


def share_everything(net: nn.Module, x: Tensor) -> tuple[Plan, nn.Module]:
    """The model with a bottleneck of full rank before every group, whatever that costs."""
    subject = subject_of(net, x)
    groups = find_shareable(subject, find_passes(["shared"]))
    layers = subject.candidates.layers
    statistics = collect_statistics(subject.working, layers, subject.data, Sampling(subject.data.examples, 2, 0))
    sites = make_sites(subject.working, subject.traced, subject.candidates, statistics, shrinkage=1e-9)
    by_path = {site.path: site for site in sites}
    options = []
    for group in groups.found:
        members = [by_path[path] for path in group.members]
        width = members[0].layer.in_channels
        basis = fit_common([site.as_consumer() for site in members], width)
        options.append(make_shared_option("shared", group.path, members, basis, width))
    pairs = [(by_path[path], priced) for o in options for path, priced in zip(o.members, o.options, strict=True)]
    plan = Plan(
        "net", "full rank", ("shared",), 0, subject.traced.cost, subject.traced.cost, 0.0, 0.0,
        tuple(make_step(site, priced) for site, priced in pairs), (), tuple(option.describe() for option in options),
        subject.arguments,
    )  # fmt: skip
    weights = {site.path: priced.option.fill() for site, priced in pairs} | {o.path: [o.fill()] for o in options}
    return plan, apply_plan(subject, plan, weights).model


# -- what is gained ------------------------------------------------------------------------------------------------


def test_a_common_subspace_is_better_shared_than_reduced_branch_by_branch() -> None:
    net = plant(seeded(Branches), spread=0.0)
    enough = 100 * (3 * 9 * WIDTH + WIDTH * RANK + RANK * 12 * (1 + 9 + 25)) + 36 * 5  # the planted rank, paid once
    separate, shared = (
        bo.optimize(net, X[:1], calibration=X, budget=f"macs={enough}", passes=passes, progress=False)
        for passes in (["reduce", "expand"], ["reduce", "expand", "shared"])
    )
    assert [(each.members, each.rank) for each in shared.plan.sharings] == [(("one", "three", "five"), RANK)]
    assert shared.after.cost.macs == enough
    assert separate.after.cost.macs <= enough
    assert shared.plan.predicted_loss < 1e-3 * separate.plan.predicted_loss
    assert measured(shared.verification) < 1e-3 * measured(separate.verification)


def test_with_the_pass_the_prediction_is_never_worse() -> None:
    net = seeded(Branches)
    for budget in (0.6, 0.3):
        separate, shared = (
            bo.optimize(net, X[:1], calibration=X, budget=budget, passes=passes, progress=False).plan.predicted_loss
            for passes in (["reduce", "expand"], ["reduce", "expand", "shared"])
        )
        assert shared <= separate * (1 + 1e-9)


def test_prediction_and_measurement_agree() -> None:
    net = plant(seeded(Branches))
    result = bo.optimize(
        net, X[:1], calibration=X, budget=0.3, passes=["shared"], recipe=bo.Recipe(mixes=0), progress=False
    )
    assert result.plan.sharings
    assert 1 / 5 < measured(result.verification) / result.plan.predicted_loss < 5


def test_the_cost_is_what_was_planned_and_within_the_budget() -> None:
    net = plant(seeded(Branches))
    result = bo.optimize(net, X[:1], calibration=X, budget="macs=0.3, params=0.4", passes=["shared"], progress=False)
    assert result.budget_met
    assert (result.after.cost.macs, result.after.cost.params) == (result.plan.after.macs, result.plan.after.params)
    assert "a new recording of the rewritten model costs exactly what was planned" in result.verification.checks


# -- exactness -----------------------------------------------------------------------------------------------------


def both(layer: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Two layers side by side behind a third, their outputs averaged over all positions."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = torch.tanh(net.stem(x))
        return torch.cat([part.flatten(2).mean(2) for part in (net.one(x), net.other(x))], 1)

    return lambda: Computes(forward, stem=stems[len(layer().weight.shape)](), one=layer(), other=other())  # type: ignore[arg-type]


stems: Mapping[int, Callable[[], nn.Module]] = {
    3: lambda: nn.Conv1d(2, 6, 3), 4: lambda: nn.Conv2d(2, 6, 3), 5: lambda: nn.Conv3d(2, 6, 3),
}  # fmt: skip

PAIRS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1x1 and 3x3": (both(lambda: conv(6, 4, 1), lambda: conv(6, 5)), (2, 9, 9)),
    "strided and shortcut": (both(lambda: conv(6, 5, stride=2), lambda: conv(6, 4, 1, stride=2)), (2, 9, 9)),
    "dilated and 5x5": (both(lambda: conv(6, 5, dilation=2, padding=2), lambda: conv(6, 4, 5)), (2, 9, 9)),
    "reflect and circular": (
        both(lambda: conv(6, 5, padding_mode="reflect"), lambda: conv(6, 4, padding_mode="circular")), (2, 9, 9),
    ),
    "no bias": (both(lambda: conv(6, 5, bias=False), lambda: conv(6, 4, bias=False)), (2, 9, 9)),
    "transposed": (both(lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), lambda: conv(6, 5)), (2, 9, 9)),
    "one axis": (both(lambda: nn.Conv1d(6, 4, 3), lambda: nn.Conv1d(6, 5, 1)), (2, 12)),
    "three axes": (both(lambda: nn.Conv3d(6, 4, 3), lambda: nn.Conv3d(6, 5, 1)), (2, 8, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_nothing_is_lost_at_full_rank(case: str) -> None:
    make, shape = PAIRS[case]
    net, x = seeded(make), noise(2, *shape)
    plan, rewritten = share_everything(net, x)
    assert [sharing.members for sharing in plan.sharings] == [("one", "other")]
    assert torch.allclose(rewritten(x), net(x), rtol=1e-6, atol=1e-8)


class Attention(nn.Module):
    """Queries, keys and values from one tensor."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        out: Tensor = weights @ self.v(x)
        return out


def test_queries_keys_and_values_can_share() -> None:
    net, x = seeded(Attention), noise(2, 5, 8)
    plan, rewritten = share_everything(net, x)
    assert [sharing.members for sharing in plan.sharings] == [("q", "k", "v")]
    assert torch.allclose(rewritten(x), net(x))


# -- who can share -------------------------------------------------------------------------------------------------


def pair(one: nn.Module, two: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return seeded(lambda: Computes(read, stem=conv(2, 8), one=one, two=two))


def test_layers_that_read_different_tensors_share_nothing() -> None:
    net = pair(conv(8, 4), conv(4, 4), lambda net, x: net.two(net.one(net.stem(x))))
    groups = groups_of(net, noise(2, 2, 6, 6))
    assert groups.found == ()
    assert "no other layer reads its input" in groups.refused["one"].reason


def test_a_layer_that_reads_after_something_was_written_into_the_tensor_does_not_share() -> None:
    def read(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.one(x)
        x.mul_(2)
        return torch.cat([y, net.two(x)], 1)

    groups = groups_of(pair(conv(8, 4), conv(8, 4), read), noise(2, 2, 6, 6))
    assert groups.found == ()
    assert "the model's output changes" in groups.refused["two"].reason or "no other" in groups.refused["two"].reason


def test_grouped_repeated_and_hooked_layers_do_not_share() -> None:
    def read(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return torch.cat([net.one(x), net.two(x), net.two(x)], 1)

    x = noise(2, 2, 6, 6)
    grouped = groups_of(pair(conv(8, 4, groups=2), conv(8, 4), read), x)
    assert grouped.found == ()
    assert "groups=2" in grouped.refused["one"].reason
    assert "called several times" in grouped.refused["two"].reason


def test_excluded_layers_do_not_share() -> None:
    net = plant(seeded(Branches))
    result = bo.optimize(net, X[:1], calibration=X, budget=0.8, passes=["shared"], exclude="five", progress=False)
    assert {path for sharing in result.plan.sharings for path in sharing.members} <= {"one", "three"}


def test_a_residual_block_and_its_shortcut_can_share() -> None:
    def read(net: Any, x: Tensor) -> Tensor:
        x = torch.relu(net.stem(x))
        return torch.relu(net.one(x) + net.two(x))

    net = pair(conv(8, 8, stride=2), conv(8, 8, 1, stride=2), read)
    assert members_of(net, noise(2, 2, 8, 8)) == [("one", "two")]


def test_a_graph_that_is_not_the_model_is_an_error_that_says_so() -> None:
    net = seeded(lambda: Computes(lambda net, x: net.a(x) if x.sum() > 0 else net.b(x), a=conv(2, 8), b=conv(2, 8)))
    x = noise(2, 2, 6, 6)
    x -= x.mean()

    def try_both() -> None:  # one of the two signs differs from that of the second input
        for shift in (1e-6, -1e-6):
            bo.optimize(net, x + shift, passes=["shared"], progress=False)

    with pytest.raises(bo.ModelError, match=r"recorded graph cannot stand for it.*leave 'shared' out"):
        try_both()


class Flattening(Branches):
    """Asks its input how many examples it holds, which a recording answers once and for all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(x.size(0), 5)


def test_a_batch_size_that_is_built_into_the_graph_is_told() -> None:
    net = plant(seeded(Flattening))
    with pytest.raises(bo.InputError, match=r"holds its sizes.*Pass a batch of the calibration data as inputs="):
        bo.optimize(net, X[:1], calibration=X, budget=0.3, passes=["shared"], progress=False)
    done = bo.optimize(net, X, calibration=X, budget=0.3, passes=["shared"], progress=False)
    assert done.plan.sharings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half(dtype: torch.dtype) -> None:
    net = plant(seeded(Branches, dtype=torch.float32)).to(dtype)
    done = bo.optimize(net, X[:1], calibration=X, budget=0.3, passes=["shared"], progress=False)
    assert done.plan.sharings
    assert {parameter.dtype for parameter in done.model.parameters()} == {dtype}


# -- what comes back -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> bo.Result:
    net = plant(seeded(Branches, dtype=torch.float32))
    return bo.optimize(
        net, X[:1].float(), calibration=X.float(), budget=0.3, passes=["reduce", "expand", "shared"],
        allow_slower=True, progress=False,
    )  # fmt: skip


def test_it_is_used_only_when_it_is_named() -> None:
    assert "shared" not in [each.name for each in find_passes(None)]
    net = plant(seeded(Branches))
    assert type(bo.optimize(net, X[:1], calibration=X, budget=0.5, progress=False).model) is Branches


def test_the_result_is_a_graph_module_and_says_so(result: bo.Result) -> None:
    assert isinstance(result.model, torch.fx.GraphModule)
    assert result.plan.model.endswith("Branches")
    note = next(note for note in result.notes if "GraphModule" in note)
    assert "Tensor 1x3x10x10 float32" in note
    assert result.graph_module is not None
    assert torch.allclose(result.graph_module(X.float()), result.model(X.float()))


def test_the_members_are_narrower_layers_at_their_own_paths(result: bo.Result) -> None:
    (sharing,) = result.plan.sharings
    bottleneck = result.model.get_submodule(sharing.path)
    assert isinstance(bottleneck, nn.Conv2d)
    assert bottleneck.bias is None
    assert (bottleneck.in_channels, bottleneck.out_channels) == (WIDTH, sharing.rank)
    for path in sharing.members:
        layer = result.model.get_submodule(path)
        assert isinstance(layer, nn.Conv2d)
        assert layer.in_channels == sharing.rank
    calls = [str(node.target) for node in result.model.graph.nodes if node.op == "call_module"]  # type: ignore[union-attr]
    assert calls.count(sharing.path) == 1


def test_the_callers_model_is_not_changed() -> None:
    net = plant(seeded(Branches)).train()
    before = copy.deepcopy(net.state_dict())
    done = bo.optimize(net, X[:1], calibration=X, budget=0.3, passes=["shared"], progress=False)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert done.model.training
    assert all(parameter.requires_grad for parameter in done.model.parameters())


def test_it_can_be_saved_and_loaded_into_a_fresh_model(result: bo.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    loaded = bo.load(tmp_path / "out", Branches())
    assert isinstance(loaded, torch.fx.GraphModule)
    for name, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert torch.equal(loaded(X.float()), result.model(X.float()))
    again = bo.load(tmp_path / "out", Branches(), X[:2].float())
    assert torch.equal(again(X.float()), result.model(X.float()))


def test_loading_into_another_model_is_an_error(result: bo.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "out")
    with pytest.raises(bo.RewriteError):
        bo.load(tmp_path / "out", Branches(WIDTH + 1))


def test_reports_and_pictures_show_the_bottleneck(result: bo.Result) -> None:
    (sharing,) = result.plan.sharings
    assert sharing.path in render_text(result)
    assert json.loads(report_json(result))["sharings"][0]["members"] == list(sharing.members)
    assert result.draw("after").source.count(f"{sharing.path}&#160;<") == 1
    assert f"rank {sharing.rank} of {WIDTH} | for {len(sharing.members)} layers" in result.draw("diff").source


def test_the_same_seed_gives_the_same_plan(result: bo.Result) -> None:
    net = plant(seeded(Branches, dtype=torch.float32))
    again = bo.optimize(
        net, X[:1].float(), calibration=X.float(), budget=0.3, passes=["reduce", "expand", "shared"],
        allow_slower=True, progress=False,
    )  # fmt: skip
    assert again.plan.to_json() == result.plan.to_json()


def test_a_plan_is_read_back_as_it_was_written(result: bo.Result) -> None:
    assert Plan.from_json(result.plan.to_json()) == result.plan


def broken(plan: Plan, **changes: Any) -> str:
    """The plan's text with other values in its first sharing."""
    first, *others = plan.sharings
    return dataclasses.replace(plan, sharings=(dataclasses.replace(first, **changes), *others)).to_json()


def test_a_plan_that_does_not_fit_is_refused(result: bo.Result) -> None:
    plan = result.plan
    for changes in ({"members": ("one",)}, {"rank": 3}, {"path": "a.b"}, {"path": plan.steps[0].path}):
        with pytest.raises(bo.FileError):
            Plan.from_json(broken(plan, **changes))
    with pytest.raises(bo.FileError, match="what call"):
        Plan.from_json(dataclasses.replace(plan, arguments=None).to_json())
    with pytest.raises(bo.FileError, match="do not fit"):
        Plan.from_json(dataclasses.replace(plan, sharings=()).to_json())


def test_keyword_arguments_are_kept_for_loading(tmp_path: Path) -> None:
    net = seeded(lambda: Computes(lambda net, pixels: net.net(pixels), net=plant(Branches())), dtype=torch.float32)
    x = X.float()
    done = bo.optimize(
        net, {"pixels": x[:1]}, calibration=[{"pixels": x}], budget=0.3, passes=["shared"], progress=False
    )
    done.save(tmp_path / "out")
    fresh = Computes(lambda net, pixels: net.net(pixels), net=Branches())
    assert torch.equal(bo.load(tmp_path / "out", fresh)(pixels=x), done.model(pixels=x))


def test_channels_can_be_dropped_elsewhere_at_the_same_time() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        out: Tensor = net.branches(torch.relu(net.last(torch.relu(net.first(x)))))
        return out

    net = seeded(
        lambda: Computes(forward, first=conv(3, 32), last=conv(32, 3), branches=plant(Branches())), dtype=torch.float32
    )
    net.get_submodule("last").get_parameter("weight").data[:, 8:] = 0  # nobody reads most of what the first one makes
    done = bo.optimize(
        net, X[:1].float(), calibration=X.float(), budget=0.3, passes=["select", "shared"], progress=False
    )
    members = {path for sharing in done.plan.sharings for path in sharing.members}
    ends = {path for selection in done.plan.selections for path in (selection.producer, selection.consumer)}
    assert members
    assert ends
    assert not ends & members
    assert done.after.cost.macs == done.plan.after.macs


def test_when_nothing_is_shared_the_result_is_still_the_graph(tmp_path: Path) -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16)), dtype=torch.float32)
    done = bo.optimize(
        net, X[:1].float(), calibration=X.float(), budget=0.6, passes=["reduce", "shared"], progress=False
    )
    assert done.plan.sharings == ()
    assert isinstance(done.model, torch.fx.GraphModule)
    done.save(tmp_path / "out")
    fresh = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16))
    assert torch.equal(bo.load(tmp_path / "out", fresh)(X.float()), done.model(X.float()))
