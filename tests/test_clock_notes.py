from __future__ import annotations

from dataclasses import replace

import pytest

from bottleneck_opt.clock_notes import list_clock_notes
from bottleneck_opt.outcome import Clocked, LeftOut, Speed, Timed, Verification
from tests.samples import residual_outcome

SLOW = LeftOut("layer1.conv", "reduce", (16,), 0.29, 0.31)


def checked(*ratios: float) -> Verification:
    speeds = tuple(Speed(10.0, 10.0 * ratio, 9, 1, "cpu", batch=number or None) for number, ratio in enumerate(ratios))
    return replace(residual_outcome().verification, speed=speeds[0], more_speeds=speeds[1:])


def test_nothing_is_told_of_a_faster_model_that_was_not_timed_while_choosing() -> None:
    assert list_clock_notes(None, checked(0.8)) == ()


def test_a_slower_model_is_told_in_its_setting() -> None:
    (note,) = list_clock_notes(None, checked(0.9, 1.2))
    assert note.startswith("slower than the original here: 12 ms instead of 10 ms (batch 1, 1 thread, eager)")


@pytest.mark.parametrize(("count", "words"), [(1, "as it is not"), (5, "as they are not")])
def test_a_few_of_what_was_left_out_are_shown(count: int, words: str) -> None:
    (note,) = list_clock_notes(Clocked(left_out=(SLOW,) * count), checked(0.8))
    assert f"{words} what makes it fast: {count} replacement" in note
    assert "layer1.conv reduce 16: 0.31 ms instead of 0.29 ms" in note
    assert note.count("layer1.conv") == min(count, 3)
    assert ("..." in note) == (count > 3)


def test_every_setting_is_told_with_what_was_expected() -> None:
    timed = tuple(Timed(name, 10.0, 6.9, 7.0) for name in ("batch 1, 1 thread, eager", "batch 32, 1 thread, eager"))
    notes = list_clock_notes(Clocked(timed, models=3), checked(0.7, 0.7))
    assert notes[0] == (
        "batch 1, 1 thread, eager: 10 ms before, 7 ms after, 6.9 ms expected (3 models timed while choosing)"
    )
    assert len(notes) == 2


def test_a_second_measurement_that_says_otherwise_is_told() -> None:
    clocked = Clocked((Timed("batch 1", 10.0, 6.9, 7.0),), models=1)
    assert not any("measured again" in note for note in list_clock_notes(clocked, checked(0.71)))
    note = next(note for note in list_clock_notes(clocked, checked(0.8)) if "measured again" in note)
    assert note.startswith("batch 1: measured again at the end, 0.800 of the original's time instead of 0.700; where ")


def test_a_cache_that_cannot_be_used_is_told() -> None:
    notes = list_clock_notes(Clocked(fault="the disk is full"), checked(0.7))
    assert notes == ("times are not kept, and may come out otherwise the next time: the disk is full",)
