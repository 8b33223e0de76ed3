"""Progress on the terminal and in a log: items pass unchanged, whatever is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from asymvpr_core.cli.progress import LINE_INTERVAL_S, BarProgress, LineProgress, terminal_progress
from asymvpr_core.progress import Progress


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_where_there_is_no_terminal():
    stream, clock = io.StringIO(), Clock()
    for _ in LineProgress(stream, clock)(range(4), "encode", completed=6):
        clock.now += LINE_INTERVAL_S * 0.6
    assert stream.getvalue().splitlines() == ["encode: 6/10", "encode: 8/10, 6 s", "encode: 10/10, 12 s", "encode: 10/10, done in 12.0 s"]


def test_lines_without_a_known_total():
    stream = io.StringIO()
    list(LineProgress(stream, Clock())(iter("ab"), "read"))
    assert stream.getvalue().splitlines() == ["read: 0", "read: 2, done in 0.0 s"]


def test_a_file_gets_lines_and_no_escape_codes():
    stream = io.StringIO()
    list(terminal_progress(stream)(range(3), "encode"))
    assert "\x1b" not in stream.getvalue() and "encode: 3/3" in stream.getvalue()


@pytest.mark.parametrize(
    "make", [lambda: BarProgress(Console(file=io.StringIO(), force_terminal=True)), lambda: LineProgress(io.StringIO())]
)
def test_items_pass_unchanged_nested_and_after_an_early_end(make: Callable[[], Progress]):
    progress = make()
    pairs = [(a, b) for a in progress([1, 2], "outer") for b in progress(iter("xy"), "inner", total=2)]
    assert pairs == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    for item in progress([1, 2, 3], "left early"):
        assert item == 1
        break
    assert list(progress([], "empty")) == []


def test_bars_show_description_and_count():
    stream = io.StringIO()
    list(BarProgress(Console(file=stream, force_terminal=True, width=100))([1, 2, 3], "describe [m]", total=10, completed=7))
    assert "describe [m]" in stream.getvalue() and "10/10" in stream.getvalue()
