"""Every decision gives the gradients of the plain loop."""

from __future__ import annotations

import pytest
from loop_programs import all_decisions, assert_same_gradients, recurrence


@pytest.mark.parametrize("length", [1, 2, 13, 37])
@pytest.mark.parametrize("reverse", [False, True])
def test_recurrence(length, reverse):
    loss, args = recurrence(length, reverse)
    planned = all_decisions(loss, args, (0, 1))
    assert len(planned) > 1
    for fun in planned.values():
        assert_same_gradients(loss, fun, args, (0, 1))
