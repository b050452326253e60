"""Programs in which each result is finished as soon as it can be."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.step.order import SHARED, groups_of_results, result_by_result
from jaxremat.trace import jaxpr as jaxprs

SIZES = (3, 5, 7)


def leaves(seed):
    return [jnp.cos(jnp.arange(size, dtype=jnp.float32) + seed) for size in SIZES]


def clipped_momentum(params, moments, grads):
    """As optimizers are written: over whole trees, one thing after another."""
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in grads))
    grads = [g / norm for g in grads]
    moments = [0.9 * m + g for m, g in zip(moments, grads)]
    return [p - 0.1 * m for p, m in zip(params, moments)], moments


def ordered(fun, *args):
    jaxpr = jax.make_jaxpr(fun)(*args)
    after = result_by_result(jaxpr)
    flat = jax.tree.leaves(args)
    for expected, found in zip(jaxprs.evaluate(jaxpr, flat), jaxprs.evaluate(after, flat), strict=True):
        np.testing.assert_array_equal(found, expected)
    return after


def sizes_in_order(jaxpr):
    """The element counts of what is made, repeats left out, scalars too."""
    sizes = [eqn.outvars[0].aval.size for eqn in jaxpr.eqns if eqn.outvars[0].aval.size > 1]
    return [size for k, size in enumerate(sizes) if k == 0 or sizes[k - 1] != size]


def test_one_leaf_is_finished_before_the_next_begins():
    after = ordered(clipped_momentum, leaves(0), leaves(1), leaves(2))
    assert sizes_in_order(after) == [*SIZES, *SIZES]  # squares for the norm, then updates


def test_moments_belong_to_their_leaf_and_the_norm_to_none():
    jaxpr = jax.make_jaxpr(clipped_momentum)(leaves(0), leaves(1), leaves(2))
    group = groups_of_results(jaxpr)
    own = [(eqn.outvars[0].aval.size, int(g)) for eqn, g in zip(jaxpr.eqns, group) if g != SHARED]
    assert {size for size, _ in own} == set(SIZES)
    assert len(set(own)) == len(SIZES)
    assert all(g == SHARED for eqn, g in zip(jaxpr.eqns, group) if eqn.outvars[0].aval.size == 1)


def test_without_a_norm_a_leaf_is_updated_as_soon_as_its_gradient_is_there():
    def step(params, x):
        loss = lambda params: jnp.sum(jnp.tanh(jnp.tanh(x * params[0][:, None]) * params[1][:, None]))
        grads = jax.grad(loss)(params)
        return [p - 0.1 * g for p, g in zip(params, grads)]

    after = ordered(step, [jnp.ones(4), 2 * jnp.ones(4)], jnp.linspace(0, 1, 12).reshape(4, 3))
    names = [eqn.primitive.name for eqn in after.eqns]
    made = {v: position for position, eqn in enumerate(after.eqns) for v in eqn.outvars}
    assert [names[made[v] - 2] for v in after.outvars] == ["reduce_sum"] * 2  # then a product, then the difference


def test_parameters_are_updated_after_the_last_that_reads_them():
    def step(params):
        new = params - 0.1 * jnp.cos(params)
        total = jnp.sum(jnp.sin(params))
        return new, total, jnp.stack([total, total])

    after = ordered(step, jnp.arange(4.0))
    names = [eqn.primitive.name for eqn in after.eqns]
    assert names.index("sin") < names.index("sub")


def test_effects_stay_in_order():
    def step(x):
        jax.debug.print("{}", x[0], ordered=True)
        y = x + 1.0
        jax.debug.print("{}", y[0], ordered=True)
        return y * 2.0

    jaxpr = jax.make_jaxpr(step)(jnp.arange(3.0))
    assert [eqn.primitive.name for eqn in result_by_result(jaxpr).eqns if eqn.effects] == [
        eqn.primitive.name for eqn in jaxpr.eqns if eqn.effects
    ]
    group = groups_of_results(jaxpr)
    assert all(g == SHARED for eqn, g in zip(jaxpr.eqns, group) if eqn.effects)


def test_products_that_a_gradient_is_a_sum_of_do_not_wait_for_each_other():
    def step(w, x, y):
        first = x.T @ jnp.tanh(x @ w)
        second = y.T @ jnp.tanh(y @ w)
        return w - 0.1 * (first + second)

    x = jnp.linspace(0, 1, 12).reshape(4, 3)
    names = [eqn.primitive.name for eqn in ordered(step, jnp.ones((3, 3)), x, x + 1.0).eqns]
    assert [name for name in names if name in ("tanh", "dot_general")] == ["dot_general", "tanh", "dot_general"] * 2
