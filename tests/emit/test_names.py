"""The author's checkpoints with other names saved: the same function, which runs again what is not saved."""

import functools

import jax
import jax.numpy as jnp
import pytest
from emitted import array, assert_same, counts
from jax.ad_checkpoint import checkpoint_name

import jaxremat
from jaxremat.emit.names import emit_repoliced
from jaxremat.trace.primal import apply_flat, read_primal

WS = [array(8, 8, seed=i, scale=0.4) for i in range(4)]
X = array(256, 8, seed=10)


def block(x, w):
    y = checkpoint_name(x @ w, "product")
    return x + checkpoint_name(jnp.tanh(y) @ w, "second")


def layered(ws, x, policy=None):
    for w in ws:
        x = jax.jit(jax.checkpoint(block, policy=policy))(x, w)
    return jnp.sum(jnp.sin(x))


def saving(*names):
    primal = read_primal(layered, (WS, X), 0, False)
    emitted = emit_repoliced(primal.raw, names)
    return lambda *args: apply_flat(primal, emitted, args)


def by_hand(*names):
    return functools.partial(layered, policy=jax.checkpoint_policies.save_only_these_names(*names))


@functools.cache
def plain():
    return jax.jit(jax.value_and_grad(layered))(WS, X)


@pytest.mark.parametrize("names", [(), ("product",), ("second",), ("product", "second")])
def test_it_is_the_policy_of_these_names(names):
    ours, theirs = (counts(jax.grad(fun), WS, X) for fun in (saving(*names), by_hand(*names)))
    for primitive in ("dot_general", "tanh", "sin"):
        assert ours[primitive] == theirs[primitive]
    kept_all = counts(jax.grad(saving("product", "second")), WS, X)["dot_general"]
    assert ours["dot_general"] == kept_all + ("product" not in names) * len(WS)


def test_values_gradients_and_forward_mode():
    planned = saving("second")
    assert_same(jax.jit(jax.value_and_grad(planned))(WS, X), plain(), rtol=1e-4)
    along = lambda f: jax.jit(lambda: jax.jvp(lambda ws: f(ws, X), (WS,), (WS,)))()
    assert_same(along(planned), along(layered), rtol=1e-4)


def test_a_plan_chooses_among_the_names_by_its_budget():
    plan = functools.partial(jaxremat.plan, layered, WS, X, emit="names", verify="replay")
    with pytest.raises(jaxremat.BudgetError) as refused:
        plan(budget=1)
    small, large = plan(budget=refused.value.min_peak_bytes), plan(budget=1.0)
    assert set(small.decision.form.names) < {"product", "second"}
    assert "product" in large.decision.form.names and large.peak_bytes > small.peak_bytes
    products = [counts(jax.grad(p.apply(layered)), WS, X)["dot_general"] for p in (small, large)]
    assert products[0] == products[1] + len(WS)
    assert_same(jax.jit(jax.value_and_grad(small.apply(layered)))(WS, X), plain(), rtol=1e-4)
    named = jax.checkpoint_policies.save_only_these_names(*large.decision.form.names)
    assert counts(jax.grad(functools.partial(layered, policy=named)), WS, X)["dot_general"] == products[1]
