"""Errors by name: they travel between processes with all their numbers, and are what Python calls them."""

import copy
import pickle

import pytest

from jaxremat.base import errors
from jaxremat.base.errors import BudgetError, JaxrematError, Occupant, PlanningInterrupted

RAISED = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, JaxrematError)]


@pytest.mark.parametrize("travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_a_refusal_keeps_its_numbers_and_occupants(travel):
    occupants = (Occupant("gelu", "GPT/block_0", "model.py:3", 70), Occupant("the rest", "", "", 30))
    error = travel(BudgetError("too small", min_peak_bytes=100, budget_bytes=60, occupants=occupants))
    assert str(error) == "too small" and error.occupants == occupants
    assert (error.min_peak_bytes, error.budget_bytes) == (100, 60)
    assert sum(occupant.bytes for occupant in error.occupants) == error.min_peak_bytes


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_error_says_what_it_is_for(kind):
    assert kind.__doc__ and kind.__doc__.endswith((".", "\n    "))


def test_arguments_and_graphs_are_values_to_python():
    assert issubclass(errors.ArgumentError, ValueError) and issubclass(errors.GraphError, ValueError)


def test_an_interruption_ends_what_a_keyboard_ends_and_holds_a_plan():
    assert issubclass(PlanningInterrupted, KeyboardInterrupt) and not issubclass(PlanningInterrupted, Exception)
    assert "best plan so far" in str(PlanningInterrupted("a plan")) and "no plan" in str(PlanningInterrupted(None))
