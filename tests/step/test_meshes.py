"""Steps on a mesh of four devices, in a process of its own: the budget is one device's share."""

import pytest
from mesh_process import result_on_devices

PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxremat

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

def step(params, x):
    def loss(params):
        h = x
        for w in params:
            h = h + jnp.tanh(h @ w)
        return (h**2).mean()
    value, grads = jax.value_and_grad(loss)(params)
    return [p - 0.1 * g for p, g in zip(params, grads)], value

def peak(compiled):
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes

shape = lambda dims, sharding=None: jax.ShapeDtypeStruct(dims, jnp.float32, sharding=sharding)
placed = [shape((64, 64), whole)] * 12, shape((16384, 64), rows)
written = peak(jax.jit(step, donate_argnums=0).lower(*placed).compile())
budget = int(0.65 * written)
planned = jaxremat.jit(step, budget=budget, donate_argnums=0)
asked = jaxremat.jit(
    step, budget=budget, donate_argnums=0, in_shardings=(whole, rows), out_shardings=(whole, None)
)
ratios = [peak(planned.lower(*placed).compile()) / written]
ratios.append(peak(asked.lower([shape((64, 64))] * 12, shape((16384, 64))).compile()) / written)
params = lambda: [jax.device_put(jnp.eye(64) * 0.1, whole) for _ in range(12)]
x = jax.device_put(jnp.linspace(0, 1, 16384 * 64).reshape(16384, 64), rows)
given = params()
new, value = planned(given, x)
expected, plain = jax.jit(step)(params(), x)
error = max(float(jnp.abs(a - b).max()) for a, b in zip([*new, value], [*expected, plain]))
print("RESULT", json.dumps([ratios, error, new[0].sharding == expected[0].sharding, given[0].is_deleted()]))
"""


@pytest.fixture(scope="module")
def found():
    return result_on_devices(4, PROGRAM)


def test_budget_is_one_devices_share(found):
    ratios, _, _, _ = found
    assert len(ratios) == 2 and all(ratio <= 0.65 for ratio in ratios), ratios


def test_step_keeps_its_values_its_shardings_and_its_donation(found):
    _, error, same_sharding, donated = found
    assert error < 1e-3
    assert same_sharding and donated
