"""What a person sees: bars on a terminal, plain lines elsewhere, nothing when quiet."""

import re
import time

import pytest

from saelora import console
from saelora.console import Console


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    quiet = Console(quiet=True)
    quiet.say("hello")
    with quiet.progress("working", 10) as bar:
        bar.advance(5, "note")
        bar.update(10)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_where_there_is_no_terminal_progress_is_plain_lines_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    with Console().progress("adapting", 2000) as bar:
        bar.update(500, "gap closed 10.0%")
        bar.update(2000)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("adapting: 500 of 2,000 ")
    assert lines[0].endswith("gap closed 10.0%")
    assert "\x1b" not in printed.err


def test_plain_lines_come_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("adapting", 1000) as bar:
        for _ in range(1000):
            bar.advance(1)
    assert capsys.readouterr().err.count("\n") <= 1


def test_brackets_are_text_and_long_lines_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]not markup[/bold] " + "x" * 300
    Console().say(text)
    assert capsys.readouterr().err == text + "\n"


def test_rate_leaves_out_what_was_done_before_a_resume(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("adapting", 10**9) as bar:
        bar.start_at(9 * 10**8)
        bar.started = bar.said = time.monotonic() - 80
        bar.update(9 * 10**8 + 8000)
    rate = re.search(r"([\d,]+) tokens/s", capsys.readouterr().err)
    assert rate is not None
    assert 0 < int(rate[1].replace(",", "")) <= 100
