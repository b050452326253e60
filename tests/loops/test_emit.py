"""Loops emitted as decided: how much they run, and what they refuse."""

from __future__ import annotations

import jax
import pytest
from loop_programs import applied, decided, decisions_of, products, recurrence

from jaxremat.backends.devices import resolve_target
from jaxremat.base.errors import EmissionError, PlanMismatchError
from jaxremat.loops.emit import Emitter, rewritten
from jaxremat.loops.find import find
from jaxremat.trace.primal import read_primal


def test_a_decision_for_another_length_is_refused():
    loss, args = recurrence(8)
    decisions = decisions_of(loss, args, 0, 1e-2)
    longer, other = recurrence(9)
    with pytest.raises(PlanMismatchError, match="8 iterations meets a loop of 9"):
        applied(longer, other, 0, decisions)


def test_keeping_everything_recomputes_no_product():
    loss, args = recurrence()
    assert products(decided(loss, args, 0, 0.0), *args) == products(loss, *args)


def test_what_is_not_differentiated_costs_nothing():
    """The gradient for xs alone: no product for the gradient of either weight."""
    loss, args = recurrence()
    plain = products(loss, *args, argnums=1)
    assert products(decided(loss, args, 1, 0.0), *args, argnums=1) == plain
    assert plain < products(loss, *args)


def test_differentiating_what_was_not_planned_is_refused():
    loss, (w, xs) = recurrence()
    planned = decided(loss, (w, xs), 1, 1e-2)
    with pytest.raises(EmissionError, match="argnums"):
        jax.grad(planned)(w, xs)


def test_the_program_does_not_grow_with_the_length():
    def size(length):
        loss, args = recurrence(length)
        planned = decided(loss, args, 0, 1e-2)
        return len(str(jax.make_jaxpr(jax.grad(planned))(*args)).splitlines())

    assert size(4096) <= 1.5 * size(64)


def test_a_decision_for_each_loop_or_none_is_emitted():
    loss, args = recurrence()
    primal = read_primal(loss, args, 0, False)
    with pytest.raises(PlanMismatchError, match="0 loop decisions meet a program with 1 loops"):
        rewritten(primal, (), resolve_target("cpu").backend)


def test_one_schedule_of_a_body_is_one_iteration():
    loss, args = recurrence()
    (loop,) = find(read_primal(loss, args, 0, False))
    (decision,) = decisions_of(loss, args, 0, 1e-9)
    emitter = Emitter(resolve_target("cpu").backend)
    leaf = decision.pieces[0].leaf
    one, again = (emitter.iteration(loop.body, decision, leaf) for _ in range(2))
    assert one is again and one.joint is emitter.joint(loop.body, decision.inner)
