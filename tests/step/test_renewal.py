import jax
import jax.numpy as jnp
import pytest
import step_programs

import jaxremat
from jaxremat.step.holders import donation_warnings
from jaxremat.step.renewal import read_late, renewed_inputs

WEIGHTS = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 4
MOMENTS = [jax.ShapeDtypeStruct((16, 16), jnp.bfloat16)] * 4
BATCH = jax.ShapeDtypeStruct((64, 16), jnp.float32)


def moved(p, m, x):
    """One step with momentum."""
    grads = jax.grad(step_programs._loss)(p, x)
    m = [(0.9 * m + g).astype(m.dtype) for m, g in zip(m, grads)]
    return [p - 0.1 * m for p, m in zip(p, m)], m


def several(p, m, x):
    """Steps in a scan."""
    return jax.lax.scan(lambda c, _: (moved(*c, x), None), (p, m), None, length=3)[0]


def until_done(p, m, x):
    """Steps in a while loop, in a scan."""
    body = lambda c: (*moved(*c[:2], x), c[2] + 1)
    once = lambda c, _: (jax.lax.while_loop(lambda c: c[2] < 3, body, (*c, 0))[:2], None)
    return jax.lax.scan(once, (p, m), None, length=2)[0]


@pytest.mark.parametrize("step", [moved, several, until_done])
def test_what_is_carried_beside_is_the_optimizers(step):
    jaxpr = jax.make_jaxpr(step)(WEIGHTS, MOMENTS, BATCH)
    assert renewed_inputs(jaxpr) == (True,) * 8 + (False,)
    assert read_late(jaxpr) == (False,) * 4 + (True,) * 4 + (False,)


def roles(step, *args, **options):
    plan = jaxremat.jit(step, budget=1.0, verify="replay", **options).plan(*args)
    return {group.name: group.role for group in plan.arguments}


@pytest.mark.parametrize("step", [moved, several, until_done])
@pytest.mark.parametrize("donated", [(), (0, 1)])
def test_letters_are_told_apart_by_what_the_step_does(step, donated):
    found = roles(step, WEIGHTS, MOMENTS, BATCH, donate_argnums=donated)
    assert found == {"p": "parameters", "m": "optimizer state", "x": "batch"}


def test_what_is_only_read_is_not_called_state():
    """A frozen base, an evaluation, targets that are no average, weights of samples that are no parameters."""
    mixed = lambda p, q, x: [p - 0.1 * g for p, g in zip(p, jax.grad(step_programs._loss)(p, (x @ q[0])))]
    assert roles(mixed, WEIGHTS, WEIGHTS, BATCH, donate_argnums=0)["q"] == "input"
    assert roles(lambda p, x: step_programs._loss(p, x), WEIGHTS, BATCH)["p"] == "input"
    score = lambda sample_weights, target, x: (sample_weights * (x - target) ** 2).mean()
    assert set(roles(score, BATCH, BATCH, BATCH).values()) == {"batch"}


def test_gradients_take_the_place_of_no_parameters():
    step = jaxremat.jit(jax.grad(step_programs._loss), budget=1.0, verify="replay")
    assert not step.plan(WEIGHTS, BATCH).warnings


def test_state_beside_donated_parameters_is_asked_for():
    step = lambda p, m, x: moved(p, m, x)
    plan = jaxremat.jit(step, budget=1.0, verify="replay", donate_argnums=0).plan(WEIGHTS, MOMENTS, BATCH)
    assert donation_warnings(plan.arguments) == plan.warnings
    assert [warning.split()[0] for warning in plan.warnings] == ["m"]


def test_a_count_that_is_not_donated_is_not_worth_a_warning():
    step = lambda p, count, x: (moved_alone(p, x), count + 1)
    moved_alone = lambda p, x: [w - 0.1 * g for w, g in zip(p, jax.grad(step_programs._loss)(p, x))]
    count = jax.ShapeDtypeStruct((), "int32")
    plan = jaxremat.jit(step, budget=1.0, verify="replay", donate_argnums=0).plan(WEIGHTS, count, BATCH)
    assert [group.idle_bytes for group in plan.arguments if group.name == "count"] == [4]
    assert not plan.warnings
