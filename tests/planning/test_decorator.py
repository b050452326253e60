"""`jaxremat.remat`: one plan per program, shapes and differentiated arguments; otherwise the plain function."""

import dataclasses
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import count, planning_of
from jax import lax

import jaxremat
from jaxremat.planning.baseline import Baseline


def layered(ws, x):
    for w in ws:
        x = jnp.tanh(x @ w)
    return jnp.sum(x**2)


WEIGHTS = [jnp.asarray(np.random.default_rng(i).normal(size=(16, 16)) / 4, jnp.float32) for i in range(16)]
X = jnp.asarray(np.random.default_rng(9).normal(size=(256, 16)), jnp.float32)


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def recomputations(fun, *args):
    """How many more matrix products the gradient has than the plain one."""
    return count(fun, *args) - count(layered, *args)


def test_plans_within_a_fraction_and_recomputes():
    planned = jaxremat.remat(layered, budget=0.5)
    assert recomputations(planned, WEIGHTS, X) > 0
    assert_close(jax.jit(jax.value_and_grad(planned))(WEIGHTS, X), jax.value_and_grad(layered)(WEIGHTS, X))


def test_plans_for_the_arguments_that_are_differentiated():
    planned = jaxremat.remat(layered, budget=0.8)
    for argnums in (0, 1, (0, 1)):
        assert_close(jax.grad(planned, argnums)(WEIGHTS, X), jax.grad(layered, argnums)(WEIGHTS, X))


def test_says_once_per_signature_what_it_decided(caplog):
    planned = jaxremat.remat(layered, budget=0.8)
    with caplog.at_level(logging.INFO, logger="jaxremat"):
        for rows in (256, 256, 128, 256):
            jax.grad(planned)(WEIGHTS, X[:rows])
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert len(told) == 2 and all("layered" in line and "budget" not in line for line in told)


def test_threads_plan_each_signature_once(caplog):
    planned = jaxremat.remat(layered, budget=0.8)
    inputs, results = [X, X[:128]], {}
    together = threading.Barrier(4)

    def run(k):
        together.wait()
        results[k] = jax.grad(planned)(WEIGHTS, inputs[k % 2])

    with caplog.at_level(logging.INFO, logger="jaxremat"):
        threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
    assert sum("layered" in r.getMessage() for r in caplog.records) == 2
    for k, x in enumerate(inputs):
        expected = jax.grad(layered)(WEIGHTS, x)
        assert_close(results[k], expected)
        assert_close(results[k + 2], expected)


def test_under_vmap_and_scan_the_inner_function_is_planned(caplog):
    planned, rows = jaxremat.remat(layered, budget=0.6), X.reshape(4, 64, 16)
    scan = lambda ws: jax.lax.scan(lambda total, x: (total + planned(ws, x), None), 0.0, rows)[0]
    mapped = lambda ws: jnp.sum(jax.vmap(lambda x: planned(ws, x))(rows))
    with caplog.at_level(logging.INFO, logger="jaxremat"):
        for fun in (lambda ws: planned(ws, rows[0]), scan, mapped):
            assert count(fun, WEIGHTS, primitive="optimization_barrier") > 0
    assert len(caplog.records) == 1  # one program, that of one row: it is planned once


def test_not_differentiated_is_the_plain_function():
    planned = jaxremat.remat(layered, budget=0.01)
    assert planned.__name__ == "layered"
    assert_close(planned(WEIGHTS, X), layered(WEIGHTS, X))
    assert jaxremat.remat(lambda n: n + 1, budget=0.5)(3) == 4


def test_a_budget_that_nothing_fits_in_is_told_where_it_is_differentiated():
    with pytest.raises(jaxremat.BudgetError):
        jax.grad(jaxremat.remat(layered, budget=10))(WEIGHTS, X)


def test_a_fraction_is_of_the_compiled_program_where_the_compiler_has_to_be_heard(monkeypatch):
    """Nothing is predicted to fit, and the program as written takes more than was predicted."""
    planning = planning_of(layered, (WEIGHTS, X))
    report = planning.baseline.report
    larger = dataclasses.replace(report, peak_bytes=4 * report.peak_bytes)
    monkeypatch.setattr(Baseline, "report", larger)
    made = planning.plan(0.15)
    assert made.compiled.peak_bytes <= made.budget_bytes == int(0.15 * larger.peak_bytes)


