"""What is counted of the time that passes."""

import pytest

from jaxremat.base import stopwatch
from jaxremat.base.stopwatch import Stopwatch


@pytest.fixture
def passes(monkeypatch):
    """Lets seconds pass."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_only_what_runs_is_counted(passes):
    watch = Stopwatch(3)
    passes(1)
    with watch.running():
        passes(10)
        assert watch.seconds == 13
        with watch.paused():
            passes(100)
        with watch.running():
            passes(20)
        passes(40)
    passes(1000)
    assert watch.seconds == 73


def test_what_fails_is_counted_too(passes):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.running(), watch.paused():
        passes(1)
        raise KeyError
    with watch.running():
        passes(2)
    assert watch.seconds == 2


def test_a_pause_of_what_does_not_run_starts_nothing(passes):
    watch = Stopwatch()
    with watch.paused():
        passes(1)
    passes(2)
    assert watch.seconds == 0
