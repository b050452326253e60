"""Steps whose scans leave values rounded: with permission, and only where a gradient reads them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.step.pairs import find_pairs
from jaxremat.step.planner import ProgramPlanner
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.round_trips import BFLOAT16, LOSSLESS, NARROW


def loss(ws, x):
    return jnp.mean(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0] ** 2)


def step(ws, x):
    value, grads = jax.value_and_grad(loss)(ws, x)
    return ws - 0.1 * grads, value


def smoothed(ws, x):
    """Values forward, then an estimate in reverse that reads them: no gradient."""

    def forward(x, w):
        x = jnp.tanh(x @ w)
        return x, jnp.sin(x)

    def backward(total, y):
        total = 0.9 * total + jnp.tanh(y * y)
        return total, total.mean()

    _, ys = lax.scan(forward, x, ws)
    return lax.scan(backward, jnp.zeros_like(x), ys, reverse=True)


def shapes(width, rows, layers=8):
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return shape((layers, width, width)), shape((rows, width))


def test_wide_layers_are_rounded_with_permission_and_that_is_told():
    plans = [
        jaxremat.jit(
            step, budget=0.85, donate_argnums=0, target="h200", verify="replay", allow=allow
        ).plan(*shapes(4096, 16384))
        for allow in ((), ("narrow",))
    ]  # fmt: skip
    exact, rounded = plans
    assert "bfloat16" in rounded.decision.forms and "bfloat16" not in exact.decision.forms
    assert rounded.overhead < exact.overhead - 0.01
    assert any("rounded to bfloat16 (off by up to 0.002)" in warning for warning in rounded.warnings)
    assert not any("rounded" in warning for warning in exact.warnings)


@pytest.mark.parametrize("forms", NARROW)
def test_gradients_are_near(forms):
    args = jax.random.normal(jax.random.key(0), (8, 512, 512)) / 22, jax.random.normal(jax.random.key(1), (512, 512))
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(jax.value_and_grad(loss))(*args))
    planner = ProgramPlanner(jaxpr, resolve_target("cpu"), storages=(*LOSSLESS, *forms))
    outcome = planner.fit(int(0.8 * planner.plain.replayed_bytes))
    assert set(forms) <= set(outcome.decision.forms)
    (value, grads), (exact_value, exact_grads) = jax.jit(outcome.script.run)(args), jax.value_and_grad(loss)(*args)
    np.testing.assert_allclose(value, exact_value, rtol=1e-6)
    off = float(jnp.linalg.norm(grads - exact_grads) / jnp.linalg.norm(exact_grads))
    assert 0 < off < 0.01


def test_values_that_no_gradient_reads_are_never_rounded():
    forms = (*LOSSLESS, BFLOAT16.form)
    pairs = lambda fun: find_pairs(jaxprs.inline_calls(jax.make_jaxpr(fun)(*shapes(64, 256))), forms)
    assert [pair.storages for pair in pairs(step)] == [forms]
    assert [pair.storages for pair in pairs(smoothed)] == [LOSSLESS]
