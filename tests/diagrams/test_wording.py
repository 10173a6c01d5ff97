import math

import pytest

from bottleneck_opt.diagrams import wording


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (99_960, "100 k"),
        (999_499, "999 k"),
        (10**9, "1.00 G"),
        (10**19, "10000 P"),
    ],
)
def test_counts_have_three_digits_whatever_their_size(count: int, text: str) -> None:
    assert wording.count_text(count) == text


def test_a_path_is_elided_in_the_middle_and_keeps_both_ends() -> None:
    shown = wording.elide_middle("first." + "x" * 100 + ".last")
    assert len(shown) == wording.PATH_LIMIT
    assert shown.startswith("first.")
    assert shown.endswith(".last")


@pytest.mark.parametrize("text", ["\x00\x1b[31m", "caf\u00e9", "\u202e", "\U0001f600", "\ud800", "a\nb", "\x7f"])
def test_everything_but_printable_ascii_becomes_an_escape(text: str) -> None:
    shown = wording.ascii_text(text)
    assert shown.isascii()
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (["inception3b.branch2", "inception3b.branch3"], "inception3b.branch2 .. branch3"),
        (["stem", "head"], "stem .. head"),
        (["a.b", "a"], "a.b .. a"),
        (["a", "a.b"], "a .. a.b"),
        (["a.b.c", "a.x.c"], "a.b.c .. x.c"),
    ],
)
def test_a_range_of_paths_says_what_they_share_once_and_never_ends_in_nothing(paths: list[str], text: str) -> None:
    assert wording.paths_text(paths) == text


def test_two_different_texts_stay_different() -> None:
    assert wording.ascii_text("\n") != wording.ascii_text("\r")


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_a_number_is_called_unknown(loss: float) -> None:
    assert wording.loss_text(loss) == "unknown"


def test_a_large_loss_is_written_out() -> None:
    assert wording.loss_text(12.3) == "1230 %"


def test_a_tiny_share_is_not_called_nothing() -> None:
    assert wording.share_text(1e-9) == "<0.1 %"


def test_shapes_that_are_scalars_or_missing_have_a_text() -> None:
    assert wording.shapes_text([()]) == "scalar"
    assert wording.shapes_text([]) == ""
