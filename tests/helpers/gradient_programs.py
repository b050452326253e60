"""Counts in gradient programs, and comparisons of results, that tests of several forms share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.planning.planning import Planning
from jaxremat.planning.request import checked_request


def layers_with_options(w, x, depth=3, final="tanh", scale=1.0, act=None):
    """Layers, of which a number, functions and names say more."""
    for _ in range(depth):
        x = (act or jnp.sin)(x @ w)
    return scale * jnp.sum(getattr(jnp, final)(x))


def count(fun, *args, primitive="dot_general"):
    """How many equations of a kind the gradient of a function has, bodies of calls included at every call."""
    return _count(jax.make_jaxpr(jax.grad(fun))(*args).jaxpr, primitive)


def _count(jaxpr, primitive):
    total = 0
    for eqn in jaxpr.eqns:
        total += eqn.primitive.name == primitive
        bodies = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"))
        total += sum(
            _count(getattr(b, "jaxpr", b), primitive) for b in bodies if hasattr(b, "eqns") or hasattr(b, "jaxpr")
        )
    return total


def planning_of(fun, args):
    """The planning of a function for the CPU, by prediction."""
    asked = {"argnums": 0, "has_aux": False, "solver": "auto", "target": "cpu", "emit": "schedule", "seed": 0}
    return Planning(checked_request(fun, args, verify="replay", **asked))


def value_and_gradient(fun, *args, has_aux=False):
    """(what `jax.value_and_grad` gives, compiled; whether the program recomputes behind a barrier)."""
    traced = jax.jit(jax.value_and_grad(fun, has_aux=has_aux)).trace(*args)
    run = traced.lower().compile()
    return run(*args), _count(traced.jaxpr, "optimization_barrier") > 0


def is_planned(fun, *args):
    """Whether the gradient of a function recomputes behind a barrier."""
    return count(fun, *args, primitive="optimization_barrier") > 0


def numbers_like(shapes, seed=0):
    """Random numbers in place of the floating leaves of a tree of shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 3, s.dtype), shapes)


def assert_same(ours, theirs, rtol=1e-4):
    """Two trees are alike: the same structure, and leaves that differ by rounding alone, to the scale of the tree."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = list(zip(map(_numbers, jax.tree.leaves(ours)), map(_numbers, jax.tree.leaves(theirs)), strict=True))
    largest = max((np.abs(b).max(initial=0) for _, b in pairs), default=0)
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a - b).max(initial=0) <= rtol * (np.abs(b).max(initial=0) + 0.01 * largest)


def assert_identical(ours, theirs):
    """Two trees hold the same bits."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(map(_numbers, jax.tree.leaves(ours)), map(_numbers, jax.tree.leaves(theirs)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def _numbers(leaf):
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    numbers = np.asarray(leaf)
    return numbers if numbers.dtype.kind in "fc" else numbers.astype(np.int64)
