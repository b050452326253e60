"""The forecast of what one device holds, against what XLA does on eight forced CPU devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_process import result_on_devices

from jaxremat.cost.sharding import device_fraction, fraction_inside, is_collective, summed_over_devices
from jaxremat.trace.joint import trace_joint

MESH = AbstractMesh((4, 2), ("data", "model"))


def fractions(fun, shapes, specs, argnums=0):
    """{(primitive, shape): fraction} of the forward and backward of `fun`."""
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    joint = trace_joint(fun, *args, argnums=argnums)
    made = [(eqn.primitive.name, v.aval.shape) for eqn in joint.eqns for v in eqn.outvars]
    found = device_fraction(joint, [spec and NamedSharding(MESH, spec) for spec in specs])
    assert found.shape == (len(made),) and (found > 0).all() and (found <= 1).all()
    return dict(zip(made, found.tolist()))


def test_products_split_over_both_axes():
    found = fractions(lambda w, x: jnp.sum(jnp.tanh(x @ w)), [(8, 6), (16, 8)], [P(None, "model"), P("data")])
    assert found["dot_general", (16, 6)] == 1 / 8
    assert found["tanh", (16, 6)] == 1 / 8
    assert found["dot_general", (6, 8)] == 1 / 2  # the weight's gradient is split like the weight


def test_gradients_of_whole_parameters_are_summed_over_the_devices_that_hold_examples():
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(8, 6), (16, 8)]]
    joint = trace_joint(lambda w, x: jnp.sum(jnp.tanh(x @ w)), *args)
    summed = summed_over_devices(joint, [NamedSharding(MESH, P()), NamedSharding(MESH, P("data"))])
    assert {eqn.primitive.name for eqn, is_sum in zip(joint.eqns, summed) if is_sum} == {"reduce_sum", "dot_general"}
    products = [eqn for eqn, is_sum in zip(joint.eqns, summed) if is_sum and eqn.primitive.name == "dot_general"]
    assert [set(eqn.outvars[0].aval.shape) for eqn in products] == [{8, 6}]
    assert not summed_over_devices(joint, [None, None]).any()


def test_reshapes_transposes_and_reductions():
    def fun(x, y):
        heads = jnp.transpose(jnp.sin(x).reshape(16, 4, 2, 6), (0, 2, 1, 3))
        return jnp.sum(jnp.sum(heads, 3) * y[:, None, None])

    found = fractions(fun, [(16, 4, 12), (16,)], [P("data", None, "model"), None])
    assert found["reshape", (16, 4, 2, 6)] == 1 / 8
    assert found["transpose", (16, 2, 4, 6)] == 1 / 8
    assert found["reduce_sum", (16, 2, 4)] == 1 / 8


def test_a_reshape_that_merges_keeps_the_leading_axis():
    found = fractions(lambda x: jnp.sum(jnp.cos(x).reshape(64, 12)), [(16, 4, 12)], [P("data")])
    assert found["reshape", (64, 12)] == 1 / 4


def test_parts_of_a_divided_axis_are_divided():
    """As queries, keys and values that one product makes, and the gradient that puts them together again."""

    def mixed(w, x):
        q, k, v = jnp.split(x @ w, 3, -1)
        heads = lambda a: a.reshape(16, 8, 2, 4)
        return jnp.sum(
            jnp.sin(heads(q)) * jnp.cos(heads(k)) * jnp.pad(v, ((0, 0), (0, 0), (0, 8))).reshape(16, 8, 4, 4)[:, :, :2]
        )

    found = fractions(mixed, [(8, 24), (16, 8, 8)], [P(None, "model"), P("data")])
    assert found["split", (16, 8, 8)] == found["sin", (16, 8, 2, 4)] == found["pad", (16, 8, 16)] == 1 / 8
    assert found["dot_general", (24, 8)] == 1 / 2


def test_loops_carry_layouts_through():
    def fun(w, x):
        return jnp.sum(lax.scan(lambda c, w: (jnp.tanh(c @ w), c), x, w)[0])

    found = fractions(fun, [(5, 8, 8), (16, 8)], [P(None, None, "model"), P("data")])
    stacks = [part for (name, shape), part in found.items() if name == "scan" and shape == (5, 16, 8)]
    assert stacks and max(stacks) <= 1 / 4


def test_what_a_body_makes_may_be_divided_where_its_results_are_not():
    def loss(w, v, x):
        return jnp.sum(lax.scan(lambda x, _: (x + jnp.tanh(x @ w) @ v, None), x, None, length=3)[0])

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(8, 32), (32, 8), (16, 8)]]
    joint = trace_joint(loss, *args)
    specs = [P(None, "model"), P("model"), P("data")]
    inside = fraction_inside(joint, [NamedSharding(MESH, spec) for spec in specs])
    scans = [eqn.primitive.name == "scan" for eqn in joint.eqns]
    first = inside[scans][0]
    assert 1 / 8 < first < 1 / 5  # rows of 32 by both axes, rows of 8 by one
    assert np.isnan(inside[~np.asarray(scans)]).all()


def test_arguments_without_shardings_are_whole():
    found = fractions(lambda w, x: jnp.sum(x @ w), [(8, 6), (16, 8)], [None, None])
    assert set(found.values()) == {1.0}


def test_collectives_are_recognised_inside_calls():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    total = jax.shard_map(lambda x: lax.psum(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
    eqns = jax.make_jaxpr(lambda x: jnp.sin(jax.jit(total)(x)))(jnp.ones(4)).eqns
    assert [is_collective(eqn) for eqn in eqns] == [True, False]


MESH_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxremat.backends.devices import resolve_target
from jaxremat.loops.decide import Loops
from jaxremat.trace.primal import read_primal

mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
both = P("data", "model")
mean = jax.shard_map(lambda x: x - lax.pmean(x, "model"), mesh=mesh, in_specs=both, out_specs=both)

def loss(ws, x):
    def body(c, w):
        h = lax.with_sharding_constraint(jnp.tanh(c @ w), NamedSharding(mesh, both))
        h = mean(jnp.sin(h) * jnp.cos(h))
        return h @ w.T + c, None
    return jnp.mean(lax.scan(body, x, ws)[0] ** 2)

rng = np.random.default_rng(0)
normal = lambda shape: jnp.asarray(rng.normal(size=shape) / 8, jnp.float32)
place = lambda spec, *shape: jax.device_put(normal(shape), NamedSharding(mesh, spec))
ws, x = place(P(None, None, "model"), 9, 64, 128), place(P("data"), 512, 64)
loops = Loops(read_primal(loss, (ws, x), 0, False), resolve_target("cpu"))

def peak(fun):
    m = jax.jit(jax.value_and_grad(fun)).lower(ws, x).compile().memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes

_, plain = jax.jit(jax.value_and_grad(loss))(ws, x)
rows = []
for price in (0.0, 1e-8, 1.0):
    run = loops.emitted(loops.decide(price))
    planned = lambda *args: run(args)[0]
    _, gradient = jax.jit(jax.value_and_grad(planned))(ws, x)
    error = float(jnp.abs(gradient - plain).max() / jnp.abs(plain).max())
    rows.append([peak(planned), error, gradient.sharding.is_equivalent_to(plain.sharding, 3)])
print("RESULT", json.dumps([peak(loss), rows]))
"""


@pytest.fixture(scope="module")
def on_a_mesh():
    return result_on_devices(8, MESH_PROGRAM)


def test_mesh_gradients_and_shardings(on_a_mesh):
    _, rows = on_a_mesh
    assert all(error < 1e-5 for _, error, _ in rows)
    assert all(same for _, _, same in rows)


def test_mesh_memory_falls_per_device(on_a_mesh):
    plain, rows = on_a_mesh
    peaks = np.asarray([peak for peak, _, _ in rows])
    assert peaks[-1] < 0.6 * plain
