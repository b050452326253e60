"""Meshes of every kind of axes: gradients are the plain ones, and a budget is one device's share."""

import pytest
from mesh_process import result_on_devices

PROGRAM = """
import json, logging, io, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxremat

log = io.StringIO()
logging.getLogger("jaxremat").addHandler(logging.StreamHandler(log))
W = [0.1 * jax.random.normal(k, (64, 64)) for k in jax.random.split(jax.random.key(0), 6)]
X = jax.random.normal(jax.random.key(9), (16384, 64))
rows = {}

def stack(p, x):
    for w in p:
        x = x + jnp.tanh(x @ w)
    return (x**2).mean()

def over_stack(p, x):
    x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, jnp.stack(p))
    return (x**2).mean()

def compiled(fun, *args):
    return jax.jit(jax.value_and_grad(fun)).lower(*args).compile()

def peak(program):
    m = program.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes

def error(*results):
    pairs = zip(*map(jax.tree.leaves, results))
    return max(float(np.abs(np.asarray(u) - np.asarray(v)).max()) for u, v in pairs)

def row(name, plain, ours, *args):
    planned = compiled(ours, *args)
    rows[name] = [peak(planned) / peak(plain), error(plain(*args), planned(*args))]

def meshed(kinds, *shape):
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(kinds,) * len(shape))

def placed(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, P(*spec)))

for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = meshed(kind, 4)
    p, x = placed(mesh, W), placed(mesh, X, "data")
    plain = compiled(stack, p, x)
    budget = int(0.7 * peak(plain))
    where = (NamedSharding(mesh, P()), NamedSharding(mesh, P("data")))
    given = {} if kind == AxisType.Explicit else {"in_shardings": where}
    row(f"{kind.name} decorated", plain, jaxremat.remat(stack, budget=budget, **given), p, x)
    row(f"{kind.name} planned", plain, jaxremat.plan(stack, p, x, budget=budget).apply(stack), p, x)
    scanned = jaxremat.plan(over_stack, p, x, budget=0.7).apply(over_stack)
    row(f"{kind.name} scan", compiled(over_stack, p, x), scanned, p, x)
    with jax.set_mesh(mesh):
        row(f"{kind.name} set", plain, jaxremat.remat(stack, budget=budget, **given), p, x)
        row(f"{kind.name} spec", plain, jaxremat.remat(stack, budget=budget, in_shardings=(P(), P("data"))), p, x)
        closed = lambda p, x: jaxremat.remat(lambda x: stack(p, x), budget=budget, in_shardings=P("data"))(x)
        row(f"{kind.name} closure", plain, closed, p, x)

two = meshed(AxisType.Auto, 2, 2)
p, x = placed(two, W, None, "model"), placed(two, X, "data")
plain = compiled(stack, p, x)
row("sharded parameters", plain, jaxremat.plan(stack, p, x, budget=int(0.75 * peak(plain))).apply(stack), p, x)

where = (NamedSharding(two, P(None, "model")), NamedSharding(two, P("data")))
budget = int(0.75 * peak(plain))
row("sharded columns, decorated", plain, jaxremat.remat(stack, budget=budget, in_shardings=where), p, x)
compiled(jaxremat.remat(stack, budget=budget, in_shardings=where, verify="replay"), p, x)
assert log.getvalue().count("are a forecast") == 1, log.getvalue()
log.truncate(0)

mesh = meshed(AxisType.Auto, 4)
p, x = placed(mesh, W), placed(mesh, X, "data")
for check in (True, False):
    def sharded(local):
        mean = lambda p, x: jax.lax.pmean(local(p, x), "data")
        return jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check)
    row(f"manual {check}", compiled(sharded(stack), p, x), sharded(jaxremat.remat(stack, budget=0.7)), p, x)

assert "in_shardings" not in log.getvalue(), log.getvalue()
with jax.set_mesh(mesh):
    for _ in range(2):
        compiled(jaxremat.remat(stack, budget="1GiB"), p, x)
told = log.getvalue().count("in_shardings")
try:
    jax.grad(jaxremat.remat(stack, budget=0.7, in_shardings=(P(), P(), P())))(W, X)
except jaxremat.ArgumentError as refused:
    told = [told, str(refused)]
print("RESULT", json.dumps([rows, told]))
"""


@pytest.fixture(scope="module")
def found():
    return result_on_devices(4, PROGRAM)


def test_gradients_are_the_plain_ones(found):
    rows, _ = found
    assert len(rows) == 16
    assert all(error < 1e-5 for _, error in rows.values()), rows


def test_the_budget_is_one_devices_share(found):
    rows, _ = found
    assert all(ratio <= 0.75 for name, (ratio, _) in rows.items() if "manual" not in name and "closure" not in name), (
        rows
    )
    assert all(ratio < 0.9 for ratio, _ in rows.values()), rows


def test_where_nothing_says_where_arguments_are_that_is_told_once(found):
    _, (told, refused) = found
    assert told == 1
    assert "in_shardings" in refused
