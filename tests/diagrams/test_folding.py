import pytest

from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.layout import Group, Layout
from bottleneck_opt.diagrams.picture import Change, Picture, picture_model
from bottleneck_opt.diagrams.union import picture_outcome
from tests.samples import residual_outcome, residual_run


def groups(layout: Layout) -> list[Group]:
    return [item for item in layout.items if isinstance(item, Group)]


def assert_complete(picture: Picture, layout: Layout) -> None:
    """Every part is in exactly one box, and a box that stands for several kinds of operation hides no change."""
    boxed = [part.key for box in layout.boxes for part in box.parts]
    assert sorted(boxed) == sorted(part.key for part in picture.parts)
    for box in layout.boxes:
        if box.region is not None:
            assert {part.change for part in box.parts} == {Change.SAME}
        assert {part.change for part in box.parts} == {box.change}


def test_a_small_model_is_not_folded() -> None:
    layout = fold(picture_model(residual_run(2).traced()))
    assert layout.shown == layout.operations
    assert not groups(layout)


def test_equal_blocks_are_drawn_once_with_their_number() -> None:
    layout = fold(picture_model(residual_run(20).traced()))
    (group,) = groups(layout)
    assert len(group.paths) == 20
    assert group.paths[-1] == "blocks.19"
    assert [box.copies for box in group.boxes()] == [20, 20, 20]


def test_a_block_that_changed_is_not_merged_with_those_that_did_not() -> None:
    picture = picture_outcome(residual_outcome({"blocks.5.conv1": 4}, blocks=20))
    layout = fold(picture, aim=10)
    assert_complete(picture, layout)
    assert [box.paths for box in layout.boxes if box.change is Change.REMOVED] == [("blocks.5.conv1",)]


def test_blocks_with_different_ranks_stay_apart_while_there_is_room() -> None:
    picture = picture_outcome(residual_outcome({"blocks.0.conv1": 4, "blocks.1.conv1": 6}, blocks=2))
    assert not groups(fold(picture, aim=14))
    (group,) = groups(fold(picture, aim=9))
    assert len(group.paths) == 2


@pytest.mark.parametrize("aim", [1, 5, 10, 20, 40, 1000])
@pytest.mark.parametrize("hidden", [None, Change.ADDED, Change.REMOVED])
def test_nothing_is_lost_and_no_change_is_hidden_at_any_level(aim: int, hidden: Change | None) -> None:
    ranks = {"blocks.2.conv1": 4, "blocks.3.conv1": 4, "blocks.4.conv1": 6, "blocks.9.conv2": 2}
    picture = picture_outcome(residual_outcome(ranks, blocks=12))
    picture = picture if hidden is None else picture.without(hidden)
    layout = fold(picture, aim=aim, most=aim)
    assert_complete(picture, layout)
    place = {box.key: index for index, box in enumerate(layout.boxes)}
    assert all(place[line.source] < place[line.target] for line in layout.lines)


def test_costs_of_all_boxes_add_up_to_the_model() -> None:
    traced = residual_run(20).traced()
    layout = fold(picture_model(traced), aim=5)
    assert sum(cost.macs for box in layout.boxes for cost in box.costs) == traced.cost.macs


def test_every_box_but_the_input_is_reached_by_a_line() -> None:
    layout = fold(picture_outcome(residual_outcome({"blocks.5.conv1": 4}, blocks=20)), aim=10)
    reached = {line.target for line in layout.lines}
    assert [box.key for box in layout.boxes if box.key not in reached] == ["x"]


def test_more_folding_never_gives_more_boxes() -> None:
    picture = picture_outcome(residual_outcome({"blocks.5.conv1": 4, "blocks.6.conv1": 8}, blocks=20))
    counts = [len(fold(picture, aim=aim, most=aim).boxes) for aim in (1000, 60, 30, 15, 1)]
    assert counts == sorted(counts, reverse=True)
