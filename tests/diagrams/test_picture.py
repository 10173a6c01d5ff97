from dataclasses import replace

import networkx as nx

from bottleneck_opt.diagrams.picture import Change, Picture, picture_model
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.graph import Cost, Traced
from tests.samples import residual_outcome, residual_run


def changed(picture: Picture, change: Change) -> list[str]:
    return [part.path for part in picture.parts if part.change is change]


def test_a_replaced_layer_is_removed_and_its_parts_are_added() -> None:
    picture = picture_outcome(residual_outcome())
    assert changed(picture, Change.REMOVED) == ["blocks.1.conv1"]
    assert changed(picture, Change.ADDED) == ["blocks.1.conv1.reduce", "blocks.1.conv1.conv"]


def test_every_operation_of_either_model_is_in_the_union_exactly_once() -> None:
    outcome = residual_outcome({"blocks.0.conv2": 4, "blocks.1.conv1": 2})
    picture = picture_outcome(outcome)
    for hidden, traced in ((Change.ADDED, outcome.before), (Change.REMOVED, outcome.after)):
        shown = sum(len(part.unit.nodes) for part in picture.without(hidden).parts)
        assert shown == len(traced.structure.nodes)


def test_hiding_what_was_added_gives_the_model_before() -> None:
    outcome = residual_outcome({"blocks.0.conv2": 4, "blocks.1.conv1": 2})
    before, union = picture_model(outcome.before), picture_outcome(outcome).without(Change.ADDED)
    assert [part.key for part in union.parts] == [part.key for part in before.parts]
    assert {(e.source, e.target) for e in union.edges} == {(e.source, e.target) for e in before.edges}


def test_the_union_has_no_cycle_and_lists_sources_first() -> None:
    picture = picture_outcome(residual_outcome({"blocks.0.conv1": 4, "blocks.0.conv2": 4}))
    place = {part.key: index for index, part in enumerate(picture.parts)}
    assert all(place[edge.source] < place[edge.target] for edge in picture.edges)
    assert nx.is_directed_acyclic_graph(nx.DiGraph((edge.source, edge.target) for edge in picture.edges))


def test_edges_around_a_change_are_marked_and_others_are_not() -> None:
    picture = picture_outcome(residual_outcome())
    changes = {(edge.source, edge.target): edge.change for edge in picture.edges}
    assert changes[("add", "blocks_1_conv1")] is Change.REMOVED
    assert changes[("add", "blocks_1_conv1_reduce")] is Change.ADDED
    assert changes[("add", "add_1")] is Change.SAME


def test_a_layer_called_twice_is_matched_call_by_call() -> None:
    outcome = residual_outcome({})
    outcome = replace(outcome, before=_called_twice(outcome.before), after=_called_twice(outcome.after))
    picture = picture_outcome(outcome)
    assert not changed(picture, Change.REMOVED)
    assert not changed(picture, Change.ADDED)


def test_a_change_that_no_step_explains_is_still_shown() -> None:
    outcome = replace(residual_outcome({}), after=residual_run(3, replaced={"blocks.0.conv1": 4}).traced())
    picture = picture_outcome(outcome)
    assert changed(picture, Change.REMOVED) == ["blocks.0.conv1"]
    assert len(changed(picture, Change.ADDED)) == 2


def test_a_layer_reached_by_another_name_is_recognised() -> None:
    outcome = residual_outcome()
    step = replace(outcome.plan.steps[0], path="alias", names=("alias", "blocks.1.conv1"))
    picture = picture_outcome(replace(outcome, plan=replace(outcome.plan, steps=(step,))))
    assert changed(picture, Change.REMOVED) == ["blocks.1.conv1"]
    assert all(part.step is step for part in picture.parts if part.change is not Change.SAME)


def test_keys_are_unique_even_if_names_differ_in_punctuation_only() -> None:
    traced = residual_run(1).traced()
    nodes = list(traced.structure.nodes)
    nodes[1] = replace(nodes[1], name="a-b")
    nodes[2] = replace(nodes[2], name="a:b", inputs=("a-b",))
    picture = picture_model(replace(traced, structure=replace(traced.structure, nodes=tuple(nodes))))
    keys = [part.key for part in picture.parts]
    assert len(set(keys)) == len(keys)
    assert all(key.replace("_", "a").isalnum() for key in keys)


def _called_twice(traced: Traced) -> Traced:
    """The second block's first convolution becomes another call of the first block's."""
    nodes = tuple(
        replace(n, path="blocks.0.conv1", call=1, calls=2, cost=Cost(n.cost.macs)) if n.path == "blocks.1.conv1" else n
        for n in traced.structure.nodes
    )
    return replace(traced, structure=replace(traced.structure, nodes=nodes))
