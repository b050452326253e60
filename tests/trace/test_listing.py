"""Programs in numbers: the same lines as the program that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.base.compat import Literal
from jaxremat.trace.listing import Listing, listing_of


def program(x, w):
    y = jnp.sin(x) * 2.0
    a, b = jnp.split(y @ w, 2)
    return a + b, y, 1.0


JAXPR = jax.make_jaxpr(program)(jnp.ones((4, 3)), jnp.ones((3, 3))).jaxpr


def run(listing, inputs):
    """A listing, line by line: every variable has the next number."""
    values = list(inputs)
    of = lambda slot: slot.val if isinstance(slot, Literal) else values[slot]
    for line in listing.lines:
        if line.eqn is None:
            values += [of(slot) for slot in line.reads]
        else:
            made = line.eqn.primitive.bind(*map(of, line.reads), **line.eqn.params)
            values += made if line.eqn.primitive.multiple_results else [made]
    assert len(values) == listing.number_of_variables
    return [of(slot) for slot in listing.outputs]


def test_a_listing_computes_what_its_program_does():
    x, w = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    listing, env = listing_of(JAXPR)
    for ours, theirs in zip(run(listing, [x, w[:3]]), program(x, w[:3]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert listing.sources == list(JAXPR.eqns) and [env[v] for v in JAXPR.invars] == [0, 1]


def test_readers_count_results_and_every_operand():
    x = JAXPR.invars[0]
    listing = Listing(JAXPR)
    env = listing.inputs
    listing.put(JAXPR.eqns[0], env)
    listing.outputs = [env[JAXPR.eqns[0].outvars[0]], env[x], env[x]]
    assert listing.readers() == [3, 0, 1]


def test_what_passes_a_barrier_has_other_numbers_behind_it():
    listing = Listing(JAXPR)
    env = listing.inputs
    behind = listing.put_barrier(JAXPR.invars, env)
    assert list(behind.values()) == [2, 3] and env[JAXPR.invars[0]] == 0
    env.update(behind)
    listing.put(JAXPR.eqns[0], env)
    assert listing.lines[-1].reads == [2]
    assert listing.sources == [JAXPR.eqns[0], JAXPR.eqns[0]], "a barrier counts as what follows it"
