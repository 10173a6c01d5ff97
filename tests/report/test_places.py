from dataclasses import replace

from bottleneck_opt.diagrams.folding import fold
from bottleneck_opt.diagrams.picture import Change
from bottleneck_opt.diagrams.union import picture_outcome
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.report.places import Place, describe_places, list_places
from tests.report.outcomes import full_outcome, many_changes
from tests.samples import residual_outcome, residual_run, stem_skip


def places(outcome: Outcome) -> tuple[Place, ...]:
    return list_places(fold(picture_outcome(outcome)))


def facts(outcome: Outcome, path: str) -> dict[str, str]:
    described = describe_places(places(outcome), outcome)
    (found,) = (each for each in described if each["path"] == path)
    known: dict[str, str] = dict(found["facts"])  # type: ignore[call-overload]
    return known


def test_costs_of_all_places_add_up_to_the_models() -> None:
    outcome = many_changes()
    found = places(outcome)
    assert sum(place.before.macs for place in found) == outcome.before.cost.macs
    assert sum(place.after.macs for place in found) == outcome.after.cost.macs


def test_a_rewritten_layer_is_one_place_with_what_was_and_what_is() -> None:
    (place,) = (each for each in places(residual_outcome()) if each.change is not Change.SAME)
    assert place.path == "blocks.1.conv1"
    assert place.words(without=Change.ADDED).startswith("conv 3x3 | BN")
    assert place.words(without=Change.REMOVED).startswith("conv 1x1 + conv 3x3")
    assert place.after.macs < place.before.macs


def test_every_place_is_shown_by_a_box_of_the_picture() -> None:
    layout = fold(picture_outcome(many_changes()))
    keys = {box.key for box in layout.boxes}
    assert all(place.boxes and keys.issuperset(place.boxes) for place in list_places(layout))


def test_everything_known_about_a_rewritten_layer_is_told() -> None:
    found = facts(full_outcome(), "blocks.1.conv1")
    assert found["rank"] == "4 of 16"
    assert found["form"] == "reduce"
    assert found["MACs"] == "147 kMAC -> 41.0 kMAC (-72 %)"
    assert found["of all MACs"] == "16.2 %"
    assert found["predicted loss"] == "1.0 %"
    assert found["measured error"] == "2.0 % of its own output"
    assert found["time"] == "0.400 ms -> 0.300 ms (-25 %)"


def test_a_layer_left_alone_says_why_and_what_to_do() -> None:
    skipped = replace(stem_skip(residual_run().traced()), advice="give it more")
    found = facts(residual_outcome(skipped=(skipped,)), "stem")
    assert found["left alone"] == "3 input channels: no rank is cheaper"
    assert found["what you can do"] == "give it more"
    assert "rank" not in found
