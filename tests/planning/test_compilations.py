"""Outcomes are compiled once each, and teach by how much predictions are off."""

import dataclasses

import pytest

from jaxremat.base.stopwatch import Stopwatch
from jaxremat.base.telling import listening
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planning.compilations import Compilations


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """An outcome, with what its compilation will say."""

    peak_bytes: int
    cost: float
    compiled_bytes: int
    seconds: float | None = None
    is_plain: bool = False


@pytest.fixture
def compiled():
    """What was compiled, in order."""
    return []


@pytest.fixture
def compilations(compiled):
    def compile(outcome):
        compiled.append(outcome)
        report = MemoryReport("h200", 0, 0, outcome.compiled_bytes, 0, outcome.compiled_bytes, 0.0)
        return dataclasses.replace(report, seconds=outcome.seconds)

    return Compilations(compile, Stopwatch(), lambda outcome: outcome.is_plain)


def test_each_outcome_is_compiled_once_and_what_is_as_written_is_one_program(compilations, compiled):
    one, alike, plain, another = (
        Told(9, 1, 10),
        Told(9, 1, 10),
        Told(20, 1, 20, None, True),
        Told(20, 1, 20, None, True),
    )
    for outcome in (one, alike, plain, one, another):
        assert compilations.measure(outcome) == (outcome.compiled_bytes, compilations.report(outcome))
    assert compiled == [one, alike, plain] == [trial.candidate for trial in compilations.trials]
    assert compilations.known(another) is compilations.known(plain) is not None


def test_nothing_is_compiled_to_say_what_is_known(compilations, compiled):
    assert compilations.known(Told(9, 1, 10)) is None and compilations.smallest() is None and not compiled


def test_the_fastest_that_fits_goes_by_compiled_seconds_where_they_are_known(compilations):
    slow, fast, large = Told(9, 1.0, 10, 3.0), Told(9, 2.0, 10, 1.5), Told(9, 0.1, 11, 0.1)
    assert compilations.fastest_within([slow, fast, large], 10) is fast
    unknown, dear = Told(9, 1.0, 10), Told(9, 2.0, 10)
    assert compilations.fastest_within([dear, unknown], 10) is unknown
    assert compilations.fastest_within([large], 10) is None
    assert compilations.smallest().peak_bytes == 10


def test_what_fits_may_be_asked_to_use_the_limit(compilations):
    outcome = Told(900, 1, 940)
    assert compilations.fits(outcome, 1000) and not compilations.fits(outcome, 939)
    assert compilations.fits(outcome, 1000, unused=0.06) and not compilations.fits(outcome, 1000, unused=0.05)


def test_a_prediction_that_was_too_low_asks_for_lower_ones(compilations):
    assert compilations.learnt_bytes(Told(900, 1, 1000), 2000) == 1800


def test_a_compilation_is_told_and_takes_no_time_of_planning():
    clock, heard, told = Stopwatch(), [], []

    def compile(outcome):
        heard.append(clock.seconds)
        heard.append(clock.seconds)
        return MemoryReport("h200", 0, 0, 10, 0, 10, 0.0)

    compilations = Compilations(compile, clock, lambda outcome: outcome.is_plain)
    with clock.running(), listening(told.append):
        compilations.trial(Told(2**20, 1, 10, None, True))
        compilations.trial(Told(2**20, 1, 10))
    assert heard[0] == heard[1] and heard[2] == heard[3], "it stands still"
    assert told == [
        "compiling the program as written, 0 compiled before",
        "compiling what is predicted to take 1.0 MiB, 1 compiled before",
    ]
