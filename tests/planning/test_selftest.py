"""What the self-test calls a promise that holds."""

import pytest

from jaxremat.planning import selftest


@pytest.mark.parametrize(("share", "holds"), [(0.5, True), (0.7, True), (0.82, True), (0.83, False)])
def test_bytes_may_exceed_what_was_asked_for_by_what_predictions_are_off(share, holds):
    promise = selftest._saving("x", share)
    assert promise.holds == holds and str(promise).startswith("holds" if holds else "FAILS")


@pytest.mark.parametrize(("apart", "holds"), [(0.3, True), (0.0, True), (-0.15, True), (-0.16, False)])
def test_a_prediction_may_be_too_high_but_not_far_too_low(apart, holds):
    promise = selftest._prediction("x", apart)
    assert promise.holds == holds and f"{apart:+.1%}" in promise.told
