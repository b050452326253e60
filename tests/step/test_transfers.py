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


def test_a_stack_may_wait_on_the_host_where_that_is_faster():
    plan = planned(0.82, allow="offload").plan(*ARGS)
    assert plan.peak_bytes <= plan.budget_bytes and "host" in plan.decision.storages
    assert 0 <= plan.overhead < 0.1 < planned(0.82).predicted(*ARGS).overhead
    out_bytes, back_bytes = zip(*map(transferred_bytes, plan.outcome.jaxpr.eqns))
    assert sum(out_bytes) == sum(back_bytes) >= LAYERS * WIDTH * WIDTH * 4


def test_plan_with_the_host_is_the_same_from_a_file(tmp_path):
    first, second = (planned(0.82, allow="offload") for _ in range(2))
    plan = first.plan(*ARGS)
    plan.save(tmp_path / "plan.json")
    assert second.load_plan(tmp_path / "plan.json", *ARGS).decision == plan.decision
    assert str(first.trace(*ARGS).jaxpr) == str(second.trace(*ARGS).jaxpr)


STACK_BYTES = LAYERS * WIDTH * WIDTH * 4


def test_host_budget_bounds_what_waits_there():
    within, without = (
        planned(0.82, allow="offload", host_budget=STACK_BYTES - less).predicted(*ARGS) for less in (0, 1)
    )
    assert "host" in within.decision.storages and "host" not in without.decision.storages
    assert within.overhead < 0.1 < without.overhead


def test_host_budget_counts_what_lies_there_and_no_donated_buffer_twice():
    def step(state, x):
        return {"m": state["m"] + x.sum()}, (x**2).sum()

    there = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    args = {"m": jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=there)}, ARGS[1]
    planned = lambda **options: jaxremat.jit(
        step, budget=1.0, allow="offload", target="h200", verify="replay", **options
    )
    assert planned(host_budget="4MiB", donate_argnums=0).plan(*args).is_plain
    assert planned(host_budget="8MiB").plan(*args).is_plain
    with pytest.raises(jaxremat.ArgumentError, match=r"host_budget=4\.0 MiB .* 8\.0 MiB"):
        planned(host_budget="4MiB").plan(*args)


@pytest.mark.parametrize("options", [{"host_budget": "1GiB"}, {"host_budget": 0.5, "allow": "offload"}])
def test_host_budget_is_bytes_of_what_may_wait_there(options):
    with pytest.raises(jaxremat.ArgumentError, match="host_budget"):
        planned(0.82, **options)
