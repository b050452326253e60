"""Joint programs whose nodes know which equation, or which checkpoint, of the primal program they stem from."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from joint_programs import array, assert_all_close, compiled_joint, cotangents_for, primitives

from jaxremat.trace.joint import trace_joint
from jaxremat.trace.origins import is_mark, mark_of, names_in, place_of, trace_equations, trace_regions
from jaxremat.trace.paths import clean_path, number_of_scope, scope
from jaxremat.trace.primal import read_primal

X, W = array(3, 4), array(4, 4, seed=1)


def _program(x):
    y = jnp.tanh(x @ W)
    z = jnp.sin(y) * y
    return jnp.sum(z * z), jnp.argmax(z)


def test_marks_change_no_value():
    origins = trace_equations(read_primal(_program, (X,), 0, False))
    plain = trace_joint(_program, X)
    ours, theirs = (compiled_joint(joint, (X,), cotangents_for(plain)) for joint in (origins.joint, plain))
    assert_all_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))
    unmarked = [name for name, mark in zip(primitives(origins.joint.jaxpr), origins.marks) if mark is None]
    assert sorted(unmarked) == sorted(primitives(plain.jaxpr))


def test_every_node_stems_from_its_equation():
    primal = read_primal(_program, (X,), 0, False)
    origins = trace_equations(primal)
    forward = ~origins.joint.backward
    for eqn, group, is_forward in zip(origins.joint.eqns, origins.group, forward):
        source = primal.jaxpr.eqns[group].primitive.name
        if is_forward and eqn.primitive.name in ("dot_general", "tanh", "sin", "mul", "argmax"):
            assert source in (eqn.primitive.name, "tanh")  # the derivative of tanh multiplies
    assert set(origins.group) >= set(range(len(primal.jaxpr.eqns)))


def test_floating_results_are_marked_once_in_the_forward():
    primal = read_primal(_program, (X,), 0, False)
    origins = trace_equations(primal)
    marks = [mark for mark, late in zip(origins.marks, origins.joint.backward) if mark is not None and not late]
    floating = [mark_of(i, 0) for i, e in enumerate(primal.jaxpr.eqns) if e.outvars[0].aval.dtype == jnp.float32]
    assert sorted(marks) == sorted(floating) and len(floating) < len(primal.jaxpr.eqns)


def _checkpointed(x):
    def block(x, name):
        y = checkpoint_name(x @ W, name)
        return jnp.sin(y) * y

    x = checkpoint_name(jnp.cos(x), "outside")
    x = jax.checkpoint(lambda x: block(x, "first"))(x)
    x = jax.jit(lambda x: jnp.tanh(x))(x)
    return jnp.sum(jax.checkpoint(lambda x: block(block(x, "second"), "first"))(x))


def test_names_that_checkpoints_can_save():
    assert tuple(names_in(read_primal(_checkpointed, (X,), 0, False).raw)) == ("first", "second")


def test_marks_and_scopes_are_told_apart_from_what_people_write():
    assert place_of(mark_of(12, 3)) == (12, 3)
    assert is_mark(mark_of(12, 3)) and not any(map(is_mark, ("12.3", "@attention", "block@1.0", "")))
    stack = f"transpose(jvp({scope(7)}))/GPT/block_0"
    assert number_of_scope(stack) == 7 and number_of_scope("GPT/block_0") is None
    assert clean_path(stack) == "GPT/block_0" and clean_path("user@7@/x") == "user@7@/x"


def test_names_inside_loops_are_found():
    fun = jax.checkpoint(lambda x: lax.scan(lambda c, _: (checkpoint_name(jnp.sin(c), "deep"), None), x, None, 3)[0])
    assert tuple(names_in(read_primal(fun, (X,), 0, False).raw)) == ("deep",)


def test_checkpoints_are_regions_and_names_are_marks():
    primal = read_primal(_checkpointed, (X,), 0, False)
    origins = trace_regions(primal, primal.raw)
    names, forward = np.asarray(primitives(origins.joint.jaxpr)), ~origins.joint.backward
    assert set(origins.group[names == "tanh"]) == {-1}
    products = [int(g) for g in origins.group[(names == "dot_general") & forward]]
    assert len(set(products)) == 2 and len(products) == 3 and -1 not in products
    found = [mark for mark, early in zip(origins.marks, forward) if mark is not None and early]
    assert found == ["outside", "first", "second", "first"]
    plain = trace_joint(_checkpointed, X)
    ours, theirs = (compiled_joint(joint, (X,), cotangents_for(plain)) for joint in (origins.joint, plain))
    assert_all_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))
