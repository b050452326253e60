"""Counts that tests of several forms share."""

import jax


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
