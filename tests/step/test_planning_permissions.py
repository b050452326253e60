"""Steps: what is found without a permission is among what is chosen from with it."""

import jax
import jax.numpy as jnp
import pytest

import jaxremat

LAYERS, WIDTH, ROWS = 4, 512, 16384
ARGS = (
    jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
)


def step(ws, x):
    def loss(ws):
        x_after = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0]
        return jnp.mean(x_after**2)

    return ws - 0.1 * jax.grad(loss)(ws)


def planned(budget, allow, verify="replay"):
    made = jaxremat.jit(step, budget=budget, donate_argnums=0, target="h200", verify=verify, allow=allow)
    return made.predicted(*ARGS) if verify == "replay" else made.plan(*ARGS)


@pytest.mark.parametrize("allow", [("offload",), ("narrow",), ("project",), ("chunk",), ("offload", "narrow")])
def test_no_permission_makes_a_step_slower(allow):
    assert planned(0.85, allow).overhead <= planned(0.85, ()).overhead + 1e-9


@pytest.mark.parametrize("allow", [("offload",), ("narrow",), ("offload", "narrow")])
def test_no_permission_makes_the_least_step_larger(allow):
    assert planned("least", allow).peak_bytes <= planned("least", ()).peak_bytes


@pytest.mark.aot
def test_what_is_compiled_without_the_host_is_compiled_with_it():
    without, permitted = (planned(0.85, allow, "compile") for allow in ((), ("offload",)))
    assert permitted.compiled.seconds <= 1.01 * without.compiled.seconds
    assert permitted.compilations <= without.compilations + 2
