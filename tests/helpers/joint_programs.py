"""Running a joint program as it stands, beside what JAX gives for the same function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import Joint, trace_joint


def array(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def run_joint(joint: Joint, args, cotangents) -> tuple[list, list]:
    """(outputs, gradients) of a joint program, every equation run once and in order."""
    out = jaxprs.evaluate(joint.jaxpr, [*joint.primal.captured, *jax.tree.leaves(args), *cotangents])
    number = len(joint.primal.jaxpr.outvars)
    return out[:number], out[number:]


def compiled_joint(joint: Joint, args, cotangents) -> tuple[list, list]:
    """As `run_joint`, compiled."""
    return jax.jit(lambda *given: run_joint(joint, *given))(args, cotangents)


def cotangents_for(joint: Joint) -> list:
    """Cotangents that tell outputs, and entries of outputs, apart."""
    shapes = [joint.primal.jaxpr.outvars[i].aval for i in joint.primal.cotangents_of]
    return [(1 + k + np.arange(s.size).reshape(s.shape) / 8).astype(s.dtype) for k, s in enumerate(shapes)]


def expected(fun, args, argnums, has_aux, cotangents) -> tuple[list, list]:
    """(outputs, gradients) by `jax.vjp`, flat; only floating results receive a cotangent."""
    wanted = sorted({i % len(args) for i in ((argnums,) if isinstance(argnums, int) else argnums)})

    def of_wanted(*free):
        full = list(args)
        for i, value in zip(wanted, free):
            full[i] = value
        out = fun(*full)
        results = out[0] if has_aux else out
        is_free = [jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact) for x in jax.tree.leaves(results)]
        return [x for x, free in zip(jax.tree.leaves(results), is_free) if free], jax.tree.leaves(out)

    def run(free, cotangents):
        _, pull_back, outputs = jax.vjp(of_wanted, *free, has_aux=True)
        return outputs, jax.tree.leaves(pull_back(cotangents))

    return jax.jit(run)([args[i] for i in wanted], list(cotangents))


def assert_joint_equals_jax(fun, *args, argnums=0, has_aux=False, rtol=1e-5) -> Joint:
    """The joint program gives what `jax.vjp` gives; returns it."""
    joint = trace_joint(fun, *args, argnums=argnums, has_aux=has_aux)
    cotangents = cotangents_for(joint)
    ours = compiled_joint(joint, args, cotangents)
    theirs = expected(fun, args, argnums, has_aux, cotangents)
    for a, b in zip(ours, theirs, strict=True):
        assert_all_close(a, b, rtol)
    return joint


def assert_all_close(ours, theirs, rtol=1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if jax.dtypes.issubdtype(jax.typeof(b).dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        wide = np.complex128 if jnp.issubdtype(b.dtype, jnp.complexfloating) else np.float64
        a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1e-3, float(np.abs(b).max(initial=0))))


def primitives(jaxpr) -> list[str]:
    return [eqn.primitive.name for eqn in jaxpr.eqns]