def normalized(x):
    return (x - lax.pmean(x, "batch")) / jnp.sqrt(lax.pmean(x**2, "batch") + 1e-3)


SHARED = {
    "a mean of losses": lambda ws, x: lax.pmean(layered(ws, x), "batch"),
    "all of them": lambda ws, x: jnp.mean(lax.all_gather(layered(ws, x), "batch") ** 2),
    "what a sum leads to": lambda ws, x: jnp.sin(lax.psum(layered(ws, x), "batch")) * ws[0].size,
}
APART = {
    "differences": lambda ws, x: (layered(ws, x) - lax.pmean(layered(ws, x), "batch")) ** 2,
    "batch normalization": lambda ws, x: layered(ws, normalized(x)),
    "a position": lambda ws, x: layered(ws, x) * (1 + lax.axis_index("batch")),
}


def over_a_batch(fun):
    return lambda ws, x: jnp.mean(jax.vmap(fun, (None, 0), axis_name="batch")(ws, x))


@pytest.mark.parametrize("emit", ["schedule", "segments"])
@pytest.mark.parametrize("local", SHARED.values(), ids=SHARED)
def test_what_all_examples_of_a_vmap_share_stays_as_it_is(local, emit, caplog):
    x = X.reshape(4, 64, 16)
    ours = jax.jit(jax.grad(over_a_batch(jaxremat.remat(local, budget=0.8, emit=emit))))
    assert_close(ours(WEIGHTS[:3], x), jax.grad(over_a_batch(local))(WEIGHTS[:3], x))
    assert "axis of a vmap" in caplog.text


@pytest.mark.parametrize("local", APART.values(), ids=APART)
def test_what_examples_of_a_vmap_tell_each_other_is_planned(local, caplog):
    x = X.reshape(4, 64, 16)
    planned = over_a_batch(jaxremat.remat(local, budget=0.8))
    assert_close(jax.jit(jax.grad(planned))(WEIGHTS[:3], x), jax.grad(over_a_batch(local))(WEIGHTS[:3], x))
    assert "axis of a vmap" not in caplog.text


def test_keywords_and_static_arguments():
    @jaxremat.remat(budget=0.8, static_argnums=(2,), static_argnames=("final",))
    def planned(ws, x, power, *, scale, final):
        return getattr(jnp, final)(scale * jnp.abs(layered(ws, x)) ** power)

    def plain(ws, x, power, *, scale, final):
        return getattr(jnp, final)(scale * jnp.abs(layered(ws, x)) ** power)

    keywords = {"scale": jnp.float32(0.1), "final": "sqrt"}
    assert_close(jax.grad(planned)(WEIGHTS, X, 2, **keywords), jax.grad(plain)(WEIGHTS, X, 2, **keywords))


def test_auxiliary_results():
    def plain(ws, x):
        return layered(ws, x), {"mean": x.mean(), "count": jnp.int32(x.shape[0])}

    planned = jaxremat.remat(plain, budget=0.8, has_aux=True)
    take = lambda f: jax.value_and_grad(f, has_aux=True)(WEIGHTS, X)
    assert_close(take(planned), take(plain))


def test_closures_over_what_is_differentiated():
    def outer(ws, x, remat):
        return remat(lambda y: layered(ws, y * ws[0].sum()))(x)

    planned = lambda f: jaxremat.remat(f, budget=0.8)
    assert_close(jax.grad(outer)(WEIGHTS, X, planned), jax.grad(outer)(WEIGHTS, X, lambda f: f))


def test_under_vmap_scan_and_second_order():
    planned = jaxremat.remat(layered, budget=0.8)
    stacked = X.reshape(4, 64, 16)
    each = lambda f: jax.vmap(jax.grad(f), in_axes=(None, 0))(WEIGHTS, stacked)
    assert_close(each(planned), each(layered))

    def scanned(f):
        return jax.grad(lambda ws: jax.lax.scan(lambda total, x: (total + f(ws, x), None), 0.0, stacked)[0])(WEIGHTS)

    assert_close(jax.jit(lambda: scanned(planned))(), scanned(layered))
    second = lambda f: jax.grad(lambda w: jnp.sum(jax.grad(lambda w: f([w, *WEIGHTS[1:8]], X[:64]))(w) ** 2))(
        WEIGHTS[0]
    )
    assert_close(second(planned), second(layered))
