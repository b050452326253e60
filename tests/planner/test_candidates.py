"""Which cheaper candidates of checkpoints are compiled after one that fits."""

import dataclasses

import pytest

from jaxremat.planner.candidates import cheaper_that_may_fit


@dataclasses.dataclass
class Told:
    """A candidate of which everything is known."""

    cost: float
    replayed_bytes: int
    peak_bytes: int


BEST = Told(2.0, 900, 950)


@pytest.mark.parametrize(
    "candidates, order",
    [
        pytest.param([Told(1.8, 1000, 980), Told(1.5, 1040, 990)], [1, 0], id="the cheapest of those predicted to fit"),
        pytest.param([Told(1.5, 950, 1090), Told(1.6, 950, 1010)], [1, 0], id="the smallest of the too large"),
        pytest.param([Told(1.5, 950, 1050), Told(1.9, 950, 990)], [1, 0], id="what is predicted to fit comes first"),
        pytest.param([Told(2.0, 900, 900), Told(2.5, 800, 800)], [], id="nothing that is not cheaper"),
        pytest.param([Told(1.0, 950, 1101), Told(1.0, 1051, 900)], [], id="nothing far too large by either measure"),
    ],
)
def test_order(candidates, order):
    found = list(cheaper_that_may_fit([BEST, *candidates], BEST, BEST.cost, peak_bytes=1000))
    assert found == [candidates[i] for i in order]


def test_no_more_is_predicted_than_is_asked_for():
    class Unpredicted(Told):
        @property
        def peak_bytes(self):
            raise AssertionError("predicted, though a cheaper one is predicted to fit")

        @peak_bytes.setter
        def peak_bytes(self, value):
            pass

    candidates = cheaper_that_may_fit([BEST, Unpredicted(1.9, 950, 0), Told(1.5, 1000, 980)], BEST, BEST.cost, 1000)
    assert next(candidates).cost == 1.5
