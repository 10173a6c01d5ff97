from dataclasses import replace

import pytest

from bottleneck_opt.diagrams.captions import caption_box, group_title
from bottleneck_opt.diagrams.composing import compose
from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.heading import Heading
from bottleneck_opt.diagrams.layout import Group, Layout
from bottleneck_opt.diagrams.picture import Change, Picture, picture_model
from bottleneck_opt.diagrams.union import picture_outcome
from tests.samples import renamed_outcome, residual_outcome, residual_run


def groups(layout: Layout) -> list[Group]:
    """Frames around equal blocks."""
    found = [item for item in layout.items if isinstance(item, Group)]
    inner = [item for group in found for item in group.items if isinstance(item, Group)]
    return [group for group in (*found, *inner) if len(group.paths) > 1]


def assert_complete(picture: Picture, layout: Layout) -> None:
    """Every part is in exactly one box, and no change is hidden: it has a box of its own or a line in one."""
    boxed = [part.key for box in layout.boxes for part in box.parts]
    assert sorted(boxed) == sorted(part.key for part in picture.parts)
    for box in layout.boxes:
        changes = {part.change for part in box.parts}
        if changes == {Change.SAME}:
            continue
        caption = caption_box(box, whole=picture.before.macs)
        steps = {part.step.path for part in box.parts[: box.size] if part.step is not None}
        assert caption.tag
        assert len(steps) == 1 or len(caption.lines) == len(steps) or caption.rest
        assert len(changes) == 1 or box.change is Change.REPLACED


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
    layout = fold(picture, aim=16)
    assert_complete(picture, layout)
    assert [box.paths for box in layout.boxes if box.change is Change.REMOVED] == [("blocks.5.conv1",)]


def test_blocks_with_different_ranks_stay_apart_while_there_is_room() -> None:
    picture = picture_outcome(residual_outcome({"blocks.0.conv1": 4, "blocks.1.conv1": 6}, blocks=2))
    assert not groups(fold(picture, aim=14))
    (group,) = groups(fold(picture, aim=9, most=11))
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


def test_where_much_changed_a_layer_and_its_replacements_share_a_box() -> None:
    ranks = {f"blocks.{i}.conv{1 + i % 2}": 4 for i in range(4)}  # neighbours differ, so that none are merged
    picture = picture_outcome(residual_outcome(ranks, blocks=4))
    layout = fold(picture, aim=18, most=18)
    replaced = [box for box in layout.boxes if box.change is Change.REPLACED]
    assert [len(box.parts) for box in replaced] == [3, 3, 3, 3]
    caption = caption_box(replaced[0], whole=picture.before.macs)
    assert caption.tag == "-/+ REPLACED | -72 % MACs"
    assert caption.fit == "rank 4 of 16 | predicted loss 1.0 %"
    assert caption.title == "conv 3x3 | BN | ReLU"
    assert caption.becomes == "+ conv 1x1 + conv 3x3 | BN | ReLU"
    assert caption.shape == "16x8x8 -> 4x8x8 -> 16x8x8"
    assert caption.numbers[1:] == ("147 -> 41.0 kMAC", "2.30 k -> 640 params")


def test_the_rank_range_of_merged_layers_runs_from_smallest_to_largest() -> None:
    outcome = residual_outcome({"blocks.0.conv1": 12, "blocks.1.conv1": 4}, blocks=2)
    first, second = outcome.plan.steps
    steps = (replace(first, full_ranks=(128,)), replace(second, full_ranks=(32,)))
    layout = fold(picture_outcome(replace(outcome, plan=replace(outcome.plan, steps=steps))), aim=11)
    (group,) = groups(layout)
    tags = [caption_box(box, whole=1).tag for box in group.boxes()]
    assert any("rank 4 .. 12 of 32 .. 128" in tag for tag in tags)


def test_the_frame_around_equal_blocks_names_what_they_share_once() -> None:
    outer = "backbone_with_a_name.its_stages"
    outcome = renamed_outcome(residual_outcome({}, blocks=20), "blocks", outer)
    (group,) = groups(fold(picture_outcome(outcome)))
    assert group_title(group).startswith(f"{outer}.0 .. 19   x20")


def test_where_almost_all_changed_a_block_is_a_box_with_a_line_for_each_change() -> None:
    ranks = {f"blocks.{i}.conv{j}": 2 + i + j for i in range(8) for j in (1, 2) if i % 2 == 0 or j == 1}
    picture = picture_outcome(residual_outcome(ranks, blocks=8))
    layout = fold(picture, aim=12, most=12)
    captions = [caption_box(box, whole=picture.before.macs) for box in layout.boxes if box.region is not None]
    assert len(captions) == 8
    assert captions[0].lines == (
        ("conv1", "conv 3x3", "reduce, rank 3 of 16", "147 -> 30.7 kMAC", "-79 %"),
        ("conv2", "conv 3x3", "reduce, rank 4 of 16", "147 -> 41.0 kMAC", "-72 %"),
    )
    assert captions[0].tag == "-/+ 2 layers REPLACED | -76 % MACs"
    assert captions[0].fit == "predicted loss 2.0 %"
    one_side = fold(picture.without(Change.REMOVED), aim=12, most=12)
    tags = {caption_box(box, whole=1).tag for box in one_side.boxes if box.region is not None}
    assert tags == {"+ 2 layers NEW", "+ 1 layer NEW"}


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


@pytest.mark.parametrize("hidden", [Change.ADDED, Change.REMOVED])
def test_a_region_of_one_side_is_filled_by_all_that_it_costs_there(hidden: Change) -> None:
    picture = picture_outcome(residual_outcome({f"blocks.{i}.conv1": 2 + i for i in range(8)}, blocks=8))
    side = picture.without(hidden)
    figure = compose(fold(side, detail="block"), Heading("Net"))
    whole = sum(card.share for card in figure.cards) * side.before.macs
    assert whole == pytest.approx((side.before if hidden is Change.ADDED else side.after).macs)
    other = Change.REMOVED if hidden is Change.ADDED else Change.ADDED
    assert {card.change for card in figure.cards} == {Change.SAME, other}
