"""Data and tensor parallel on eight devices: the budget holds per device, and shardings survive.

Run it anywhere: XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/mesh.py
"""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxremat

LAYERS, WIDTH, BATCH = 12, 256, 4096


def loss_fn(params, x):
    def layer(x, w):
        hidden = jax.nn.gelu(x @ w["up"])
        return x + jnp.tanh(hidden @ w["down"]), None

    x, _ = jax.lax.scan(layer, x, params)
    return jnp.mean(x**2)


def compile_gradient(fun, *args):
    return jax.jit(jax.value_and_grad(fun)).lower(*args).compile()


def device_bytes(executable):
    memory = executable.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def main():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    shape = lambda spec, *dims: jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))
    params = {
        "up": shape(P(None, None, "model"), LAYERS, WIDTH, 4 * WIDTH),
        "down": shape(P(None, "model", None), LAYERS, 4 * WIDTH, WIDTH),
    }
    x = shape(P("data"), BATCH, WIDTH)
    plain = compile_gradient(loss_fn, params, x)
    budget = int(0.6 * device_bytes(plain))
    plan = jaxremat.plan(loss_fn, params, x, budget=budget)
    planned = compile_gradient(plan.apply(loss_fn), params, x)
    print(f"plain    {device_bytes(plain) / 2**20:6.1f} MiB per device")
    print(f"budget   {budget / 2**20:6.1f} MiB per device")
    print(f"planned  {device_bytes(planned) / 2**20:6.1f} MiB per device, {plan.overhead:.1%} more time")
    _, gradients = planned.output_shardings
    print("gradient of 'up' is laid out as", gradients["up"].spec)
    assert device_bytes(planned) <= budget


if __name__ == "__main__":
    main()
