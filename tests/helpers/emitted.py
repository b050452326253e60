"""Small programs, their plans in every form, and ways to count what a gradient runs."""

from __future__ import annotations

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxremat
from jaxremat.trace import jaxpr as jaxprs

FORMS = ("schedule", "names", "segments")
PLAIN_JAX = ("names", "segments")
BUDGETS = {"schedule": 0.6, "names": 0.7, "segments": 0.7}  # of the plain peak: low enough to run products again


def array(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def network(params, x, mask, labels):
    """Five layers with a mask, a head, and the loss of integer labels."""
    weight = jnp.where(mask, 1.0, 0.5)
    for w in params["layers"]:
        x = jnp.tanh(x @ w) * weight
    logits = x @ params["head"] + params["bias"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


ARGS = (
    {
        "layers": [array(8, 8, seed=i, scale=0.4) for i in range(5)],
        "head": array(8, 4, seed=20, scale=0.4),
        "bias": jnp.zeros(4),
    },
    array(256, 8, seed=21),
    array(256, 1, seed=22) > 0,
    jnp.asarray(np.random.default_rng(23).integers(0, 4, 256)),
)


def plan_of(fun, args, emit, **options):
    """A plan that runs something again: for two thirds of the bytes, or as little as there is a plan for."""
    plan = functools.partial(jaxremat.plan, fun, *args, emit=emit, verify="replay", **options)
    try:
        made = plan(budget=BUDGETS[emit])
    except jaxremat.BudgetError as error:
        made = plan(budget=error.min_peak_bytes)
    assert made.overhead > 0 and made.decision.emit == emit
    return made


@functools.cache
def network_plan(emit):
    return plan_of(network, ARGS, emit)


def planned_network(emit):
    return network_plan(emit).apply(network)


def assert_same(ours, theirs, rtol=2e-5):
    """Equal trees of numbers, relative to the largest entry of each array."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.abs(b).max(initial=0)))


def counts(fun, *args) -> collections.Counter:
    """How many equations of each primitive a function runs, bodies of calls included; loops count once."""

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            found[eqn.primitive.name] += 1
            for body in jaxprs.subjaxprs(eqn):
                visit(body)

    found: collections.Counter = collections.Counter()
    visit(jax.make_jaxpr(fun)(*args))
    return found


def products(fun, *args) -> int:
    return counts(fun, *args)["dot_general"]
