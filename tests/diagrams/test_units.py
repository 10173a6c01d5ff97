from dataclasses import replace

from bottleneck_opt.diagrams.units import group_units, operation_label
from bottleneck_opt.graph import ModelGraph, Node
from tests.samples import Run, conv_spec, residual_run


def test_normalisation_and_activation_join_the_layer_before_them() -> None:
    titles = [unit.title for unit in group_units(residual_run(1).traced().structure)]
    assert titles == [
        "input", "conv 3x3", "conv 3x3 | BN | ReLU", "conv 3x3 | BN", "add | ReLU", "AdaptiveAvgPool2d", "output",
    ]  # fmt: skip


def test_an_activation_that_others_skip_past_stays_alone() -> None:
    run = Run()
    x = run.conv("a", run.input(3), 3, 4)
    y = run.module("relu", "ReLU", (x,), 4)
    run.output(run.function("add", (x, y), 4))
    assert [unit.title for unit in group_units(run.traced().structure)] == [
        "input",
        "conv 3x3",
        "ReLU",
        "add",
        "output",
    ]


def test_a_normalisation_after_a_sum_stays_alone() -> None:
    run = Run()
    x = run.conv("a", run.input(3), 3, 4)
    total = run.function("add", (x, run.conv("b", x, 4, 4)), 4)
    run.output(run.module("norm", "LayerNorm", (total,), 4))
    assert [unit.title for unit in group_units(run.traced().structure)][-3:] == ["add", "LN", "output"]


def test_an_activation_on_the_input_is_not_part_of_the_input() -> None:
    run = Run()
    run.output(run.module("relu", "ReLU", (run.input(3),), 3))
    assert [unit.title for unit in group_units(run.traced().structure)] == ["input", "ReLU", "output"]


def test_parameters_and_indexing_are_left_out_and_read_through() -> None:
    run = Run()
    x = run.conv("a", run.input(3), 3, 4)
    part = run.function("getitem", (x,), 4)
    shape = run.function("get shape", (part,), 4)
    run.conv("b", part, 4, 4)
    weight = replace(run.nodes[0], name="w", kind="attribute", inputs=())
    structure = ModelGraph((weight, *run.nodes))
    units = group_units(structure)
    assert [unit.head.name for unit in units] == ["x", "a", "b"]
    assert units[2].inputs == ("a",)
    assert shape not in {node.name for unit in units for node in unit.nodes}


def test_a_unit_costs_what_its_operations_cost() -> None:
    structure = residual_run(2).traced().structure
    total = sum(unit.cost.macs for unit in group_units(structure))
    assert total == sum(node.cost.macs for node in structure.nodes)


def test_a_depthwise_convolution_says_so() -> None:
    layer = replace(conv_spec("conv", 8, 8), groups=8)
    node = Node("n", "module", "Conv2d", "n", (), (), (), (), layer=layer)
    assert operation_label(node) == "conv 3x3 depthwise"
    assert operation_label(replace(node, layer=replace(layer, groups=2))) == "conv 3x3 groups 2"


def test_names_with_underscores_are_still_recognised() -> None:
    def node(operation: str) -> Node:
        return Node("n", "function", operation, "", (), (), (), ())

    assert operation_label(node("batch_norm")) == "BN"
    assert operation_label(node("BatchNorm2d")) == "BN"
    assert operation_label(node("InstanceNorm3d")) == "IN"
    assert operation_label(node("__add__")) == "add"
    assert operation_label(node("__")) == "__"
