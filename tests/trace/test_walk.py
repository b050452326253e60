"""Bodies of loops, branches and checkpoints: found, and run again in another way, whatever JAX_REMAT3 says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxremat.base import compat
from jaxremat.trace import walk
from jaxremat.trace.jaxpr import computed_body, evaluate, inlined_body, is_checkpoint, traced_with

saving = jax.checkpoint_policies.save_only_these_names("kept")


pytestmark = pytest.mark.usefixtures("remat3")


def scanned(x):
    return lax.scan(lambda c, y: (jnp.sin(c) * y, c), x, jnp.arange(3.0), reverse=True)


def while_loop(x):
    return lax.while_loop(lambda s: s[1] < 3, lambda s: (jnp.sin(s[0]), s[1] + 1), (x, 0))[0]


def branches(x):
    return lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)


def checkpointed(x):
    return jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)), policy=saving)(x)


def pinned_in_part(x):
    return jax.checkpoint(lambda x, y: jnp.sin(x) * y, prevent_cse=(True, False))(x, 2 * x)


PROGRAMS = {scanned: 1, while_loop: 2, branches: 2, checkpointed: 1, pinned_in_part: 1}
x = jnp.linspace(0.1, 1.0, 5)


def with_sines_doubled(jaxpr):
    """The program whose sines are doubled, in bodies too."""

    def rule(eqn, inputs):
        if walk.bodies(eqn):
            return walk.rerun(eqn, inputs, lambda body, xs: evaluate(body, xs, rule))
        return [2 * jnp.sin(inputs[0])] if eqn.primitive.name == "sin" else None

    return traced_with(jaxpr, rule)


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda f: f.__name__)
def test_bodies_run_as_the_pass_wants(fun):
    jaxpr = jax.make_jaxpr(fun)(x)
    assert sum(len(walk.bodies(eqn)) for eqn in jaxpr.eqns) == PROGRAMS[fun]
    changed = with_sines_doubled(jaxpr)
    assert [eqn.primitive for eqn in changed.eqns] == [eqn.primitive for eqn in jaxpr.eqns]
    original, jnp_sin = fun(x), jnp.sin
    doubled = evaluate(changed, [x])
    assert any(not np.allclose(a, b) for a, b in zip(doubled, jax.tree.leaves(original)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jnp, "sin", lambda x: 2 * jnp_sin(x))
        for got, wanted in zip(doubled, jax.tree.leaves(fun(x)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("fun", [checkpointed, pinned_in_part], ids=lambda f: f.__name__)
def test_a_checkpoint_stays_one_with_its_options(fun):
    (before,) = filter(is_checkpoint, jax.make_jaxpr(fun)(x).eqns)
    (after,) = filter(is_checkpoint, with_sines_doubled(jax.make_jaxpr(fun)(x)).eqns)
    assert compat.checkpoint_options(after) == compat.checkpoint_options(before)


def test_calls_checkpoints_and_own_rules_are_told_apart():
    kept = jax.custom_jvp(jnp.sin)
    kept.defjvp(lambda p, t: (kept(*p), t[0]))
    eqns = jax.make_jaxpr(lambda x: (jax.jit(jnp.cos)(x), jax.checkpoint(jnp.cos)(x), kept(x)))(x).eqns
    assert [inlined_body(eqn) is not None for eqn in eqns] == [True, True, False]
    assert [computed_body(eqn) is not None for eqn in eqns] == [True, True, True]
    assert [is_checkpoint(eqn) for eqn in eqns] == [False, True, False]


def test_a_transposed_checkpoint_computes_again_instead_of_keeping():
    linear = lambda x, t: compat.linear_checkpoint(lambda x, t: jnp.sin(jnp.sin(x)) * t)(x, t)
    step = lambda x: jax.linear_transpose(lambda t: linear(x, t), x)(x)[0]
    np.testing.assert_allclose(jax.jit(step)(x), jnp.sin(jnp.sin(x)) * x, rtol=1e-6)
