"""Rarer garbage collection while planning."""

import gc
import threading

import pytest

from jaxremat.base.collecting import collected_seldom


def test_collections_are_rarer_inside_and_as_before_afterwards():
    usual = gc.get_threshold()
    with collected_seldom():
        rarer = gc.get_threshold()
        with collected_seldom():
            assert gc.get_threshold() == rarer
    assert rarer[0] > usual[0] and rarer[1:] == usual[1:] and gc.get_threshold() == usual


def test_whoever_leaves_last_restores_what_the_first_one_found():
    usual, begun, may_end = gc.get_threshold(), threading.Event(), threading.Event()

    def plan():
        with collected_seldom():
            begun.set()
            may_end.wait()

    other = threading.Thread(target=plan)
    other.start()
    begun.wait()
    with pytest.raises(KeyError), collected_seldom():
        raise KeyError
    assert gc.get_threshold() != usual
    may_end.set()
    other.join()
    assert gc.get_threshold() == usual
