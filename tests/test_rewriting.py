from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bottleneck_opt import Plan, RewriteError, optimize
from bottleneck_opt.factored import Factored
from bottleneck_opt.graph import Cost
from bottleneck_opt.layers import LayerSpec, describe_layer
from bottleneck_opt.plan import Step
from bottleneck_opt.rewriting import rewrite_for_timing, rewrite_graph, rewrite_model, rewrite_structure
from bottleneck_opt.sites import Weights
from bottleneck_opt.tracing import build_graph_module, trace
from tests.networks import ActsOnType, Hidden, ReadsLayer, Repeated, Residual, classifier, conv, measured, noise, seeded

X = noise(2, 3, 8, 8)


def reduce_chain(spec: LayerSpec, rank: int) -> tuple[LayerSpec, ...]:
    if spec.kind == "Linear":
        return spec.named("linear", out_channels=rank, bias=False), spec.pointwise(
            "expand", rank, spec.out_channels, bias=True
        )
    return spec.pointwise("reduce", spec.in_channels, rank, bias=False), spec.named("conv", in_channels=rank, bias=True)


def make_plan(model: nn.Module, ranks: dict[str, int], names: dict[str, tuple[str, ...]] | None = None) -> Plan:
    """A plan that splits the layers at these paths, whatever it costs."""
    steps = []
    for path, rank in ranks.items():
        spec = describe_layer(model.get_submodule(path))
        assert spec is not None
        steps.append(
            Step(
                path=path, names=(names or {}).get(path, (path,)), pass_name="test", form="reduce", ranks=(rank,),
                full_ranks=(spec.in_channels,), original=spec, layers=reduce_chain(spec, rank), before=Cost(),
                after=Cost(), predicted_loss=0.0,
            )
        )  # fmt: skip
    return Plan("m", "macs=1", ("test",), 0, Cost(), Cost(), 0.0, 0.0, tuple(steps))


def make_weights(model: nn.Module, plan: Plan) -> dict[str, Sequence[Weights]]:
    """Factors whose product is the layer's own weight: an identity, then the weight itself (or the other way round)."""
    weights: dict[str, Sequence[Weights]] = {}
    for step in plan.steps:
        layer = model.get_submodule(step.path)
        weight, given = layer.get_parameter("weight").detach(), layer._parameters.get("bias")
        bias = weight.new_zeros(len(weight)) if given is None else given.detach()
        first = step.layers[0]
        if step.original.kind == "Linear":
            weights[step.path] = [Weights(weight), Weights(torch.eye(len(weight)).to(weight), bias)]
        else:
            identity = torch.eye(first.in_channels).to(weight)[:, :, None, None]
            weights[step.path] = [Weights(identity), Weights(weight, bias)]
    return weights


def rewrite_exactly(model: nn.Module, *paths: str, names: dict[str, tuple[str, ...]] | None = None) -> nn.Module:
    """The model with layers split at full rank, so that nothing may change."""
    ranks = {}
    for path in paths:
        spec = describe_layer(model.get_submodule(path))
        assert spec is not None
        ranks[path] = spec.out_channels if spec.kind == "Linear" else spec.in_channels
    plan = make_plan(model, ranks, names)
    return rewrite_model(model, plan, make_weights(model, plan))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("paths", [("stem",), ("blocks.0.conv1", "blocks.1.conv2"), ("head",), ("stem", "head")])
def test_at_full_rank_nothing_changes(paths: tuple[str, ...]) -> None:
    net = seeded(Residual)
    made = rewrite_exactly(net, *paths)
    assert torch.allclose(made(X), net(X), rtol=0, atol=1e-12)
    assert type(made) is Residual
    assert [path for path, module in made.named_modules() if isinstance(module, Factored)] == list(paths)


def test_a_wrong_factor_is_seen() -> None:
    net = seeded(Residual)
    made = rewrite_exactly(net, "stem")
    made.get_parameter("stem.reduce.weight").data[0, 0] += 0.1
    assert not torch.allclose(made(X), net(X), atol=1e-6)


