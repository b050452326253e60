"""Which of the outcomes of a planner that predicts time are compiled, and which one is the plan."""

import dataclasses
from typing import ClassVar

import pytest

from jaxremat.base.stopwatch import Stopwatch
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.contract import Traits
from jaxremat.planning.compilations import Compilations
from jaxremat.planning.fastest_search import FastestSearch


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """An outcome, with what its compilation will say."""

    peak_bytes: int
    cost: float
    compiled_bytes: int
    seconds: float


@dataclasses.dataclass
class TellingPlanner:
    """Gives the fastest of some outcomes that is predicted to fit, or the smallest."""

    outcomes: list[Told]
    by_hand: list[Told]
    traits: ClassVar[Traits] = Traits(predicts_time=True, peak_doubt=0.05)
    plain: ClassVar[Told] = Told(2000, 1.0, 2000, 1.0)

    def fit(self, replayed_bytes: int) -> Told:
        within = [outcome for outcome in self.outcomes if outcome.peak_bytes <= replayed_bytes]
        return min(within or self.outcomes, key=lambda outcome: outcome.cost if within else outcome.peak_bytes)

    def least(self) -> list[Told]:
        return sorted(self.outcomes, key=lambda outcome: outcome.peak_bytes)

    def near_misses(self, best: Told, cost: float, peak_bytes: int) -> list[Told]:
        may_fit = [each for each in self.by_hand if each.peak_bytes <= (1 + self.traits.peak_doubt) * peak_bytes]
        return [outcome for outcome in may_fit if outcome.cost < 1.05 * cost]


def search_of(outcomes, by_hand=()):
    """A search among outcomes, and what it compiles as it goes."""

    def compile(outcome):
        report = MemoryReport("h200", 0, 0, outcome.compiled_bytes, 0, outcome.compiled_bytes, 0.0)
        return dataclasses.replace(report, seconds=outcome.seconds)

    compilations = Compilations(compile, Stopwatch(), lambda outcome: False)
    return FastestSearch(TellingPlanner(outcomes, list(by_hand)), compilations), compilations


def fastest(outcomes, by_hand=()):
    """(the answer within 1000 bytes, how many were compiled)."""
    search, compilations = search_of(outcomes, by_hand)
    return search.within(1000), len(compilations.trials)


def test_what_just_fits_is_the_only_one_that_is_compiled():
    fits, much = Told(990, 1.2, 985, 1.2), Told(1040, 1.1, 1030, 1.1)
    assert fastest([fits, much]) == (fits, 1)


def test_what_is_predicted_a_little_too_large_is_compiled_where_what_fits_leaves_bytes_unused():
    """Predictions of single programs are off by more than the next faster outcome is too large."""
    slow, tight, fast = Told(970, 1.5, 940, 1.4), Told(995, 1.07, 1002, 1.06), Told(1010, 1.02, 950, 1.02)
    assert fastest([slow, tight, fast]) == (fast, 3)


def test_the_first_says_how_far_off_predictions_are():
    fits, little, much = Told(970, 1.5, 940, 1.4), Told(1012, 1.2, 990, 1.2), Told(1045, 1.1, 1010, 1.1)
    assert fastest([fits, little, much]) == (little, 2)


def test_where_the_next_one_is_too_large_it_says_where_to_look_between():
    fits, little, much = Told(990, 1.5, 850, 1.4), Told(1110, 1.2, 960, 1.2), Told(1150, 1.1, 1010, 1.1)
    assert fastest([fits, little, much]) == (little, 3)


def test_where_nothing_fits_a_little_less_than_what_was_learnt_is_tried():
    """What should just fit, by a prediction of another program, often takes a hair too much."""
    large, exact, less = Told(1000, 1.1, 1100, 1.1), Told(905, 1.2, 1001, 1.2), Told(885, 1.21, 985, 1.21)
    assert fastest([large, exact, less]) == (less, 2)


