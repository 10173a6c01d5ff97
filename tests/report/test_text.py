from dataclasses import replace

import pytest

from bottleneck_opt.graph import Cost
from bottleneck_opt.outcome import Recovered, Speed
from bottleneck_opt.plan import Selection
from bottleneck_opt.report import render_text
from bottleneck_opt.report.facts import headline
from bottleneck_opt.report.tables import WIDTH, format_table, wrap_text
from tests.samples import renamed_outcome, residual_outcome


def test_the_headline_numbers_are_there_before_and_after() -> None:
    lines = {line.split("  ")[0]: line.split() for line in render_text(residual_outcome()).splitlines()}
    assert lines["MACs"][1:7] == ["912", "kMAC", "806", "kMAC", "-12", "%"]
    assert lines["time a call"][3:8] == ["2.00", "ms", "1.50", "ms", "-25"]
    assert lines["output change"][2:4] == ["1.2", "%"]
    assert lines["metric"][1:4] == ["0.97", "0.96", "-0.01"]
    assert "1 of 2" in " ".join(lines["layers changed"])


def test_what_recovery_did_is_a_line() -> None:
    trained = Recovered(0.08, 0.02, 300, 280, "", 51, 13, "kept", noise=False)
    text = render_text(replace(residual_outcome(), recovery=trained))
    line = next(line for line in text.splitlines() if line.startswith("loss by recovery"))
    assert line.split()[3:7] == ["0.08", "0.02", "-75", "%"]
    assert "13 held-out examples, weights of step 280 of 300" in line
    assert "before recovery" in text
    text = render_text(replace(residual_outcome(), recovery=replace(trained, best_step=0, norms="no help", after=0.08)))
    assert "nothing did better, not kept" in text
    assert "before recovery" not in text
    assert "recovery" not in render_text(residual_outcome())


def test_long_words_beside_a_number_go_on_below_and_leave_its_name_whole() -> None:
    outcome = residual_outcome()
    found = replace(outcome.verification, held_out_change=0.063, held_out_data="new mixed inputs, " + "many " * 20)
    text = render_text(replace(outcome, verification=found))
    names = [line.split("  ")[0] for line in text.splitlines()]
    assert {"output change", "layers changed", "time a call"} <= set(names)
    below = text.splitlines()[names.index("output change") + 1]
    assert below.startswith(" " * 20)
    assert "many" in below
    assert max(map(len, text.splitlines())) <= WIDTH


def test_each_rewritten_layer_has_its_rank_cost_and_loss() -> None:
    line = next(line for line in render_text(residual_outcome()).splitlines() if line.startswith("blocks.1.conv1"))
    for words in ("conv 3x3", "reduce", "4/16", "147 k -> 41.0 k", "-72 %", "1.0 %"):
        assert words in line


def test_layers_left_alone_are_grouped_by_reason_with_their_share() -> None:
    outcome = residual_outcome()
    other = replace(outcome.skipped[0], path="head", reason="too small", advice="Lower the budget.", share=0.2)
    text = render_text(replace(outcome, skipped=(*outcome.skipped, other, replace(other, path="head2"))))
    rows = text[text.index("left alone") :].splitlines()
    assert rows[1].split() == ["too", "small", "2", "40.0", "%", "head", "and", "1", "more"]
    assert "what to do: Lower the budget." in text


def test_what_was_not_measured_is_not_mentioned() -> None:
    outcome = residual_outcome()
    verification = replace(outcome.verification, speed=None, metric_before=None, agreement=None)
    text = render_text(replace(outcome, verification=verification))
    assert "time a call" not in text
    assert "metric" not in text
    assert "same top class" not in text


def test_what_the_output_change_means_is_said_below_the_numbers() -> None:
    head = render_text(residual_outcome()).split("\n\n", maxsplit=1)[0]
    assert "mean squared change of the output, as a share of the output's variance" in head


def test_what_a_rank_counts_is_said_below_the_layers() -> None:
    layers = render_text(residual_outcome()).split("\n\n")[1]
    assert "rank: channels kept between the new layers" in layers


def test_an_output_change_that_was_not_measured_is_said_to_be_so() -> None:
    outcome = residual_outcome()
    text = render_text(replace(outcome, verification=replace(outcome.verification, measured_change=None)))
    (line,) = (line for line in text.splitlines() if line.startswith("output change  "))
    assert "not measured" in line
    assert "predicted 1.0 %" in line


