"""What scans of a step stack in the host's memory: chosen where copies hide, at the cost of the real link."""

import jax
import jax.numpy as jnp
import pytest

import jaxremat
from jaxremat.trace.round_trips import transferred_bytes

LAYERS, WIDTH = 4, 16384
ARGS = (
    jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32),
)


def step(ws, x):
    def loss(ws):
        return jnp.mean(jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0] ** 2)

    value, grads = jax.value_and_grad(loss)(ws)
    return ws - 0.1 * grads, value


def planned(budget, **options):
    return jaxremat.jit(step, budget=budget, donate_argnums=0, target="h200", verify="replay", **options)


def test_a_stack_may_wait_on_the_host_where_nothing_else_fits():
    with pytest.raises(jaxremat.BudgetError):
        planned(0.82).predicted(*ARGS)
    plan = planned(0.82, allow="offload").plan(*ARGS)
    assert plan.peak_bytes <= plan.budget_bytes and "host" in plan.decision.storages
    assert 0 <= plan.overhead < 0.2
    out_bytes, back_bytes = zip(*map(transferred_bytes, plan.outcome.jaxpr.eqns))
    assert sum(out_bytes) == sum(back_bytes) >= LAYERS * WIDTH * WIDTH * 4


def test_plan_with_the_host_is_the_same_from_a_file(tmp_path):
    first, second = (planned(0.82, allow="offload") for _ in range(2))
    plan = first.plan(*ARGS)
    plan.save(tmp_path / "plan.json")
    assert second.load_plan(tmp_path / "plan.json", *ARGS).decision == plan.decision
    assert str(first.trace(*ARGS).jaxpr) == str(second.trace(*ARGS).jaxpr)
