"""Refusals: the floor, what occupies it, what would lower it."""

import jax
import jax.numpy as jnp
import pytest
from layer_stacks import layered, scanned

import jaxremat


def attend(w, x):
    with jax.named_scope("attention"):
        q, k, v = x @ w, x @ (2 * w), x @ (3 * w)
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k))
        return jnp.sum(jnp.tanh(jnp.einsum("bqk,bkd->bqd", weights, v)) ** 2)


def attention_arguments():
    return jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((2, 1024, 16), jnp.float32)


def wide(w, x):
    return jnp.sum(jnp.tanh(x @ w))


def refuse(fun, args, **options):
    with pytest.raises(jaxremat.BudgetError) as caught:
        jaxremat.plan(fun, *args, **options)
    return caught.value


def test_a_refusal_names_what_occupies_the_floor_and_chunked_attention():
    error = refuse(attend, attention_arguments(), budget=0.02, verify="replay")
    text = str(error)
    assert str(error.min_peak_bytes) in text
    assert "attention" in text and "test_budget_error.py:" in text and "MiB" in text
    assert 'allow=("chunk",)' in text and "[2, 1024, 1024]" in text


def test_resident_arguments_are_told_apart():
    args = jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((2, 512), jnp.float32)
    error = refuse(wide, args, budget=100_000, verify="replay")
    assert "no plan can go below them" in str(error) and "sharding the parameters" in str(error)


def test_the_floor_is_met_when_asked_for():
    error = refuse(attend, attention_arguments(), budget=0.02)
    plan = jaxremat.plan(attend, *attention_arguments(), budget=error.min_peak_bytes)
    assert plan.compiled.peak_bytes <= error.min_peak_bytes


def test_chunked_attention_goes_below_the_floor_and_keeps_the_gradient():
    args = attention_arguments()
    error = refuse(attend, args, budget=0.02)
    plan = jaxremat.plan(attend, *args, budget=int(0.8 * error.min_peak_bytes), allow="chunk")
    assert plan.compiled.peak_bytes <= 0.8 * error.min_peak_bytes
    assert jaxremat.verify(plan).peak_bytes == pytest.approx(plan.compiled.peak_bytes, rel=0.01)
    w = jax.random.normal(jax.random.key(0), (16, 16)) / 8
    x = jax.random.normal(jax.random.key(1), (2, 1024, 16))
    plain, planned = jax.jit(jax.grad(attend))(w, x), jax.jit(jax.grad(plan.apply(attend)))(w, x)
    assert jnp.abs(plain - planned).max() <= 1e-3 * jnp.abs(plain).max()


def test_chunked_attention_is_left_alone_where_everything_fits():
    plan = jaxremat.plan(attend, *attention_arguments(), budget=1.0, verify="replay", allow="chunk")
    assert plan.overhead == 0 and not plan.decision.chunks


def test_a_plan_with_chunked_attention_loads(tmp_path):
    args = attention_arguments()
    error = refuse(attend, args, budget=0.02, verify="replay")
    budget = int(0.8 * error.min_peak_bytes)
    plan = jaxremat.plan(attend, *args, budget=budget, verify="replay", allow="chunk")
    plan.save(tmp_path / "plan.json")
    again = jaxremat.load_plan(tmp_path / "plan.json", attend, *args)
    assert again.decision.to_json() == plan.decision.to_json()
    assert jax.eval_shape(again.apply(attend), *args).shape == ()


def convolved(ws, x):
    x = x.reshape(8, 8, 8, 32)
    for w in ws:
        x = x + jnp.tanh(jax.lax.conv(x.swapaxes(1, 3), w[:, :, None, None], (1, 1), "SAME")).swapaxes(1, 3)
    return jnp.mean(x**2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("emit", ["schedule", "names", "segments"])
@pytest.mark.parametrize("fun", [layered, scanned, convolved], ids=lambda fun: fun.__name__)
def test_what_a_refusal_lists_is_its_minimum_and_never_above_the_plain_peak(fun, emit, dtype):
    args = [jax.ShapeDtypeStruct((32, 32), dtype)] * 4, jax.ShapeDtypeStruct((512, 32), dtype)
    plain = jaxremat.plan(fun, *args, budget=1.0).compiled.peak_bytes
    error = refuse(fun, args, budget=1000, emit=emit)
    assert sum(occupant.bytes for occupant in error.occupants) == error.min_peak_bytes <= plain
    assert all(occupant.name and occupant.bytes > 0 for occupant in error.occupants)
