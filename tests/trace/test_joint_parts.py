"""What a joint program says of itself: which part is the backward, what has effects, and its fingerprint."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from joint_programs import array, primitives

from jaxremat.cost.pricing import price
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.fingerprint import describe
from jaxremat.trace.joint import trace_joint

X, W = array(3, 4), array(4, 4, seed=1)


def reaches_backward(joint) -> list[bool]:
    """By its definition: a path leads from a cotangent to the equation."""
    late = set(joint.cotangents)
    flags = []
    for eqn in joint.eqns:
        flags.append(bool(late & set(jaxprs.vars_of(eqn.invars))))
        late |= set(eqn.outvars) if flags[-1] else set()
    return flags


def test_the_backward_is_what_depends_on_a_cotangent():
    def fun(x):
        y = jnp.sin(x) @ W
        return jnp.sum(jnp.tanh(y) * y), y

    joint = trace_joint(fun, X)
    reached = reaches_backward(joint)
    names = np.asarray(primitives(joint.jaxpr))
    late = joint.backward
    assert late.tolist() == reached and 0 < late.sum() < late.size
    assert "cos" in names[~late] and "sin" in names[~late] and "tanh" in names[~late]
    assert sorted(names[names == "dot_general"]) == ["dot_general"] * 2
    assert late[names == "dot_general"].tolist() == [False, True]


def test_constants_belong_to_both_parts():
    """Numbers spread over an array, and counts, wherever they are made; not what depends on an input."""
    run = lambda x: jnp.sin(x) * lax.iota(jnp.float32, 4) + jnp.broadcast_to(x[0, 0], x.shape)
    fun = jax.custom_vjp(run)
    fun.defvjp(lambda x: (run(x), ()), lambda _, g: (g * jnp.full(g.shape, 3.0) * lax.iota(jnp.float32, 4),))
    joint = trace_joint(fun, X)
    made = [eqn.primitive.name for eqn in joint.constants]
    assert made.count("iota") == 2 and made.count("broadcast_in_dim") >= 1
    assert primitives(joint.jaxpr).count("broadcast_in_dim") > 1
    spread = {v for eqn in joint.constants for v in eqn.outvars}
    assert all(spread.issuperset(jaxprs.vars_of(eqn.invars)) for eqn in joint.constants)
    ids = set(map(id, joint.constants))
    assert not any(late for eqn, late in zip(joint.eqns, joint.backward) if id(eqn) in ids)


def test_the_parts_of_inputs_and_outputs():
    joint = trace_joint(lambda x, n, w: (x @ w * n, jnp.sum(w), n + 1), X, jnp.int32(3), W, argnums=(0, 2))
    shapes = lambda atoms: [(atom.aval.shape, str(atom.aval.dtype)) for atom in atoms]
    assert shapes(joint.inputs) == [((3, 4), "float32"), ((), "int32"), ((4, 4), "float32")]
    assert shapes(joint.outputs) == [((3, 4), "float32"), ((), "float32"), ((), "int32")]
    assert shapes(joint.cotangents) == [((3, 4), "float32"), ((), "float32")]
    assert shapes(joint.gradients) == [((3, 4), "float32"), ((4, 4), "float32")]


def _printing(x):
    y = jnp.sin(x)
    jax.debug.callback(lambda v: None, y)
    return jnp.sum(y * y)


def _writing(ordered):
    def fun(x):
        io_callback(lambda v: None, None, lax.stop_gradient(x), ordered=ordered)
        return jnp.sum(jnp.sin(x))

    return fun


def _printing_in_a_loop(x):
    def body(c, _):
        jax.debug.callback(lambda v: None, c)
        return jnp.sin(c), None

    return jnp.sum(lax.scan(body, x, None, length=3)[0])


@pytest.mark.parametrize(
    "fun,name",
    [
        (_printing, "debug_callback"),
        (_writing(True), "io_callback"),
        (_writing(False), "io_callback"),
        (_printing_in_a_loop, "scan"),
    ],
    ids=["debug", "ordered", "unordered", "in a loop"],
)
def test_effects_are_pinned_and_belong_to_the_forward(fun, name):
    joint = trace_joint(fun, X)
    graph = price(joint)
    pinned = np.flatnonzero(graph.pinned)
    assert [joint.eqns[i].primitive.name for i in pinned] == [name]
    assert [jaxprs.has_effects(eqn) for eqn in joint.eqns] == graph.pinned.tolist()
    assert not joint.backward[pinned].any()


def test_pure_callbacks_are_functions_like_any_other():
    def fun(x, used):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        y = jax.pure_callback(np.cos, shape, lax.stop_gradient(x), vmap_method="expand_dims")
        return jnp.sum(jnp.sin(x) * (y if used else 1))

    joint = trace_joint(lambda x: fun(x, True), X)
    assert "pure_callback" in primitives(joint.jaxpr) and not price(joint).pinned.any()
    assert "pure_callback" not in primitives(trace_joint(lambda x: fun(x, False), X).jaxpr)


def test_effects_survive_where_nothing_reads_their_results():
    def fun(x):
        jax.debug.callback(lambda v: None, jnp.cos(x) ** 3)
        return jnp.sum(x)

    names = primitives(trace_joint(fun, X).jaxpr)
    assert "debug_callback" in names and names.index("cos") < names.index("debug_callback")


def fingerprint(fun, *args, **kwargs):
    return trace_joint(fun, *args, **kwargs).primal.fingerprint


def _program(x, scale=2.0, steps=3):
    y = jax.jit(lambda v: jnp.tanh(v @ W))(x) * scale
    return jnp.sum(lax.scan(lambda c, _: (jnp.sin(c) * _odd(c), None), y, None, length=steps)[0])


@jax.custom_jvp
def _odd(x):
    return x + 1


_odd.defjvp(lambda p, t: (_odd(*p), t[0]))


def test_one_program_traced_twice_has_one_fingerprint():
    assert fingerprint(_program, X) == fingerprint(_program, X + 1)
    assert fingerprint(lambda x: _program(x), X) == fingerprint(_program, jax.ShapeDtypeStruct(X.shape, X.dtype))


def _of_two(x, y):
    return _program(x) + 0 * y.sum()


_OTHERS = {
    "an operation": (lambda x: _program(jnp.sin(x)), X),
    "a literal": (lambda x: _program(x, 3.0), X),
    "the length of a loop": (lambda x: _program(x, steps=4), X),
    "a shape": (_program, X[:2]),
    "a dtype": (_program, X.astype(jnp.bfloat16)),
}


@pytest.mark.parametrize("what", _OTHERS)
def test_another_program_has_another_fingerprint(what):
    assert fingerprint(*_OTHERS[what]) != fingerprint(_program, X)


def test_the_order_of_operands_and_what_is_differentiated_count():
    assert fingerprint(lambda x: x @ W - W.sum(), X) != fingerprint(lambda x: W.sum() - x @ W, X)
    assert fingerprint(_of_two, X, X) != fingerprint(_of_two, X, X, argnums=1)
    assert fingerprint(lambda x: (x, x), X) != fingerprint(lambda x: (x, x), X, has_aux=True)


def test_a_body_that_differs_makes_another_fingerprint():
    def looping(step):
        return lambda x: jnp.sum(lax.scan(lambda c, _: (step(c), None), x, None, length=3)[0])

    branching = lambda other: lambda x: lax.cond(x[0, 0] > 0, jnp.sin, other, x)
    assert fingerprint(looping(jnp.sin), X) != fingerprint(looping(jnp.cos), X)
    assert fingerprint(branching(jnp.tanh), X) != fingerprint(branching(jnp.cos), X)


def test_a_description_holds_no_address_and_one_line_per_equation():
    jaxpr = trace_joint(lambda x: _program(x) + _printing(x), X).primal.jaxpr
    lines = describe(jaxpr)
    assert len(lines) == len(jaxpr.constvars) + len(jaxpr.invars) + len(jaxpr.eqns) + 1
    assert "0x" not in "".join(lines) and lines[-1].startswith("return")


_IN_ANOTHER_PROCESS = """
import jax.numpy as jnp
from jax import lax
from jaxremat.trace.joint import trace_joint
def fun(x):
    return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c) @ x.T @ c, None), x, None, length=3)[0])
print(trace_joint(fun, jnp.ones((3, 4))).primal.fingerprint)
"""


def test_fingerprints_hold_in_another_process():
    def fun(x):
        return jnp.sum(lax.scan(lambda c, _: (jnp.tanh(c) @ x.T @ c, None), x, None, length=3)[0])

    code = [sys.executable, "-c", _IN_ANOTHER_PROCESS]
    told = subprocess.run(code, capture_output=True, text=True, timeout=120, check=True).stdout.strip()
    assert told == fingerprint(fun, X)