def test_what_is_far_too_large_says_where_to_look():
    small, large, larger = Told(600, 1.3, 900, 1.3), Told(990, 1.1, 1500, 1.1), Told(1040, 1.0, 1600, 1.0)
    assert fastest([small, large, larger]) == (small, 2)


def test_checkpoints_by_hand_are_compiled_where_they_may_be_faster():
    small, large, by_hand = Told(600, 1.3, 900, 1.6), Told(990, 1.1, 1500, 1.1), Told(1040, 1.31, 990, 1.2)
    assert fastest([small, large], [by_hand]) == (by_hand, 3)


def test_checkpoints_by_hand_are_compiled_where_they_may_be_faster_than_what_the_fastest_is_as_compiled():
    as_told, slow = Told(990, 1.0, 985, 1.02), Told(990, 1.0, 985, 1.2)
    by_hand = Told(980, 1.1, 980, 1.05)
    assert fastest([as_told], [by_hand]) == (as_told, 1)
    assert fastest([slow], [by_hand]) == (by_hand, 2)
    slower, faster = Told(980, 1.0, 980, 1.3), Told(980, 1.15, 980, 1.1)
    assert fastest([slow], [slower, faster]) == (faster, 3), "what fits is slower than it was predicted to be"
    assert fastest([slow], [slower, dataclasses.replace(faster, cost=1.21)]) == (slow, 2)


def test_a_smaller_near_miss_is_compiled_where_the_one_before_did_not_fit_by_little():
    small, faster, smaller = Told(600, 1.3, 1001, 1.6), Told(1040, 1.1, 1001, 1.1), Told(1039, 1.2, 1000, 1.2)
    assert fastest([small], [faster, smaller])[0] == smaller
    much_too_large = dataclasses.replace(faster, compiled_bytes=1100)
    search, compilations = search_of([Told(600, 1.3, 900, 1.6)], [much_too_large, smaller])
    assert search.within(1000).compiled_bytes == 900
    assert smaller not in [trial.candidate for trial in compilations.trials]
    fits = dataclasses.replace(faster, compiled_bytes=990)
    search, compilations = search_of([Told(600, 1.3, 900, 1.6)], [fits, smaller])
    assert search.within(1000) == fits
    assert smaller not in [trial.candidate for trial in compilations.trials]


def test_few_are_compiled_whatever_they_say():
    """Two where one fits and uses the budget, three at most, and what the planner thinks may be near."""
    outcomes = [
        Told(500 + 20 * k, 2 - k / 100, int((500 + 20 * k) * (0.9 + k % 7 / 30)), 2 - k / 100) for k in range(40)
    ]
    answer, compiled = fastest(outcomes)
    assert compiled <= 3
    assert answer.compiled_bytes <= 1000


@pytest.mark.parametrize("compiled_bytes", [1000, 1001])
def test_nothing_above_the_limit_is_an_answer(compiled_bytes):
    only = Told(900, 1.0, compiled_bytes, 1.0)
    assert fastest([only])[0] is (only if compiled_bytes <= 1000 else None)


def test_what_is_small_for_waiting_on_a_host_is_no_answer_where_something_faster_fits():
    waits, fits, large = Told(700, 30, 800, 30), Told(850, 1.5, 980, 1.5), Told(1000, 1.2, 1150, 1.2)
    search, compilations = search_of([waits, fits, large])
    assert search.without_waiting(waits, 1000) is fits
    assert {trial.candidate for trial in compilations.trials} == {waits, fits}
    search, compilations = search_of([fits, large])
    assert search.without_waiting(fits, 1000) is fits and not compilations.trials


def test_what_waits_stays_where_nothing_else_fits_or_is_faster_once_compiled():
    waits, too_large, slow = Told(700, 30, 800, 3.0), Told(850, 1.5, 1001, 1.5), Told(860, 1.9, 950, 4.0)
    for other in (too_large, slow):
        search, compilations = search_of([waits, other])
        assert search.without_waiting(waits, 1000) is waits and len(compilations.trials) == 2