def test_the_model_itself_is_not_changed() -> None:
    net = seeded(Residual)
    before, modules = state_of(net), dict(net.named_modules())
    rewrite_exactly(net, "stem", "head")
    assert {name: id(module) for name, module in net.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_new_layers_are_stock_layers_at_the_old_path() -> None:
    made = rewrite_exactly(seeded(Residual), "blocks.0.conv1", "head")
    assert type(made.get_submodule("blocks.0.conv1.reduce")) is nn.Conv2d
    assert type(made.get_submodule("blocks.0.conv1.conv")) is nn.Conv2d
    assert type(made.get_submodule("head.linear")) is nn.Linear


def test_every_name_of_a_module_gets_the_same_replacement() -> None:
    net = seeded(Repeated)
    made = rewrite_exactly(net, "first", "loop", names={"first": ("first", "second")})
    assert made.first is made.second
    assert isinstance(made.second, Factored)
    assert torch.allclose(made(X), net(X), rtol=0, atol=1e-12)


def test_code_that_reads_the_layer_finds_what_it_looked_for() -> None:
    net = seeded(ReadsLayer)
    made = rewrite_exactly(net, "conv")
    x = noise(1, 8, 8, 8)
    assert torch.allclose(made(x), net(x), rtol=0, atol=1e-12)
    old, new = net.get_submodule("conv"), made.get_submodule("conv")
    for name in (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
        "transposed", "output_padding",
    ):  # fmt: skip
        assert getattr(new, name) == getattr(old, name), name


def test_code_that_reads_a_linear_finds_what_it_looked_for() -> None:
    made = rewrite_exactly(seeded(Residual), "head").get_submodule("head")
    assert isinstance(made, Factored)
    assert made.in_features == 12
    assert made.out_features == 5


@pytest.mark.parametrize("path", ["stem", "blocks.0.conv1", "head"])
def test_weight_is_the_merged_kernel_and_follows_the_factors(path: str) -> None:
    net = seeded(Residual)
    made = rewrite_exactly(net, path).get_submodule(path)
    assert isinstance(made, Factored)
    assert torch.allclose(made.weight, net.get_parameter(f"{path}.weight"), rtol=0, atol=1e-12)
    before = made.weight.detach().clone()
    with torch.no_grad():
        made[0].weight.mul_(2)  # type: ignore[operator]
    assert torch.allclose(made.weight, 2 * before, rtol=0, atol=1e-12)
    assert made.bias is made[-1].bias


def test_a_merged_kernel_of_three_factors_is_the_product() -> None:
    spec = describe_layer(seeded(lambda: conv(6, 8)))
    assert spec is not None
    net = seeded(lambda: nn.Sequential(conv(6, 3, 1, bias=False), conv(3, 4, bias=False), conv(4, 8, 1)))
    made = Factored(spec, OrderedDict(net.named_children()))
    x = noise(1, 6, 5, 5)
    expected = net(x)
    assert torch.allclose(nn.functional.conv2d(x, made.weight, made.bias, padding=1), expected, rtol=0, atol=1e-12)


def test_hooks_of_the_old_layer_fire_on_the_new_one() -> None:
    net, seen = seeded(Residual), []
    net.stem.register_forward_pre_hook(lambda module, args: seen.append(("before", tuple(args[0].shape))))
    net.stem.register_forward_hook(lambda module, args, output: output * 2)
    net.stem.register_forward_hook(lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True)
    made = rewrite_exactly(net, "stem")
    expected = net(X)
    seen.clear()
    assert torch.allclose(made(X), expected, rtol=0, atol=1e-12)
    assert seen == [("before", (2, 3, 8, 8)), {}]


def test_backward_hooks_see_gradients_of_the_whole_replacement() -> None:
    seen: list[Any] = []

    def note(module: nn.Module, before: Any, after: Any) -> None:
        seen.append((tuple(before[0].shape), tuple(after[0].shape)))

    net = seeded(Residual)
    net.stem.register_full_backward_hook(note)
    rewrite_exactly(net, "stem")(X.clone().requires_grad_()).sum().backward()
    assert seen == [((2, 3, 8, 8), (2, 12, 8, 8))]


def test_removing_a_hook_from_the_result_leaves_the_model_alone() -> None:
    net = seeded(Residual)
    net.stem.register_forward_hook(lambda module, args, output: output * 2)
    made = rewrite_exactly(net, "stem")
    made.get_submodule("stem")._forward_hooks.clear()
    assert len(net.stem._forward_hooks) == 1


@pytest.mark.parametrize("training", [True, False])
def test_training_flags_are_kept_module_by_module(training: bool) -> None:
    net = seeded(Residual).train(training)
    net.blocks[0].train(not training)
    made = rewrite_exactly(net, "stem", "blocks.0.conv1")
    for path, module in net.named_modules():
        assert made.get_submodule(path).training is module.training
    assert made.get_submodule("blocks.0.conv1.reduce").training is not training


def test_frozen_layers_stay_frozen() -> None:
    net = seeded(Residual)
    net.stem.requires_grad_(False)
    made = rewrite_exactly(net, "stem", "blocks.0.conv1")
    frozen = {name for name, parameter in made.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.reduce.weight", "stem.conv.weight", "stem.conv.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_kept(dtype: torch.dtype) -> None:
    made = rewrite_exactly(seeded(Residual, dtype=dtype), "stem", "head")
    assert {parameter.dtype for parameter in made.parameters()} == {dtype}


def test_memory_format_is_kept() -> None:
    net = seeded(Residual).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = rewrite_exactly(net, "blocks.0.conv1")
    x = X.to(memory_format=torch.channels_last)
    assert made.get_parameter("blocks.0.conv1.conv.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(made(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: conv(6, 8, stride=2),
        lambda: conv(6, 8, dilation=2),
        lambda: nn.Conv2d(6, 8, 3, padding="same"),
        lambda: nn.Conv2d(6, 8, (1, 3), padding=(0, 1), padding_mode="circular"),
        lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect", bias=False),
    ],
    ids=["stride", "dilation", "same", "circular", "reflect"],
)
def test_every_geometry_is_rebuilt(make: Callable[[], nn.Conv2d]) -> None:
    net, x = seeded(lambda: nn.Sequential(make())), noise(2, 6, 9, 7)
    assert torch.allclose(rewrite_exactly(net, "0")(x), net(x), rtol=0, atol=1e-12)


def test_the_rewritten_graph_runs_over_the_same_parameters() -> None:
    net = seeded(Residual)
    traced = trace(net, X)
    plan = make_plan(net, {"stem": 3, "head": 5})
    made = rewrite_model(net, plan, make_weights(net, plan))
    nodes = [node.name for node in traced.graph.nodes]
    graph_module = build_graph_module(made, rewrite_graph(traced.graph, plan), traced.constants)
    assert torch.equal(graph_module(X), made(X))
    assert {id(p) for p in graph_module.parameters()} == {id(p) for p in made.parameters()}
    assert [node.name for node in traced.graph.nodes] == nodes


def test_the_rewritten_graph_follows_repeated_calls_and_keywords() -> None:
    net = seeded(Repeated)
    traced = trace(net, X)
    plan = make_plan(net, {"loop": 8, "first": 8}, {"first": ("first", "second")})
    made = rewrite_model(net, plan, make_weights(net, plan))
    graph = rewrite_graph(traced.graph, plan)
    targets = [node.target for node in graph.nodes if node.op == "call_module"]
    assert targets.count("loop.reduce") == targets.count("loop.conv") == 3
    assert targets.count("first.conv") == 2
    assert torch.equal(build_graph_module(made, graph, traced.constants)(X), made(X))


def test_gradients_reach_every_new_layer_and_it_learns() -> None:
    made = rewrite_exactly(seeded(Residual), "stem", "blocks.0.conv1", "head").train()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = made(X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]


def test_the_result_can_be_copied_and_its_state_loaded() -> None:
    made = rewrite_exactly(seeded(Residual), "stem", "head")
    twin = copy.deepcopy(made)
    assert torch.equal(twin(X), made(X))
    other = rewrite_exactly(seeded(Residual, seed=1), "stem", "head")
    assert not torch.equal(other(X), made(X))
    assert other.load_state_dict(made.state_dict()).missing_keys == []
    assert torch.equal(other(X), made(X))


def test_the_result_moves_between_precisions() -> None:
    made = rewrite_exactly(seeded(Residual), "stem", "head").float()
    assert made(X.float()).dtype == torch.float32


def test_the_bare_structure_is_that_of_the_plan() -> None:
    net = seeded(Residual)
    plan = make_plan(net, {"stem": 2, "head": 3})
    made = rewrite_structure(net, plan)
    assert made.get_parameter("stem.reduce.weight").shape == (2, 3, 1, 1)
    assert made.get_parameter("head.expand.weight").shape == (5, 3)


def test_what_is_timed_has_the_structure_of_the_plan_and_no_zeros() -> None:
    net = seeded(Residual)
    plan = make_plan(net, {"stem": 2, "head": 3})
    made, again = rewrite_for_timing(net, plan), rewrite_for_timing(net, plan)
    for path, shape in (("stem.reduce.weight", (2, 3, 1, 1)), ("head.expand.weight", (5, 3))):
        weight = made.get_parameter(path)
        assert weight.shape == shape
        assert bool((weight != 0).all())
        assert torch.equal(weight, again.get_parameter(path))


def test_signals_keep_their_size_in_what_is_timed() -> None:
    net = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))).double().eval()
    plan = make_plan(net, {"0": 32, "1": 32, "2": 32})
    x = torch.randn(4, 64, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    assert 0.5 < float(rewrite_for_timing(net, plan)(x).detach().std()) < 2.0


def test_a_plan_for_a_missing_layer_is_refused() -> None:
    plan = make_plan(seeded(Residual), {"blocks.1.conv1": 4})
    small = seeded(lambda: Residual(blocks=1))
    with pytest.raises(
        RewriteError, match=r"^the plan rewrites 'blocks\.1\.conv1', which this model does not have\. Pass"
    ):
        rewrite_structure(small, plan)


def test_a_plan_for_another_shape_is_refused() -> None:
    plan = make_plan(seeded(Residual), {"stem": 2})
    with pytest.raises(RewriteError, match=r"'stem': got out_channels=16; expected out_channels=12\."):
        rewrite_structure(seeded(lambda: Residual(width=16)), plan)


def test_a_plan_for_another_kind_of_module_is_refused() -> None:
    plan = make_plan(seeded(Residual), {"stem": 2})
    net = seeded(Residual)
    net.stem = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(RewriteError, match=r"'stem': got Identity.*; expected conv 3x3"):
        rewrite_structure(net, plan)


def test_weights_of_the_wrong_shape_are_refused() -> None:
    net = seeded(Residual)
    plan = make_plan(net, {"stem": 2})
    wrong = {"stem": [Weights(torch.zeros(1)), Weights(torch.zeros(12, 2, 3, 3), torch.zeros(12))]}
    with pytest.raises(RewriteError, match=r"^weight of 'reduce'.*got values of shape \(1,\); expected \(2, 3, 1, 1\)"):
        rewrite_model(net, plan, wrong)


@pytest.mark.parametrize("make", [Hidden, ActsOnType])
def test_a_replacement_that_the_model_ignores_is_refused(make: Callable[[], nn.Module]) -> None:
    result = optimize(seeded(make), noise(1, 8, 8, 8), progress=False)
    assert not result.plan.steps
    assert all("called 0 times instead of 1" in each.reason for each in result.skipped)


def optimized(model: nn.Module, x: Tensor, **options: Any) -> Any:
    return optimize(model, x, **{"budget": 0.6, "progress": False, **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_optimize_returns_the_callers_precision(dtype: torch.dtype) -> None:
    result = optimized(seeded(classifier, dtype=dtype), X.to(dtype))
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert result.model(X.to(dtype)).dtype == dtype
    assert result.graph_module is not None
    assert {id(p) for p in result.graph_module.parameters()} == {id(p) for p in result.model.parameters()}
    assert torch.equal(result.graph_module(X.to(dtype)), result.model(X.to(dtype)))


def test_optimize_keeps_the_memory_format() -> None:
    net = seeded(classifier).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = optimized(net, X.to(memory_format=torch.channels_last))
    kernels = [p for p in result.model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_an_alias_is_rewritten_once_and_costs_each_call() -> None:
    result = optimized(seeded(lambda: Repeated(16)), X, include=["first", "loop"])
    steps = {step.path: step for step in result.plan.steps}
    assert steps["first"].names == ("first", "second")
    assert result.model.first is result.model.second
    assert steps["loop"].after.macs == 3 * 2 * 64 * (steps["loop"].after.params - 16)
    assert result.after.cost == result.plan.after


def test_a_hook_that_changes_the_output_is_kept_and_calibrated_around() -> None:
    net = seeded(classifier)
    net[2].register_forward_hook(lambda module, args, output: output * 3)  # type: ignore[index]
    result = optimized(net, X, include=["2"], budget=0.8)
    assert isinstance(result.model[2], Factored)
    assert len(result.model[2]._forward_hooks) == 1
    assert measured(result.verification) < 0.2