@pytest.mark.parametrize(("spread", "unsteady"), [(0.2, False), (0.21, True)])
def test_times_from_an_unsteady_machine_are_marked(spread: float, unsteady: bool) -> None:
    outcome = residual_outcome()
    speed = Speed(2.0, 1.5, 50, 1, "cpu", spread=spread)
    text = render_text(replace(outcome, verification=replace(outcome.verification, speed=speed)))
    (line,) = (line for line in text.splitlines() if line.startswith("time a call"))
    assert ("unsteady machine" in line) is unsteady
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_second_line_says_what_was_saved_and_what_it_cost() -> None:
    line = render_text(residual_outcome()).splitlines()[1]
    assert line.startswith("12 % fewer MACs, 12 % fewer params, 25 % less time a call; the output changed by 1.2 %")


@pytest.mark.parametrize(
    ("agreement", "words"), [(1.0, "on 100 %."), (0.99999, "on 99.9 %."), (0.984, "on 98.4 %."), (None, "by 1.2 %.")]
)
def test_without_a_metric_the_headline_tells_how_often_the_top_class_stays(agreement: float | None, words: str) -> None:
    verification = replace(residual_outcome().verification, metric_before=None, agreement=agreement)
    assert words in " ".join(render_text(replace(residual_outcome(), verification=verification)).split())


def test_a_change_measured_on_made_up_inputs_is_said_to_be_so_in_the_headline() -> None:
    outcome = residual_outcome()
    made_up = replace(outcome, provenance=replace(outcome.provenance, noise=True))
    assert "changed by 1.2 % on made-up inputs" in " ".join(render_text(made_up).split())
    assert "made-up" not in render_text(outcome)
    assert "examples used for fitting" in render_text(outcome)
    trained = Recovered(0.08, 0.02, 300, 280, "", 51, 13, "kept", noise=False)
    assert "made-up inputs" not in render_text(replace(made_up, recovery=trained))


def test_a_percent_sign_stays_with_its_number() -> None:
    lines = wrap_text("x" * (WIDTH - 4) + " 100 % more")
    assert lines == ["x" * (WIDTH - 4), "100 % more"]


def test_more_is_not_called_fewer() -> None:
    outcome = residual_outcome()
    grown = replace(outcome.after, cost=replace(outcome.before.cost, params=outcome.before.cost.params * 2))
    line = render_text(replace(outcome, after=grown)).splitlines()[1]
    assert line.startswith("same MACs, 100 % more params")


def test_dropped_channels_have_their_loss() -> None:
    outcome = residual_outcome()
    dropped = Selection("stem", "blocks.0.conv1", (), 16, tuple(range(12)), "select", Cost(), 0.004)
    lines = render_text(replace(outcome, plan=replace(outcome.plan, selections=(dropped,)))).splitlines()
    (line,) = (line for line in lines if "blocks.0.conv1" in line)
    assert line.split() == ["stem", "blocks.0.conv1", "12/16", "0.40", "%"]


def test_an_outcome_without_any_change_says_so() -> None:
    text = render_text(residual_outcome({}, skipped=()))
    assert "no layer was rewritten" in text
    assert "left alone" not in text


def test_a_budget_that_was_missed_is_said_loudly() -> None:
    assert "NOT met" in render_text(replace(residual_outcome(), budget_met=False))


@pytest.mark.parametrize("name", ["x" * 3000, "two words " * 60, "line\nbreak\x1b[31m", "caf\u00e9" * 50])
def test_no_name_makes_a_line_too_wide_or_breaks_it(name: str) -> None:
    plain, text = render_text(residual_outcome()), render_text(renamed_outcome(residual_outcome(), "blocks", name))
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.index("rewritten layer") > 0
    assert len(text.splitlines()) >= len(plain.splitlines())


def test_a_table_gives_way_in_its_widest_column_only() -> None:
    lines = format_table(["path", "n"], [["a" * 300, "1"], ["b", "22"]], right="lr")
    assert {len(line) for line in lines} == {WIDTH}
    assert lines[2].endswith("22")


def test_a_word_longer_than_a_line_is_broken() -> None:
    assert max(map(len, wrap_text("y" * 400, first="- ", rest="  "))) <= WIDTH


def test_the_time_of_an_unchanged_model_is_no_saving() -> None:
    outcome = residual_outcome({}, skipped=())
    assert outcome.verification.speed is not None
    assert "time" not in headline(replace(outcome, plan=replace(outcome.plan, steps=())))
    assert "time" in headline(residual_outcome({"blocks.0.conv1": 2}))


def test_the_change_on_held_out_inputs_comes_first_where_it_is_known() -> None:
    outcome = residual_outcome()
    known = replace(outcome, verification=replace(outcome.verification, held_out_change=0.05))
    assert "the output changed by 5.0 % on held-out inputs" in headline(known)
    assert "on held-out inputs; 1.2 % on the 64 fitted to; predicted" in " ".join(render_text(known).split())
    assert "on held-out inputs" not in headline(outcome)
