"""The joint program of all kinds of functions computes what `jax.vjp` computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from joint_programs import (
    array,
    assert_all_close,
    assert_joint_equals_jax,
    compiled_joint,
    cotangents_for,
    primitives,
    run_joint,
)

from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import trace_joint

X, W = array(3, 4), array(4, 4, seed=1)


def _elementwise(x):
    return jnp.tanh(x) * jnp.exp(-(x**2)) + jnp.sin(x) / (2 + jnp.cos(x)) + jnp.log1p(jnp.abs(x)) ** 1.5


def _indexing(x):
    picked = x[jnp.array([2, 0, 2]), 1:] * 2
    return x.at[1, ::2].add(3.0).at[0].set(picked[1, 0]).sum() + lax.dynamic_slice(x, (1, 1), (2, 2)) @ picked[:2, :2]


def _orders(x):
    return jnp.sort(x, 0), jnp.cumsum(x, 1), jnp.max(x), lax.top_k(x, 2)[0], jnp.argmax(x), jnp.median(x)


def _images(x):
    kernel = x[:2, :2].reshape(1, 1, 2, 2)
    return lax.conv_general_dilated(jnp.outer(x[0], x[1]).reshape(1, 1, 4, 4), kernel, (1, 1), "SAME")


def _linear_algebra(x):
    positive = x @ x.T + 3 * jnp.eye(3)
    return jnp.linalg.cholesky(positive), jnp.linalg.solve(positive, x), jnp.linalg.slogdet(positive)[1]


def _control_flow(x):
    x = lax.cond(x[0, 0] > 0, lambda y: jnp.sin(y), lambda y: y * y, x)
    x, seen = lax.scan(lambda c, row: (jnp.tanh(c + row), c.sum()), x, jnp.stack([x, 2 * x]))
    steps = lax.while_loop(lambda s: s[1] < 5, lambda s: (s[0] * 2, s[1] + 1), (1.0, 0))[0]
    return lax.fori_loop(0, 3, lambda i, c: c * 0.5 + i, x) * steps, seen


def _half_precision(x):
    return (x.astype(jnp.bfloat16) @ W.astype(jnp.bfloat16)).astype(jnp.float32) * x.astype(jnp.float16)


def _calls(x):
    inner = jax.jit(lambda y: jax.jit(jnp.sin)(y) * 2)
    saved = jax.checkpoint(lambda y: jnp.cos(inner(y)) @ W, policy=jax.checkpoint_policies.dots_saveable)
    return jax.checkpoint(lambda y: saved(y) + inner(y))(x)


def _constants(x):
    table = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    return x * table + W[0] + 3, jnp.ones(5)


def _fourier(x):
    return jnp.abs(jnp.fft.fft(x)) ** 2, jnp.fft.rfft(x).imag


PROGRAMS = (
    _elementwise, _indexing, _orders, _images, _linear_algebra, _control_flow, _calls, _constants, _fourier,
)  # fmt: skip


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda f: f.__name__.strip("_"))
def test_joint_equals_jax(fun):
    assert_joint_equals_jax(fun, X)


def test_half_precision_is_differentiated_in_half_precision():
    joint = assert_joint_equals_jax(_half_precision, X, rtol=1e-2)
    assert {str(v.aval.dtype) for eqn in joint.eqns for v in eqn.outvars} >= {"bfloat16", "float16"}


def test_trees_in_and_out():
    def fun(params, batch):
        y = jnp.tanh(batch["x"] @ params["w"][0]) + params["b"]
        return {"y": (y, None), "z": [params["w"][1] * y.sum()]}

    params = {"b": array(4, seed=2), "w": [W, array(2, seed=3)], "nothing": None, "empty": ()}
    joint = assert_joint_equals_jax(fun, params, {"x": X}, argnums=(0, 1))
    assert jax.tree.unflatten(joint.primal.out_tree, [0, 1]) == {"y": (0, None), "z": [1]}
    assert jax.tree.unflatten(joint.primal.in_tree, range(4)) == (
        {"b": 0, "w": [1, 2], "nothing": None, "empty": ()},
        {"x": 3},
    )


@pytest.mark.parametrize(
    "argnums,wrt", [(0, (0,)), (1, (1,)), (-1, (2,)), ((0, 2), (0, 2)), ((2, 0), (0, 2)), ([1], (1,))]
)
def test_argnums_mean_what_they_mean_in_jax(argnums, wrt):
    joint = assert_joint_equals_jax(lambda a, b, c: jnp.sin(a) * b + c**2 * a, X, 2 * X, X + 1, argnums=argnums)
    assert joint.primal.wrt == wrt and len(joint.gradients) == len(wrt)


def test_auxiliary_results_receive_no_cotangent():
    def fun(x):
        y = jnp.sin(x)
        return (y.sum(), y**2), {"seen": y, "count": jnp.int32(3)}

    joint = assert_joint_equals_jax(fun, X, has_aux=True)
    assert joint.primal.cotangents_of == (0, 1) and len(joint.cotangents) == 2 and len(joint.outputs) == 4


def test_integers_and_booleans_pass_through():
    def fun(x, index, mask, labels):
        y = jnp.where(mask, x, x[index])
        return y * labels[:, None], labels + 1, mask & (y > 0)

    joint = assert_joint_equals_jax(fun, X, jnp.int32(1), X > 0, jnp.array([1, 0, 2]))
    assert joint.primal.cotangents_of == (0,)


def test_results_that_are_inputs_constants_or_independent():
    def fun(x, unused):
        return x, jnp.float32(3), jnp.zeros(2), x, jnp.cos(x)

    joint = assert_joint_equals_jax(fun, X, 2 * X, argnums=(0, 1))
    (_, zero) = compiled_joint(joint, (X, 2 * X), cotangents_for(joint))[1]
    assert not zero.any()


def test_python_scalars_are_weakly_typed_as_in_jax():
    joint = assert_joint_equals_jax(lambda x, y: jnp.sin(x) * y, 0.3, X.astype(jnp.bfloat16), argnums=(0, 1), rtol=1e-2)
    assert joint.outputs[0].aval.dtype == jnp.bfloat16


def test_shapes_are_enough():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    abstract = trace_joint(_elementwise, shape)
    assert abstract.primal.fingerprint == trace_joint(_elementwise, X).primal.fingerprint
    assert_all_close(*(compiled_joint(j, (X,), cotangents_for(j))[1] for j in (abstract, trace_joint(_elementwise, X))))


def test_outer_tracers_become_inputs_and_are_differentiated():
    found = []

    def outer(w, n):
        def inner(x):
            return jnp.tanh(x @ w) * n

        joint = trace_joint(inner, X)
        found.append(joint)
        (out,), gradients = run_joint(joint, (X,), cotangents_for(joint))
        return out, gradients

    out, gradients = jax.jit(outer)(W, jnp.int32(2))
    (joint,) = found
    assert len(joint.primal.captured) == 2
    assert sorted(str(v.aval.dtype) for v in joint.inputs) == ["float32", "float32", "int32"]
    assert len(joint.primal.wrt) == 2  # the integer is not differentiated
    _, pull_back = jax.vjp(lambda w, x: jnp.tanh(x @ w) * 2, W, X)
    assert_all_close([out], [jnp.tanh(X @ W) * 2])
    assert_all_close(gradients, pull_back(cotangents_for(joint)[0]))


@jax.custom_jvp
def _odd_slope(x):
    return jnp.sin(x)


_odd_slope.defjvp(lambda primals, tangents: (_odd_slope(*primals), 7.0 * primals[0] * tangents[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _odd_pull_back(x, scale):
    return jnp.sin(x) * scale


_odd_pull_back.defvjp(lambda x, scale: (jnp.sin(x) * scale, x), lambda scale, x, g: (g * x * 5 * scale,))


@pytest.mark.parametrize("fun,slope", [(_odd_slope, 7), (lambda x: _odd_pull_back(x, 2), 10)], ids=["jvp", "vjp"])
def test_custom_rules_are_followed(fun, slope):
    joint = assert_joint_equals_jax(fun, X)
    (gradient,) = compiled_joint(joint, (X,), [np.ones_like(X)])[1]
    assert_all_close([gradient], [slope * X])


def test_custom_rules_of_what_is_not_differentiated_stay_for_the_second_order():
    """The joint program for x, differentiated by y: the odd slope of y counts."""
    joint = assert_joint_equals_jax(lambda x, y: x * _odd_slope(y), X, 2 * X)
    assert "custom_jvp_call" in primitives(joint.jaxpr)
    second = jax.grad(lambda y: run_joint(joint, (X, y), [np.ones_like(X)])[1][0].sum())(2 * X)
    assert_all_close([second], [14 * X])


def test_second_order_through_the_joint_program():
    joint = trace_joint(_elementwise, X)
    ours = jax.grad(lambda x: run_joint(joint, (x,), [jnp.ones_like(x)])[1][0].sum())(X)
    theirs = jax.jit(jax.grad(lambda x: jax.grad(lambda y: _elementwise(y).sum())(x).sum()))(X)
    assert_all_close([ours], [theirs], rtol=1e-4)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_dropout_draws_the_same_numbers(key):
    def fun(x, key):
        first, second = jax.random.split(key)
        x = jnp.where(jax.random.bernoulli(first, 0.5, x.shape), jnp.sin(x) * 2, 0.0)
        return x @ jax.random.normal(second, (4, 4)), second

    joint = assert_joint_equals_jax(fun, X, key)
    (y, second), _ = compiled_joint(joint, (X, key), cotangents_for(joint))
    assert_all_close([y, second], fun(X, key), rtol=1e-6)


def test_a_key_in_the_closure_is_a_constant():
    key = jax.random.key(5)
    joint = assert_joint_equals_jax(lambda x: x * jax.random.uniform(key, x.shape), X)
    assert len(joint.inputs) == 1


def test_stop_gradient_stops():
    joint = assert_joint_equals_jax(lambda x: lax.stop_gradient(jnp.sin(x)) * x, X)
    (gradient,) = compiled_joint(joint, (X,), [np.ones_like(X)])[1]
    assert_all_close([gradient], [jnp.sin(X)])
    assert "cos" not in primitives(joint.jaxpr)


def test_complex_numbers():
    z = array(3) + 1j * array(3, seed=1)
    assert_joint_equals_jax(lambda z: (jnp.sin(z) * jnp.conj(z) + z.real**2, jnp.abs(z)), z)
    real_loss = lambda z: jnp.sum(jnp.abs(jnp.exp(z) * z) ** 2)
    joint = trace_joint(real_loss, z)
    assert_all_close(compiled_joint(joint, (z,), [jnp.float32(1)])[1], [jax.grad(real_loss)(z)])


def test_calls_are_inlined_and_loops_stay():
    calls = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"}
    assert not calls & set(primitives(trace_joint(_calls, X).jaxpr))
    structured = primitives(trace_joint(_control_flow, X).jaxpr)
    assert structured.count("scan") >= 2 and "cond" in structured and not calls & set(structured)


def test_the_raw_program_keeps_the_authors_checkpoints():
    primal = trace_joint(_calls, X).primal
    assert any(map(jaxprs.is_checkpoint, primal.raw.eqns)) and not any(map(jaxprs.is_checkpoint, primal.jaxpr.eqns))


def _new_primitive(name, run, jvp=None):
    """A primitive as another library would define it."""
    primitive = Primitive(name)
    primitive.def_impl(run)
    primitive.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))
    if jvp is not None:
        ad.defjvp(primitive, jvp)
    return primitive


def test_primitives_of_other_libraries():
    doubled = _new_primitive("doubled", lambda x: 2 * x)
    ad.deflinear(doubled, lambda g: [doubled.bind(g)])
    wave = _new_primitive("wave", jnp.sin, lambda g, x: doubled.bind(g) * jnp.cos(x))
    rounded = _new_primitive("rounded", jnp.round)

    def fun(x):
        return wave.bind(x) * rounded.bind(lax.stop_gradient(3 * x)) + doubled.bind(x)

    joint = assert_joint_equals_jax(fun, X)
    names = np.asarray(primitives(joint.jaxpr))
    assert joint.backward[names == "doubled"].tolist() == [False, True, True]
    assert not joint.backward[names == "wave"].any() and not joint.backward[names == "rounded"].any()
    (gradient,) = compiled_joint(joint, (X,), [np.ones_like(X)])[1]
    assert_all_close([gradient], [2 * jnp.cos(X) * jnp.round(3 * X) + 2])
