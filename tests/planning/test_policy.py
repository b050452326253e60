"""A policy of names that nothing puts saves nothing: that is told."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxremat

W = [jnp.asarray(np.random.default_rng(i).normal(size=(16, 16)) / 4, jnp.float32) for i in range(6)]
X = jnp.asarray(np.random.default_rng(9).normal(size=(256, 16)), jnp.float32)


def layered(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w)
    return jnp.sum(x**2)


@pytest.fixture
def named():
    made = jaxremat.plan(layered, W, X, budget=0.8, emit="names", verify="replay")
    assert made.decision.emit == "names"
    return made


def told(caplog):
    return [r.getMessage() for r in caplog.records if "plan.named" in r.getMessage()]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, lambda f: lambda ws, x: jax.checkpoint(f)(ws, x)])
def test_a_policy_without_its_names_is_told_once(named, wrap, caplog):
    alone = wrap(jax.checkpoint(lambda ws, x: layered(ws, x), policy=named.policy))
    jax.grad(alone)(W, X)
    assert len(told(caplog)) == 1


def test_a_policy_with_its_names_is_not(named, caplog):
    again = pickle.loads(pickle.dumps(named.policy))
    assert again == named.policy and again.put_by_plan
    for policy in (named.policy, again):
        jax.grad(jax.checkpoint(lambda ws, x: named.named(layered)(ws, x), policy=policy))(W, X)
    assert not told(caplog)


def test_both_in_one_program(named, caplog):
    together = jax.checkpoint(named.named(layered), policy=named.policy)
    alone = jax.checkpoint(lambda ws, x: layered(ws, x), policy=named.policy)
    jax.grad(lambda ws, x: together(ws, x) + alone(ws, x))(W, X)
    assert len(told(caplog)) == 1


def test_names_of_the_author_are_there_by_themselves(caplog):
    def own(ws, x):
        step = jax.checkpoint(lambda x, w: x + jax.ad_checkpoint.checkpoint_name(jnp.tanh(x @ w), "hidden"))
        for w in ws:
            x = step(x, w)
        return jnp.sum(x**2)

    plan = jaxremat.plan(own, W, X, budget=0.9, emit="names", verify="replay")
    jax.grad(jax.checkpoint(own, policy=plan.policy))(W, X)
    assert not told(caplog)
