"""The smallest that is found: which outcomes are compiled for it, and how few."""

import dataclasses
from types import SimpleNamespace

from jaxremat.base.stopwatch import Stopwatch
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.least_search import LeastSearch


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """An outcome, with what its compilation will say."""

    peak_bytes: int
    compiled_bytes: int
    replayed_bytes: int = 0
    cost: float = 1.0


PLAIN = Told(2000, 2000, 2000)


def search_of(*least):
    """A search among what a planner gives as the least, and what it compiles as it goes."""

    def compile(outcome):
        return MemoryReport("cpu", 0, 0, outcome.compiled_bytes, 0, outcome.compiled_bytes, 0.0)

    planner = SimpleNamespace(plain=PLAIN, least=lambda: list(least))
    compilations = Compilations(compile, Stopwatch(), lambda outcome: outcome is PLAIN)
    subject = SimpleNamespace(planner=planner, request=SimpleNamespace(refuses=True), unpermitted=None)
    return LeastSearch(subject, compilations), compilations


def compiled(compilations):
    return [trial.candidate for trial in compilations.trials if trial.candidate is not PLAIN]


def test_the_smallest_by_prediction_and_the_first_are_compiled_and_the_smaller_counts():
    first, smallest = Told(1000, 900, 1), Told(900, 950, 2)
    search, compilations = search_of(first, smallest)
    assert search.predicted() is smallest
    assert search.compiled().candidate is first
    assert {*compiled(compilations)} == {first, smallest}


def test_the_same_are_compiled_whatever_is_wanted_so_that_a_peak_that_was_named_is_found_again():
    outcomes = [Told(1000, 900, 1), Told(900, 950, 2), Told(940, 800, 3)]
    search, compilations = search_of(*outcomes)
    least = search.compiled(wanted_bytes=100)
    again, _ = search_of(*outcomes)
    assert again.compiled(wanted_bytes=least.peak_bytes).peak_bytes <= least.peak_bytes
    assert len(compiled(compilations)) <= 3


def test_of_those_predicted_alike_the_smallest_by_replay_leads():
    large, small = Told(1000, 990, 600), Told(1010, 980, 500)
    search, compilations = search_of(large, small)
    search.compiled(wanted_bytes=985)
    assert compiled(compilations)[0] is small


def test_quickly_the_smallest_by_prediction_alone_is_compiled():
    smallest = Told(900, 1000)
    search, compilations = search_of(Told(1900, 1800), smallest)
    assert search.quickly().candidate is smallest
    assert [trial.candidate for trial in compilations.trials] == [smallest]


def test_quickly_nothing_is_larger_than_the_program_as_written():
    search, compilations = search_of(Told(1500, 2500))
    assert search.quickly().candidate is PLAIN and len(compilations.trials) == 2
    search, compilations = search_of(Told(1500, 1900))
    compilations.report(PLAIN)
    assert search.quickly().peak_bytes == 1900


def test_nothing_is_larger_than_the_program_as_written():
    search, _ = search_of(Told(1500, 2500))
    assert search.compiled().candidate is PLAIN
