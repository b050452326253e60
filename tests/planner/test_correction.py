"""The correction loop: whatever a measurement is to what was expected, what is found fits, in few trials."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxremat.planner.correction import Trial, correct, smallest

MOST_TRIALS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Rung:
    """A candidate on a ladder: smaller ones cost more."""

    expected: int
    cost: float


def ladder(number, low=1_000_000, high=10_000_000):
    return [Rung(int(expected), 1e8 / expected) for expected in np.geomspace(low, high, number)]


def run(rungs, measured_of, budget, most_trials=MOST_TRIALS):
    """(the correction, the rungs that were measured)."""
    seen = []

    def propose(aim):
        within = [rung for rung in rungs if rung.expected <= aim]
        return min(within, key=lambda rung: rung.cost) if within else min(rungs, key=lambda rung: rung.expected)

    def measure(rung):
        seen.append(rung)
        return measured_of(rung), f"measured {rung.expected}"

    options = dict(most_trials=most_trials, first_aim=budget, expected=lambda rung: rung.expected)
    return correct(propose, measure, budget, **options), seen


def affine(a, b):
    return lambda rung: int(a * rung.expected + b)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.floats(0.5, 1.8),
    st.integers(-500_000, 2_000_000),
    st.integers(1_000_000, 12_000_000),
    st.sampled_from([5, 40, 400]),
)
def test_a_candidate_that_fits_is_found_and_no_other(a, b, budget, number):
    rungs, measured_of = ladder(number), affine(a, b)
    found, seen = run(rungs, measured_of, budget)
    assert found.trials == len(seen) <= MOST_TRIALS and len(set(seen)) == len(seen)
    assert found.smallest.peak_bytes == min(map(measured_of, seen))
    fitting = [rung for rung in rungs if measured_of(rung) <= budget]
    if not fitting:
        assert found.best is None
        return
    assert found.best is not None and found.best.peak_bytes == measured_of(found.best.candidate) <= budget
    assert found.best.measurement == f"measured {found.best.candidate.expected}"
    if 0.6 <= a <= 1.4:
        cheapest = min(fitting, key=lambda rung: rung.cost)
        assert measured_of(cheapest) - found.best.peak_bytes <= 0.02 * budget, (
            "more is left unused than is close enough"
        )


def test_a_prediction_that_is_right_takes_one_trial():
    found, seen = run(ladder(400), lambda rung: rung.expected, 5_000_000)
    assert found.trials == len(seen) == 1 and found.best.peak_bytes <= 5_000_000


@pytest.mark.parametrize("offset", [-700_000, 300_000, 2_500_000])
def test_a_constant_error_takes_two_or_three_trials(offset):
    found, _ = run(ladder(400), affine(1, offset), 5_000_000)
    assert found.trials <= 3 and 0.95 * 5_000_000 <= found.best.peak_bytes <= 5_000_000


def test_no_candidate_is_measured_twice_where_there_are_few():
    found, seen = run(ladder(2), affine(1, 100), 5_000_000)
    assert found.best.candidate is seen[-1] or found.best.candidate is seen[0]
    assert len(seen) == len(set(seen)) <= 2


def test_errors_without_any_order_never_break_the_promise():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rungs = ladder(30)
        noise = dict(zip(rungs, rng.uniform(0.6, 1.6, 30)))
        found, seen = run(rungs, lambda rung, noise=noise: int(noise[rung] * rung.expected), 4_000_000)
        within = [rung for rung in seen if int(noise[rung] * rung.expected) <= 4_000_000]
        assert (found.best is None) == (not within), f"seed {seed}"
        if within:
            assert found.best.candidate.cost == min(rung.cost for rung in within), f"seed {seed}"


def test_where_nothing_is_learnt_the_aim_steps_down():
    """Ten rungs in a row measure a hair too much: what is learnt from each would only lead to the next."""
    budget = 5_000_000
    measured_of = lambda rung: int(1.0005 * budget) if rung.expected > 0.9 * budget else rung.expected
    found, _ = run(ladder(400), measured_of, budget)
    assert found.best is not None and found.best.peak_bytes >= 0.85 * budget


def test_one_trial_is_one_trial():
    found, seen = run(ladder(50), affine(1.5, 0), 5_000_000, most_trials=1)
    assert found.trials == len(seen) == 1 and found.best is None
    assert found.smallest.candidate is seen[0]


def test_more_candidates_count_where_they_are_better():
    rungs = ladder(10)
    found, seen = run(rungs, affine(1, 9_500_000), 10_000_000)
    assert found.best is None
    tiny, dear = Rung(10_000, 500.0), Rung(400_000, 900.0)
    measure = lambda rung: (affine(1, 9_500_000)(rung), "again")
    more = found.with_more(iter([dear, tiny]), measure, 10_000_000)
    assert more.trials == len(seen) + 2
    assert more.best.candidate is tiny and more.smallest.candidate is tiny
    assert found.with_more([], measure, 10_000_000).smallest is found.smallest
    kept = more.with_more([dear], measure, 10_000_000)
    assert kept.best.candidate is tiny and kept.trials == more.trials + 1


def test_ties_are_settled_by_the_peak():
    same = [Rung(3_000_000, 1.0), Rung(2_000_000, 1.0)]
    found, _ = run(same, affine(1, 0), 1)
    more = found.with_more(itertools.chain(same), lambda rung: (rung.expected, None), 5_000_000)
    assert more.best.candidate is same[1]


def small(rungs, measured_of, **options):
    """(the smallest, how many rungs were measured)."""
    seen = []

    def measure(rung):
        seen.append(rung)
        return measured_of(rung), None

    found = smallest(
        rungs, measure, most_trials=6, expected=lambda rung: rung.expected, **{"known": [], "sure": 1, **options}
    )
    return found, len(seen)


def test_a_candidate_that_is_not_the_smallest_expected_may_be_the_smallest():
    rungs = ladder(8, low=1_000_000, high=1_070_000)
    found, seen = small(rungs, lambda rung: 900_000 if rung is rungs[3] else rung.expected)
    assert found.candidate is rungs[3] and seen <= 6


def test_what_is_out_of_reach_by_the_first_error_is_not_measured():
    rungs = ladder(8)
    assert small(rungs, affine(2.0, 0))[1] == 1
    assert small(rungs, affine(0.5, 0), wanted_bytes=450_000)[1] == 1
    assert small(rungs, affine(2.0, 0), sure=3)[1] == 3


def test_one_that_is_small_enough_ends_it():
    rungs = ladder(8, high=1_070_000)
    assert small(rungs, affine(1.0, 0), wanted_bytes=1_000_000)[1] == 1
    assert small(rungs, affine(1.0, 0))[1] > 1


def test_what_was_measured_before_counts():
    before = Trial(Rung(5_000_000, 1.0), None, 700_000)
    assert small(ladder(8), affine(1.0, 0), known=[before])[0] is before
    assert small([], affine(1.0, 0), known=[before]) == (before, 0)
