"""A line about long work: in terminals alone, not at once, and gone in the end."""

import io
import sys

import pytest

from jaxremat.show import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(monkeypatch, stream, seconds):
    clock = iter([0.0, 0.0, seconds, seconds])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt), progress.Status("planning") as status:
        status.tell("1 compiled")
        raise KeyboardInterrupt
    return stream.getvalue()


def test_a_terminal_is_told_after_two_seconds_and_left_clean_when_interrupted(monkeypatch):
    text = told(monkeypatch, Terminal(), 2.5)
    assert text.startswith("\rplanning: 1 compiled\r")
    assert not text.rpartition("compiled")[2].strip()


@pytest.mark.parametrize("stream, seconds", [(Terminal(), 1.0), (io.StringIO(), 9.0)])
def test_quick_work_and_logs_are_told_nothing(monkeypatch, stream, seconds):
    assert told(monkeypatch, stream, seconds) == ""
