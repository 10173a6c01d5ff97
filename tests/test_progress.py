"""What a waiting person sees: on a terminal a bar with the time left, in a log a line now and then."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from bottleneck_opt import progress
from bottleneck_opt.progress import Stages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_log_is_told_how_far_a_long_stage_is(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Stages().stage("propose", total=10) as advance:
        for _ in range(10):
            clock[0] += 20
            advance()
    assert capsys.readouterr().err.splitlines() == [
        "propose: 2 of 10, about 3 min left",
        "propose: 4 of 10, about 2 min left",
        "propose: 6 of 10, about 80 s left",
        "propose: 8 of 10, about 40 s left",
        "propose: done in 200.0 s",
    ]


def test_a_log_of_a_short_stage_has_one_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Stages().stage("propose", total=10) as advance:
        for _ in range(10):
            clock[0] += 2
            advance()
    assert capsys.readouterr().err == "propose: done in 20.0 s\n"


def test_steps_that_were_read_back_do_not_make_the_rest_seem_quick(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Stages().stage("recover", total=100) as advance:
        for _ in range(90):
            advance()
        clock[0] += 40
        advance()
    assert capsys.readouterr().err.splitlines()[0] == "recover: 91 of 100, about 6 min left"


def test_what_is_told_counts_as_a_sign_of_life(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Stages().stage("recover", total=100) as shown:
        for _ in range(4):
            clock[0] += 20
            shown()
            shown.tell("held-out loss 1")
    assert "left" not in capsys.readouterr().err


def test_a_terminal_is_shown_steps_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Stages().stage("propose", total=2) as advance:
        advance()
        advance()
    shown = terminal.getvalue()
    assert "2/2" in shown
    assert "0:00:00" in shown


def test_a_terminal_is_not_shown_a_count_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Stages().stage("trace"):
        pass
    shown = terminal.getvalue()
    assert "trace" in shown
    assert "/" not in shown.replace("\x1b", "")


def test_nothing_is_shown_where_nobody_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages(shown=False).stage("propose", total=2) as shown:
        shown()
        shown.tell("half")
    assert capsys.readouterr().err == ""
