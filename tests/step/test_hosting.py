"""State in the host's memory between its uses: what goes back, what is counted, and what a refusal says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import jaxremat
from jaxremat.step.budget_error import refusal

LAYERS, WIDTH, ROWS = 4, 256, 8192
LEAF_BYTES = WIDTH * WIDTH * 4
HOST = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")


def loss(params, x):
    for w in params:
        x = x + jnp.tanh(x @ w)
    return jnp.mean(x**2)


def adam(state, x):
    value, grads = jax.value_and_grad(loss)(state["params"], x)
    opt = state["opt"]
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, opt["mu"], grads)
    nu = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, opt["nu"], grads)
    params = jax.tree.map(lambda p, m, v: p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), state["params"], mu, nu)
    return {"params": params, "opt": {"mu": mu, "nu": nu, "count": opt["count"] + 1}}, value


def state():
    params = [jax.random.normal(jax.random.key(i), (WIDTH, WIDTH)) / 16 for i in range(LAYERS)]
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return {"params": params, "opt": {"mu": zeros(), "nu": zeros(), "count": jnp.zeros((), jnp.int32)}}


def on_host(tree, kind="pinned_host"):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding.with_memory_kind(kind)), tree)


def batch():
    return jax.random.normal(jax.random.key(9), (ROWS, WIDTH))


def planned(step=adam, **options):
    asked = {"target": "h200", "verify": "replay", "allow": "offload", "donate_argnums": 0, **options}
    return jaxremat.jit(step, **asked)


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("budget", [1.0, "least"])
def test_two_steps_with_state_on_the_host_are_two_steps_and_leave_it_there(budget):
    """On a GPU's planner, run on the CPU, which has the same kinds of memory."""
    step, x, ours, theirs = planned(budget=budget), batch(), state(), state()
    ours = {**ours, "opt": on_host(ours["opt"])}
    for _ in range(2):
        ours, theirs = step(ours, x)[0], jax.jit(adam)(theirs, x)[0]
        assert kinds(ours["opt"]) == {"pinned_host"} and kinds(ours["params"]) == {"device"}
        for mine, own in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-6)


def test_memory_that_is_not_pinned_is_the_hosts_too_but_for_a_processor():
    """JAX's own trace takes it for the device's."""
    given, x = state(), batch()
    given = {**given, "opt": on_host(given["opt"], "unpinned_host")}
    plan = planned(budget=1.0, donate_argnums=()).plan(given, x)
    held = {group.name: group.host_bytes for group in plan.arguments}
    assert held == {"state/params": 0, "state/opt": 2 * LAYERS * LEAF_BYTES + 4, "x": 0}
    with pytest.raises(ValueError, match="memory_space"):
        planned(budget=1.0, allow=(), donate_argnums=()).plan(given, x)
    assert planned(budget=1.0, allow=(), target="cpu").plan(given, x).is_plain
    with pytest.raises(jaxremat.ArgumentError, match=r"state/opt/count is donated .*with_memory_kind\('pinned_host'\)"):
        planned(budget=1.0)(given, x)
    ours, theirs = planned(budget=1.0, donate_argnums=())(given, x), jax.jit(adam)(state(), x)
    for mine, own in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-6)


def test_a_result_goes_back_by_the_end_of_its_path_and_else_by_the_order_of_donation():
    def by_path(state, x):
        return {"m": state["m"] + 1, "others": {"v": state["v"] + 2, "w": state["w"] + x}}

    def by_order(w, m, v, x):
        return w + x, m + 1, v + 2

    w, m, v, x = jnp.ones((4, 4, 4))
    out = planned(by_path, budget=1.0, donate_argnums=())({"w": w, "m": on_host(m), "v": v}, x)
    assert kinds(out["m"]) == {"pinned_host"} and kinds(out["others"]) == {"device"}
    out = planned(by_order, budget=1.0, donate_argnums=(0, 1, 2))(w, on_host(m), v, x)
    assert [kinds(leaf) for leaf in out] == [{"device"}, {"pinned_host"}, {"device"}]


