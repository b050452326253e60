"""One iteration as a program: which inputs and outputs are differentiated, and its two halves against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_programs import array, decisions_of, only_loop, recurrence

from jaxremat.backends.devices import resolve_target
from jaxremat.loops.emit import Emitter

BACKEND = resolve_target("cpu").backend


def test_active_parts_are_counted_from_their_own_first():
    loss, args = recurrence()
    body = only_loop(loss, args, (0, 1))[1].body
    assert body.num_consts == body.num_carry == 2 and body.split([*"abcde"]) == (["a", "b"], ["c", "d"], ["e"])
    assert body.active_consts == (0, 1) and body.active_carry == (0, 1) and body.active_slices == (0,)
    assert body.active_results == (0,), "the second result is not read"
    assert not body.is_single
    assert only_loop(loss, args, 1)[1].body.active_consts == ()


def halves(price):
    """(body, iteration, its inputs) of a recurrence at a price of a byte."""
    loss, args = recurrence()
    loop = only_loop(loss, args, (0, 1))[1]
    (decision,) = decisions_of(loss, args, (0, 1), price)
    iteration = Emitter(BACKEND).iteration(loop.body, decision, decision.pieces[0].leaf)
    consts = [array(4, 4), array(4, 4, seed=1)]
    return loop.body, iteration, consts, [array(3, 4, seed=2), array(3, 4, seed=3)], [array(3, 4, seed=4)]


@pytest.mark.parametrize("price", [0.0, 1e-9, 1e-2])
def test_forward_and_backward_are_those_of_the_body(price):
    body, iteration, consts, carry, slices = halves(price)
    after, results, stacked = iteration.forward(consts, carry, slices)
    plain = lambda *inputs: jax.core.eval_jaxpr(body.primal.jaxpr.jaxpr, body.primal.jaxpr.consts, *inputs)
    wanted, pull_back = jax.vjp(lambda *inputs: plain(*inputs), *consts, *carry, *slices)
    for ours, theirs in zip([*after, *results], wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    cotangents = [jnp.full_like(x, 0.5 + k) for k, x in enumerate(wanted)]
    received = [cotangents[i] for i in body.primal.cotangents_of]
    zeroed = [c if i in body.primal.cotangents_of else jnp.zeros_like(c) for i, c in enumerate(cotangents)]
    found = [x for part in iteration.backward(consts, slices, stacked, received) for x in part]
    for ours, theirs in zip(found, [pull_back(zeroed)[i] for i in body.primal.wrt], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_dear_bytes_stack_carries_alone():
    most, least = (sum(v.aval.size for v in halves(price)[1].stacked) for price in (0.0, 1e-2))
    assert least == 2 * 3 * 4 < most, "two carries"


def test_the_traced_backward_takes_what_the_forward_leaves():
    _, iteration, consts, carry, slices = halves(1e-9)
    stacked = iteration.forward(consts, carry, slices)[2]
    inputs = [v.aval.shape for v in iteration.traced_backward().jaxpr.invars]
    assert inputs[: len(consts) + len(slices) + len(stacked)] == [x.shape for x in (*consts, *slices, *stacked)]
