from dataclasses import replace

from bottleneck_opt.graph import Node, Traced
from bottleneck_opt.report import render_profile
from bottleneck_opt.report.tables import WIDTH
from tests.samples import Run, residual_run


def rows(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}


def test_each_layer_has_its_cost_and_share() -> None:
    found = rows(render_profile(residual_run(1).traced(), None))
    assert found["blocks.0.conv1"] == [
        "blocks.0.conv1", "conv", "3x3", "16x8x8", "147", "k", "2.30", "k", "45.7", "%"
    ]  # fmt: skip
    assert "ms" not in found["path"]


def test_shares_add_up_to_the_whole() -> None:
    found = rows(render_profile(residual_run(1).traced(), None))
    shares = [float(row[-2]) for name, row in found.items() if name not in ("path", "total") and row[-1] == "%"]
    assert abs(sum(shares) - 100) < 0.5


def test_times_are_found_by_module_path() -> None:
    found = rows(render_profile(residual_run(1).traced(), {"stem": 1.0, "blocks.0.conv1": 2.0, "pool": 0.5}))
    assert found["stem"][-1] == "1.00"
    assert found["blocks.0.conv1"][-1] == "2.00"
    assert found["pool"][-1] == "0.500"
    assert found["total"][-1] == "3.50"


def test_operations_that_no_formula_counts_are_named() -> None:
    traced = replace(residual_run(1).traced(), uncounted={"aten::fft": 3})
    assert "aten::fft x3" in render_profile(traced, None)


def test_calls_of_the_same_layer_are_told_apart() -> None:
    traced = residual_run(1).traced()
    nodes = tuple(replace(node, call=1, calls=2) if node.path == "stem" else node for node in traced.structure.nodes)
    text = render_profile(_with_nodes(traced, nodes), None)
    assert "stem (call 2 of 2)" in text


def test_a_long_path_does_not_make_the_table_too_wide() -> None:
    traced = residual_run(1).traced()
    nodes = tuple(replace(node, path=node.path * 30) for node in traced.structure.nodes)
    text = render_profile(_with_nodes(traced, nodes), {"stem": 1.0})
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_model_without_layers_has_only_a_total() -> None:
    run = Run()
    run.output(run.input(3))
    header, rule, total = render_profile(run.traced(), None).splitlines()
    assert header.startswith("path")
    assert set(rule) == {"-"}
    assert total.startswith("total")


def _with_nodes(traced: Traced, nodes: tuple[Node, ...]) -> Traced:
    return replace(traced, structure=replace(traced.structure, nodes=nodes))
