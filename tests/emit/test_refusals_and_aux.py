"""What was not planned is refused, or differentiated rightly; never is it a silent zero. Auxiliary data stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emitted import FORMS, PLAIN_JAX, array, assert_same, plan_of

import jaxremat


def layered(ws, x, scale):
    for w in ws:
        x = jnp.tanh(x @ w) * scale
    return jnp.sum(x**2)


WS = [array(8, 8, seed=i, scale=0.4) for i in range(6)]
X, SCALE = array(256, 8, seed=10), jnp.float32(0.9)


def with_aux(ws, x, scale):
    hidden = x
    for w in ws:
        hidden = jnp.tanh(hidden @ w) * scale
    key = jax.random.fold_in(jax.random.key(0), 3)
    return jnp.sum(hidden**2), {
        "mean": hidden.mean(0),
        "count": jnp.int32(x.shape[0]),
        "positive": hidden > 0,
        "key": key,
    }


@functools.cache
def layered_plan(form, argnums=0):
    return plan_of(layered, (WS, X, SCALE), form, argnums=argnums)


@functools.cache
def planned_with_aux(form):
    return plan_of(with_aux, (WS, X, SCALE), form, has_aux=True).apply(with_aux)


@functools.cache
def layered_gradient():
    """By every argument."""
    return jax.jit(jax.grad(layered, (0, 1, 2)))(WS, X, SCALE)


@pytest.mark.parametrize("argnums", [1, 2, (0, 1), (0, 1, 2)])
def test_a_schedule_refuses_arguments_that_it_was_not_made_for(argnums):
    planned = layered_plan("schedule").apply(layered)
    with pytest.raises(jaxremat.EmissionError, match=r"arrays of other arguments.*argnums="):
        jax.eval_shape(jax.grad(planned, argnums), WS, X, SCALE)


def test_a_schedule_refuses_what_it_is_differentiated_through_from_outside():
    planned = layered_plan("schedule").apply(layered)
    with pytest.raises(jaxremat.EmissionError, match="1 arrays of other arguments"):
        jax.eval_shape(jax.grad(lambda s: planned(WS, X * s, SCALE)), 2.0)


@pytest.mark.parametrize("form", PLAIN_JAX)
def test_plain_jax_differentiates_whatever_is_asked_for(form):
    planned = layered_plan(form).apply(layered)
    assert_same(jax.jit(jax.grad(planned, (1, 2)))(WS, X, SCALE), layered_gradient()[1:], rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_several_arguments_and_fewer_of_them(form):
    planned = layered_plan(form, (0, 1, 2)).apply(layered)
    assert_same(jax.jit(jax.grad(planned, (0, 1, 2)))(WS, X, SCALE), layered_gradient(), rtol=1e-4)
    fewer = jax.jit(jax.grad(planned, (2, 1)))(WS, X, SCALE)
    assert_same(fewer, layered_gradient()[:0:-1], rtol=1e-4)


@functools.cache
def aux_results():
    return jax.jit(lambda: (_with_key_data(with_aux), _by_the_mean(with_aux)))()


def _with_key_data(f):
    (value, aux), gradient = jax.value_and_grad(f, has_aux=True)(WS, X, SCALE)
    return value, {**aux, "key": jax.random.key_data(aux["key"])}, gradient


def _by_the_mean(f):
    return jax.grad(lambda ws: f(ws, X, SCALE)[1]["mean"].sum())(WS)


@pytest.mark.parametrize("form", FORMS)
def test_auxiliary_data_are_the_same(form):
    ours = jax.jit(lambda: _with_key_data(planned_with_aux(form)))()
    (value, aux, gradient), _ = aux_results()
    assert_same(ours[2], gradient, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(ours[:2]), jax.tree.leaves((value, aux)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_auxiliary_data_that_are_differentiated_are_refused():
    with pytest.raises(jaxremat.EmissionError, match=r"1 auxiliary outputs are differentiated.*has_aux=False"):
        jax.eval_shape(lambda: _by_the_mean(planned_with_aux("schedule")))


@pytest.mark.parametrize("form", PLAIN_JAX)
def test_plain_jax_differentiates_auxiliary_data(form):
    assert_same(jax.jit(lambda: _by_the_mean(planned_with_aux(form)))(), aux_results()[1], rtol=1e-4)


def several(ws, x):
    hidden = []
    for w in ws:
        x = jnp.tanh(x @ w)
        hidden.append(x.sum())
    return {"total": jnp.sum(x**2), "hidden": hidden[::3]}


def _of_several(f):
    out, pull_back = jax.vjp(lambda ws: f(ws, X), WS)
    return out, pull_back({"total": jnp.float32(0.0), "hidden": [jnp.float32(k) for k in range(2)]})


@functools.cache
def several_results():
    return jax.jit(lambda: _of_several(several))()


@pytest.mark.parametrize("form", FORMS)
def test_several_results_each_with_its_cotangent(form):
    planned = plan_of(several, (WS, X), form).apply(several)
    assert_same(jax.jit(lambda: _of_several(planned))(), several_results(), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_other_shapes_and_other_programs_are_refused(form):
    plan = layered_plan(form)
    with pytest.raises(jaxremat.PlanMismatchError, match="planned 1 float32"):
        plan.apply(layered)(WS, X[:32], SCALE)
    with pytest.raises(jaxremat.PlanMismatchError, match="another program"):
        plan.apply(lambda ws, x, scale: layered(ws, jnp.sin(x), scale))(WS, X, SCALE)
