"""Reading, running and flattening jaxprs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from joint_programs import array, assert_all_close, primitives

from jaxremat.trace import jaxpr as jaxprs

X, W = array(3, 4), array(4, 4, seed=1)


def _program(x, w):
    y = jax.jit(lambda a: jnp.tanh(a @ w))(x)
    z = jax.checkpoint(lambda a: jax.jit(jnp.sin)(a) * 2)(y)
    return {"y": y, "z": lax.scan(lambda c, row: (c + row, c.sum()), z[0], z)[1]}


def test_a_program_read_and_run_is_the_function():
    program = jaxprs.read(_program, X, W)
    out = jaxprs.evaluate(program.jaxpr, [X, W])
    assert_all_close(jax.tree.leaves(jax.tree.unflatten(program.out_tree, out)), jax.tree.leaves(_program(X, W)))


def test_flattening_leaves_no_call_outside_loops_and_keeps_the_values():
    jaxpr = jaxprs.read(_program, X, W).jaxpr
    flat = jaxprs.inline_calls(jaxpr)
    assert {"jit", "remat2"} & set(primitives(jaxpr)) and "scan" in primitives(flat)
    assert all(jaxprs.inlined_body(eqn) is None for eqn in flat.eqns)
    assert_all_close(jaxprs.evaluate(flat, [X, W]), jaxprs.evaluate(jaxpr, [X, W]))


def test_flattening_removes_dead_code_but_not_inputs_and_effects():
    def fun(x, unused):
        jnp.cos(x) @ W
        jax.debug.callback(lambda v: None, jnp.exp(x))
        return jnp.sin(x)

    flat = jaxprs.inline_calls(jaxprs.read(fun, X, W).jaxpr)
    assert sorted(primitives(flat)) == ["debug_callback", "exp", "sin"] and len(flat.invars) == 2


def test_flattening_keeps_name_scopes():
    def fun(x):
        with jax.named_scope("outer"):
            return jax.jit(lambda y: jax.named_call(jnp.sin, name="inner")(y))(x)

    (eqn,) = jaxprs.inline_calls(jaxprs.read(fun, X).jaxpr).eqns
    assert str(eqn.source_info.name_stack).split("/")[0] == "outer" and "inner" in str(eqn.source_info.name_stack)


def test_a_rule_replaces_equations_and_sees_their_inputs():
    jaxpr = jaxprs.read(lambda x: jnp.sin(x) + jnp.cos(x), X).jaxpr
    seen = []

    def rule(eqn, inputs):
        seen.append((eqn.primitive.name, len(inputs)))
        return [inputs[0] * 10] if eqn.primitive.name == "sin" else None

    (out,) = jaxprs.evaluate(jaxpr, [X], rule)
    assert seen == [("sin", 1), ("cos", 1), ("add", 2)]
    assert_all_close([out], [X * 10 + jnp.cos(X)])


def test_constants_can_be_replaced():
    jaxpr = jaxprs.read(lambda x: x + W[:3], X).jaxpr
    assert_all_close(jaxprs.evaluate(jaxpr, [X], consts=[2 * W]), [X + 2 * W[:3]])


def test_values_are_released_after_their_last_reader():
    """No rule ever sees more references to a dead value than the caller holds."""
    import sys

    jaxpr = jaxprs.read(lambda x: jnp.cos(jnp.sin(jnp.sin(x))), X).jaxpr
    made, counts = [], []

    def rule(eqn, inputs):
        made.append(object())
        counts.append([sys.getrefcount(o) for o in made])
        return [made[-1]]

    jaxprs.evaluate(jaxpr, [object()], rule)
    assert counts[2][0] < counts[1][0]


def test_last_readers_are_equations_or_the_end():
    jaxpr = jaxprs.read(lambda x, y: (jnp.sin(x) + y, x), X, X).jaxpr
    last = jaxprs.last_readers(jaxpr)
    x, y = jaxpr.invars
    assert (last[x], last[y], last[jaxpr.eqns[0].outvars[0]]) == (2, 1, 1)


@pytest.mark.parametrize(
    "shape,size",
    [
        (jax.ShapeDtypeStruct((3, 5), jnp.float32), 60),
        (jax.ShapeDtypeStruct((3, 5), jnp.bfloat16), 30),
        (jax.ShapeDtypeStruct((), jnp.bool_), 1),
        (jax.ShapeDtypeStruct((0, 7), jnp.float32), 0),
        (jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32), 2**42),
        (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5)), 40),
        (jax.eval_shape(lambda: jax.random.key(0, impl="rbg")), 16),
    ],
    ids=str,
)
def test_sizes_in_bytes(shape, size):
    (var,) = jax.make_jaxpr(lambda x: x)(shape).invars
    assert jaxprs.size_bytes(var) == size


def test_bodies_of_equations():
    jaxpr = jaxprs.read(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, _program(x, W)["y"]), X).jaxpr
    bodies = {eqn.primitive.name: [primitives(body) for body in jaxprs.subjaxprs(eqn)] for eqn in jaxpr.eqns}
    assert sorted(bodies["cond"]) == [["cos"], ["sin"]]
    assert bodies["gt"] == [] and "tanh" in bodies["jit"][0]


def test_types_of_variables_keep_weakness():
    (x,) = jax.make_jaxpr(lambda x: x)(2.0).invars
    (y,) = jax.make_jaxpr(lambda x: x)(np.float32(2)).invars
    assert jaxprs.shape_of(x).weak_type and not jaxprs.shape_of(y).weak_type
