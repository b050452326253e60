"""Steps of which parts may run slice by slice."""

import jax
import numpy as np
import pytest
from step_programs import copied, numbers

import jaxremat

WIDTH, WIDE, ROWS = 64, 256, 4096


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return [(0.1 * jax.random.normal(k, (WIDTH, WIDE)), 0.1 * jax.random.normal(k, (WIDE, WIDTH))) for k in keys]


def step(params, x):
    def loss(params):
        h = x
        for up, down in params:
            h = h + jax.nn.gelu(h @ up) @ down
        return (h**2).mean()

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


ARGS = params(), jax.random.normal(jax.random.key(9), (ROWS, WIDTH))


def planned(budget, **options):
    return jaxremat.jit(step, budget=budget, donate_argnums=0, **options)


def test_a_batch_in_slices_costs_next_to_nothing_where_running_again_would():
    ours = planned(0.3, allow="chunk")
    plan = ours.plan(*ARGS)
    assert plan.compiled.peak_bytes <= 0.3 * plan.baseline_peak_bytes
    assert not plan.is_plain and plan.program.chunks
    assert plan.overhead < 0.05
    assert all(str(chunk) in str(plan) for chunk in plan.program.chunks)
    for mine, expected in zip(numbers(ours(*copied(ARGS))), numbers(jax.jit(step)(*ARGS)), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)


def test_what_no_plan_of_the_whole_reaches_slices_reach(tmp_path):
    with pytest.raises(jaxremat.BudgetError):
        planned(0.15, verify="replay").predicted(*ARGS)
    ours, other = (planned(0.15, allow="chunk", verify="replay") for _ in range(2))
    ours.plan(*ARGS).save(tmp_path / "plan.json")
    again = other.load_plan(tmp_path / "plan.json", *ARGS)
    assert again.program.chunks == ours.plan(*ARGS).program.chunks
    assert str(other.trace(*ARGS).jaxpr) == str(ours.trace(*ARGS).jaxpr)


def test_a_step_that_fits_is_left_alone():
    plan = planned(1.0, allow="chunk").plan(*ARGS)
    assert plan.is_plain and plan.compilations == 1
