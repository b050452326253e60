"""Decisions of loops as data."""

import json

import pytest
from loop_programs import decisions_of, recurrence

from jaxremat.loops.decision import LoopDecision, Piece, length_of


@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-2])
def test_json_round_trip(price):
    loss, args = recurrence()
    for decision in decisions_of(loss, args, 0, price):
        again = LoopDecision.from_json(json.loads(json.dumps(decision.to_json())))
        assert again == decision and hash(again) == hash(decision)


NESTED = Piece(3, inside=(Piece(2, (0, 1), (2, 0, 3)), Piece(1, (0,), (1, 2))))


def test_a_nested_piece_is_as_long_as_what_it_holds():
    assert NESTED.length == 9 and length_of((NESTED, Piece(4))) == 13
    assert LoopDecision((NESTED, Piece(4))).length == 13


def test_the_leaf_is_the_first_piece_inside():
    assert NESTED.leaf == NESTED.inside[0] and NESTED.leaf.leaf is NESTED.leaf


@pytest.mark.parametrize(("backward", "repeats"), [((), False), ((2, 0, 3), False), ((2, 0, 2), True)])
def test_what_the_backward_runs_twice_repeats(backward, repeats):
    assert Piece(2, (0, 1), backward).repeats == repeats


def test_files_of_before_gradients_were_told_are_read():
    data = LoopDecision((NESTED,), has_barriers=True).to_json()
    del data["gradient"]
    assert LoopDecision.from_json(json.loads(json.dumps(data))) == LoopDecision((NESTED,), has_barriers=True)
