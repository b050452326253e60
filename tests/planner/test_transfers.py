"""Values of loops that wait on the host: what is copied, what of it shows, and who may ask for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planner.transfers import TransferPlanner, transfers_of
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.primal import read_primal

LAYERS, WIDTH, ROWS = 8, 512, 4096
STACK_BYTES = LAYERS * ROWS * WIDTH * 4
W = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
H200 = resolve_target("h200")


def layered(ws, x):
    x = lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, ws)[0]
    return jnp.mean(x**2)


def planner(host_budget_bytes=None):
    return TransferPlanner(read_primal(layered, (W, X), 0, False), H200, host_budget_bytes)


def test_what_a_loop_stacks_on_the_host_takes_no_bytes_of_the_device():
    planning = planner()
    outcome = planning._at_share(1e-3).fit(int(0.8 * planning.plain.replayed_bytes))
    told = transfers_of(outcome, H200)
    assert told.out_bytes >= STACK_BYTES // 2, "as many iterations as the budget asks for"
    assert outcome.replayed_bytes <= planning.plain.replayed_bytes - 0.9 * told.out_bytes
    stacks = [v for eqn in outcome.problem.joint.eqns if eqn.primitive.name == "scan" for v in eqn.outvars]
    waiting = [v for v in stacks if jaxprs.is_on_host(v)]
    assert waiting and all(jaxprs.size_bytes(v) == 0 and jaxprs.array_bytes(v) > 0 for v in waiting)


def test_copies_show_as_far_as_no_computation_hides_them():
    planning = planner()
    outcome = planning._at_share(1e-3).fit(int(0.8 * planning.plain.replayed_bytes))
    told = transfers_of(outcome, H200)
    seconds = (told.out_bytes + told.back_bytes) / H200.host_bytes_per_second
    assert told.exposed_seconds > seconds - outcome.problem.graph.costs.sum() > 0, "so small a model hides next to none"
    assert planning._honest(outcome).cost > planning.plain.cost


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_what_may_wait_on_the_host_is_never_slower_for_it(share):
    planning = planner()
    budget = int(share * planning.plain.replayed_bytes)
    assert planning.fit(budget).cost <= planning.own.fit(budget).cost


@pytest.mark.slow
def test_a_host_budget_bounds_what_waits_there():
    most = 16 * 2**20
    planning = planner(host_budget_bytes=most)
    for share in (0.5, 0.6, 0.8):
        outcome = planning.fit(int(share * planning.plain.replayed_bytes))
        assert transfers_of(outcome, H200).out_bytes <= most


def test_without_loops_the_host_of_a_tpu_is_not_used():
    tpu = resolve_target("tpu-v5e")

    def unrolled(ws, x):
        for w in ws:
            x = x + jnp.tanh(x @ w)
        return jnp.mean(x**2)

    primal = read_primal(unrolled, ([W.update(shape=(WIDTH, WIDTH))] * 4, X), 0, False)
    planning = TransferPlanner(primal, tpu, None)
    budget = int(0.7 * planning.plain.replayed_bytes)
    mine, own = planning.fit(budget), SchedulePlanner(primal, tpu).fit(budget)
    assert np.array_equal(mine.program.steps, own.program.steps)


@pytest.mark.parametrize(
    "options,told",
    [
        ({"target": "cpu", "allow": ("offload",)}, "cpu"),
        ({"target": "h200", "allow": ("offlaod",)}, "offlaod"),
        ({"target": "h200", "allow": None}, "give permissions"),
        ({"target": "h200", "allow": {"offload": False}}, "give permissions"),
        ({"target": "h200", "host_budget": "1GiB"}, "allow"),
        ({"target": "h200", "allow": ("offload",), "host_budget": -5}, "host_budget=-5: give bytes"),
        ({"target": "h200", "allow": ("offload",), "host_budget": 0.5}, "host_budget"),
        ({"target": "h200", "allow": ("offload",), "emit": "names"}, "schedule"),
    ],
)
def test_what_cannot_be_offloaded_is_refused_by_name(options, told):
    with pytest.raises(jaxremat.ArgumentError, match=told):
        jaxremat.plan(layered, W, X, budget=0.5, verify="replay", **options)


def test_arguments_on_the_host_are_refused_where_a_step_would_take_them():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    away = jax.ShapeDtypeStruct(W.shape, W.dtype, sharding=place)
    with pytest.raises(jaxremat.ArgumentError, match=r"1 argument, 8.0 MiB. .*jaxremat.jit.*allow=\('offload',\)"):
        jaxremat.plan(layered, away, X, budget=0.5, target="h200", verify="replay", allow="offload")
