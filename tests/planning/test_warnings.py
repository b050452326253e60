"""What plans say beside their numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, layers_with_options

import jaxremat

W = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)) / 4, jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(256, 16)), jnp.float32)


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (lambda w, x: jnp.sin(x @ w).sum(-1), "scalar"),
        (lambda w, x: (x @ w).sum(keepdims=True), "scalar"),
        (lambda w, x: (jnp.sin(x @ w).mean(), x.mean()), "has_aux"),
        (lambda w, x: {"loss": jnp.sin(x @ w).mean(), "more": (x @ w).mean()}, "has_aux"),
        (lambda w, x: (jnp.sin(x @ w).mean(), jnp.argmax(x)), r"in a tuple.*has_aux"),
        (lambda w, x: [jnp.sin(x @ w).mean()], r"in a list.*scalar.*return it alone"),
        (lambda w, x: {"loss": jnp.sin(x @ w).mean()}, r"in a dict.*scalar.*return it alone"),
    ],
)
def test_what_jax_grad_refuses_is_planned_for_its_vjp_with_a_warning(loss, word):
    plan = jaxremat.plan(loss, W, X, budget="1GiB")
    assert any(re.search(word, warning) for warning in plan.warnings)


def test_a_loss_beside_auxiliary_data_is_asked_the_same():
    plan = jaxremat.plan(lambda w, x: ([jnp.sin(x @ w).mean()], x), W, X, budget="1GiB", has_aux=True)
    assert any("in a list" in warning for warning in plan.warnings)
    alone = jaxremat.plan(lambda w, x: (jnp.sin(x @ w).mean(), {"x": x}), W, X, budget="1GiB", has_aux=True)
    assert alone.warnings == ()


@pytest.mark.parametrize("loss", [lambda w, x: (x @ w).sum() * 1j, lambda w, x: (jnp.fft.fft(x @ w), x.mean())])
def test_a_complex_loss_is_refused(loss):
    with pytest.raises(jaxremat.ArgumentError, match="complex"):
        jaxremat.plan(loss, W, X, budget=1.0)


def test_losses_say_nothing_and_parts_of_functions_may_return_anything():
    assert jaxremat.plan(layers_with_options, W, X, budget=1.0, verify="replay").warnings == ()
    part = jaxremat.remat(lambda w, x: (jnp.fft.fft(x @ w), x), budget=1.0)
    assert_same(
        jax.grad(lambda w: jnp.abs(part(w, X)[0]).sum())(W), jax.grad(lambda w: jnp.abs(jnp.fft.fft(X @ w)).sum())(W)
    )
