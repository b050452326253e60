"""Equinox, Haiku and plain functions need no adapter: a model is a tree, and a loss is a function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, count, is_planned, value_and_gradient

import jaxremat

X = jnp.asarray(np.random.default_rng(0).normal(size=(256, 8)), jnp.float32)
planned = functools.partial(jaxremat.remat, budget=0.75)


def plan_names(fun, *args, **options):
    return jaxremat.plan(fun, *args, budget=0.8, emit="names", verify="replay", **options)


@pytest.fixture
def eqx():
    return pytest.importorskip("equinox")


@pytest.fixture
def tower(eqx):
    class Tower(eqx.Module):
        layers: list

        def __init__(self, key):
            self.layers = [eqx.nn.Linear(8, 8, key=key) for key in jax.random.split(key, 6)]

        def __call__(self, x):
            for layer in self.layers:
                x = jnp.sin(jax.vmap(layer)(x))
            return x

    return Tower


def squares(model, x):
    return jnp.sum(model(x) ** 2)


def test_an_equinox_module_as_an_argument(eqx, tower):
    model = tower(jax.random.key(0))
    expected = eqx.filter_value_and_grad(squares)(model, X)
    assert_same(eqx.filter_jit(eqx.filter_value_and_grad(planned(squares)))(model, X), expected)
    plan = jaxremat.plan(squares, model, X, budget=0.75, verify="replay")
    assert_same(eqx.filter_value_and_grad(plan.apply(squares))(model, X), expected)
    assert is_planned(planned(squares), model, X)


def test_a_policy_in_equinox(eqx, tower):
    model = tower(jax.random.key(0))
    plan = plan_names(squares, model, X)
    wrapped = eqx.filter_checkpoint(plan.named(squares), policy=plan.policy)
    assert_same(eqx.filter_value_and_grad(wrapped)(model, X), eqx.filter_value_and_grad(squares)(model, X))
    assert count(wrapped, model, X, primitive="sin") > len(model.layers)


def test_an_equinox_method_in_a_scan_over_layers(eqx, tower):
    class Planned(tower):
        __call__ = planned(tower.__call__)

    def loss_of(cls):
        arrays, static = eqx.partition(eqx.filter_vmap(cls)(jax.random.split(jax.random.key(0), 3)), eqx.is_array)
        body = lambda x, layer: (eqx.combine(layer, static)(x), None)
        return (lambda arrays: jnp.sum(jax.lax.scan(body, X, arrays)[0] ** 2)), arrays

    expected, _ = value_and_gradient(*loss_of(tower))
    result, recomputes = value_and_gradient(*loss_of(Planned))
    assert_same(jax.tree.leaves(result), jax.tree.leaves(expected))
    assert recomputes


def test_equinox_leaves_that_are_no_arrays_are_split_off(eqx):
    """Activation functions and axis names are leaves, too; and state comes back as auxiliary data."""

    class Net(eqx.Module):
        inner: eqx.nn.MLP
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout

        def __init__(self, key):
            self.inner = eqx.nn.MLP(8, 8, 8, 6, activation=jnp.sin, key=key)
            self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
            self.dropout = eqx.nn.Dropout(0.3)

        def __call__(self, x, state, key):
            x, state = self.norm(self.inner(x), state)
            return self.dropout(x, key=key), state

    model, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(arrays, state, key, x):
        run = jax.vmap(eqx.combine(arrays, static), in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
        y, state = run(x, state, jax.random.split(key, x.shape[0]))
        return jnp.sum(y**3), state

    args = arrays, state, jax.random.key(1), X
    expected, _ = value_and_gradient(loss, *args, has_aux=True)
    result, recomputes = value_and_gradient(planned(loss, has_aux=True), *args, has_aux=True)
    assert_same(result, expected)
    assert recomputes


@pytest.fixture
def hk():
    return pytest.importorskip("haiku")


def test_a_haiku_transform_with_state(hk):
    def net(x):
        for _ in range(4):
            x = hk.BatchNorm(True, True, 0.9)(jnp.sin(hk.Linear(8)(x)), is_training=True)
            x = hk.dropout(hk.next_rng_key(), 0.2, x)
        return x

    model = hk.transform_with_state(net)
    params, state = model.init(jax.random.key(0), X)

    def loss(params, state, key, x):
        y, state = model.apply(params, state, key, x)
        return jnp.sum(y**3), state

    args = params, state, jax.random.key(1), X
    expected, _ = value_and_gradient(loss, *args, has_aux=True)
    plan = jaxremat.plan(loss, *args, budget=0.75, has_aux=True, verify="replay")
    for ours in (planned(loss, has_aux=True), plan.apply(loss)):
        result, recomputes = value_and_gradient(ours, *args, has_aux=True)
        assert_same(result, expected)
        assert recomputes


def test_inside_a_haiku_transform_and_with_a_policy(hk):
    def tower(x):
        for _ in range(6):
            x = jnp.sin(hk.Linear(8)(x))
        return x

    plain, ours = hk.transform(tower), hk.transform(lambda x: planned(tower)(x))
    params = plain.init(jax.random.key(0), X)
    loss = lambda model, params: jnp.sum(model.apply(params, None, X) ** 2)
    of = functools.partial(loss, plain)
    plan = plan_names(of, params)
    expected, _ = value_and_gradient(of, params)
    for wrapped in (functools.partial(loss, ours), jax.checkpoint(plan.named(of), policy=plan.policy)):
        assert_same(value_and_gradient(wrapped, params)[0], expected)
        assert count(wrapped, params, primitive="sin") > len(params)


def test_a_plain_function_with_a_collective_in_vmap():
    def layers(w, x):
        for _ in range(6):
            x = jnp.sin(x @ w)
        return x - jax.lax.pmean(x, "rows")

    def loss(layers):
        return lambda w: jnp.sum(jax.vmap(lambda x: layers(w, x), axis_name="rows")(X.reshape(4, 64, 8)) ** 2)

    result, recomputes = value_and_gradient(loss(planned(layers)), jnp.eye(8))
    assert_same(result, value_and_gradient(loss(layers), jnp.eye(8))[0])
    assert recomputes
