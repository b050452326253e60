"""A plan is loaded for the program that it was made for, and no other."""

import jax
import jax.numpy as jnp
import pytest
import show_programs

import jaxremat


def saved(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    return path


def test_other_shapes_are_refused_with_the_difference(plan, tmp_path):
    loss, args = show_programs.tower(layers=5)
    with pytest.raises(jaxremat.PlanMismatchError, match="block_5"):
        jaxremat.load_plan(saved(plan, tmp_path), loss, *args)


def test_a_changed_program_is_refused_with_the_first_difference(plan, tmp_path):
    loss, args = show_programs.tower()
    with pytest.raises(jaxremat.PlanMismatchError, match=r"part at line \d+ of \d+.*Planned: .*Given: .*sin"):
        jaxremat.load_plan(saved(plan, tmp_path), lambda p, x: jnp.sin(loss(p, x)), *args)


def with_own_rule(backward, scan):
    """Layers of an activation with a derivative rule of its own: the same values, whatever the rule."""

    @jax.custom_vjp
    def activation(x):
        return jnp.tanh(x)

    activation.defvjp(lambda x: (jnp.tanh(x), x), lambda x, ct: (backward(x, ct),))

    def loss(ws, x):
        layer = lambda x, w: (activation(x @ w), None)
        if scan:
            return jnp.mean(jax.lax.scan(layer, x, ws)[0] ** 2)
        for w in ws:
            x, _ = layer(x, w)
        return jnp.mean(x**2)

    return loss


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        lambda x, ct: 3 * ct,
        lambda x, ct: ct * jnp.cos(jnp.sin(x) * jnp.exp(-x * x)),
        lambda x, ct: ct + (1 - jnp.sinh(x) ** 2),  # as many equations of the same shapes
    ],
    ids=["shorter", "longer", "as long"],
)
def test_another_derivative_rule_of_an_equal_function_is_refused(scan, other):
    args = jnp.full((6, 32, 32), 0.1), jnp.ones((512, 32))
    loss = with_own_rule(lambda x, ct: ct * (1 - jnp.tanh(x) ** 2), scan)
    plan = jaxremat.plan(loss, *args, budget=0.6, verify="replay")
    assert jnp.allclose(jax.grad(plan.apply(loss))(*args), jax.grad(loss)(*args))
    with pytest.raises(jaxremat.PlanMismatchError, match="derivative rule"):
        jax.grad(plan.apply(with_own_rule(other, scan)))(*args)
