"""What waits the longest at the peak is moved first, until what is predicted fits."""

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.moving import MovesValues
from jaxremat.trace.primal import read_primal

H200, ROWS, LAYERS = resolve_target("h200"), 16384, 4
VALUE_BYTES = ROWS * 1024 * 4


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


SHAPES = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)] * LAYERS, jax.ShapeDtypeStruct((ROWS, 1024), jnp.float32)
PRIMAL = read_primal(layered, SHAPES, 0, False)


@pytest.fixture(scope="module")
def moves():
    return MovesValues(PRIMAL, H200, ("host",))


def waiting_at_peak(moves):
    plain = moves.plain
    return [v for v in moves._waiting(plain, moves._peak_step(plain, plain)) if v in moves._hosting.bytes_of]


def test_what_was_made_first_waits_the_longest(moves):
    waiting = waiting_at_peak(moves)
    producer = moves.plain.problem.graph.producer
    assert len(waiting) >= LAYERS - 1
    assert [producer[v] for v in waiting] == sorted(producer[v] for v in waiting)


@pytest.mark.parametrize("excess", [1, VALUE_BYTES, VALUE_BYTES + 1])
def test_no_more_is_moved_than_makes_up_for_an_excess(moves, excess):
    plain = moves.plain
    chosen = moves._waiting_at_peak(plain, plain, set(), excess)
    assert len(chosen) == -(-excess // VALUE_BYTES)
    assert chosen == set(waiting_at_peak(moves)[: len(chosen)])


def test_what_is_moved_already_is_not_moved_again(moves):
    first, second, *_ = waiting_at_peak(moves)
    assert moves._waiting_at_peak(moves.plain, moves.plain, {first}, 1) == {second}


def test_a_host_s_budget_bounds_what_is_moved():
    bounded = MovesValues(PRIMAL, H200, ("host",), most_bytes=1.5 * VALUE_BYTES)
    assert len(bounded._waiting_at_peak(bounded.plain, bounded.plain, set(), 10 * VALUE_BYTES)) == 1


def test_an_outcome_is_moved_until_it_fits(moves):
    limit = moves.plain.peak_bytes - VALUE_BYTES
    moved = moves._moved_at(moves.plain, limit, None)
    assert moved.peak_bytes <= limit
    assert moves._moved_at(moves.plain, moves.plain.peak_bytes, None) is moves.plain
    assert moves._moved_at(moves.plain, limit, None) is moved, "one outcome per choice"