def shapes(leaf_sharding=None):
    place = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
    given = jax.eval_shape(state)
    return {**given, "opt": jax.tree.map(lambda s: place(s, leaf_sharding), given["opt"])}, jax.eval_shape(batch)


def test_what_lies_on_the_host_takes_no_bytes_of_the_device():
    here, there = (planned(budget=1.0).plan(*shapes(sharding)) for sharding in (None, HOST))
    moments = 2 * LAYERS * LEAF_BYTES
    assert there.peak_bytes <= here.peak_bytes - moments + 2 * LEAF_BYTES
    held = {group.name: group.host_bytes for group in there.arguments}
    assert held == {"state/params": 0, "state/opt": moments + 4, "x": 0}
    assert "optimizer state (state/opt), 2.0 MiB on the host" in str(there)


def test_loops_beside_it_leave_the_state_where_it_lies():
    def step(w, m, x):
        scanned = lambda w: jnp.mean(jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, w)[0] ** 2)
        m = 0.9 * m + jax.grad(scanned)(w)
        return w - 1e-3 * m, m

    stacked = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    hosted = jax.ShapeDtypeStruct(stacked.shape, stacked.dtype, sharding=HOST)
    here, there = (
        planned(step, budget=1.0, donate_argnums=(0, 1)).plan(stacked, m, jax.eval_shape(batch))
        for m in (stacked, hosted)
    )
    assert there.peak_bytes <= here.peak_bytes - LAYERS * LEAF_BYTES


def test_a_copy_to_the_host_runs_beside_the_next_update_and_no_longer():
    """As it is emitted, what is stored passes the barrier of the stretch after the next one."""
    plan = planned(budget="least").plan(*shapes(HOST))
    stretches = plan.outcome.script.stretches
    made = {v: k for k, stretch in enumerate(stretches) for eqn in stretch.eqns for v in eqn.outvars}
    stored = {v: k for v, k in made.items() if getattr(v.aval, "memory_space", None) == jax.memory.Space.Host}
    passed = {v: k for k, stretch in enumerate(stretches) for v in stretch.passed if v in stored}
    assert len(stored) == 2 * LAYERS + 1
    assert all(passed.get(v) == k + 2 for v, k in stored.items() if k + 2 < len(stretches))


def test_a_refusal_says_how_to_place_the_state_on_the_host():
    for target, told in (("h200", "pinned_host"), ("cpu", "an optimizer that keeps less")):
        step = planned(budget=0.3, target=target, allow=())
        call = step._call(shapes(), {})
        program = step._program(call)
        plain = step._planner(call).plain
        error = refusal(program, plain, plain.peak_bytes, 16 * 2**20)
        assert "state/opt: optimizer state 2.0 MiB of" in str(error) and told in str(error)


def test_without_permission_nothing_is_moved_and_the_error_says_what_would():
    given = state()
    given = {**given, "opt": on_host(given["opt"])}
    with pytest.raises(ValueError, match="memory_space") as error:
        planned(budget=0.9, allow=())(given, batch())
    assert "state/opt" in error.value.__notes__[0] and "allow=('offload',)" in error.value.__notes__[0]
    with pytest.raises(jaxremat.ArgumentError, match="'cpu' is the host's own"):
        planned(budget=0.9, target="cpu")(given, batch())


def test_a_step_that_moves_its_state_itself_is_left_to_do_so():
    def own(state, x):
        fetched = {**state, "opt": jax.device_put(state["opt"], jax.memory.Space.Device)}
        new, value = adam(fetched, x)
        return {**new, "opt": jax.device_put(new["opt"], jax.memory.Space.Host)}, value

    given = state()
    given = {**given, "opt": on_host(given["opt"])}
    for allow in ((), ("offload",)):
        step = planned(own, budget=1.0, allow=allow, donate_argnums=())
        assert step.predicted_bytes(given, batch()) < planned(budget=1.0, donate_argnums=()).predicted_bytes(
            state(), batch()
        )
        assert kinds(step(given, batch())[0]["opt"]) == {"pinned_host"}
