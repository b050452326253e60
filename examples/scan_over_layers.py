"""A scanned stack of layers under falling budgets: what the layers keep, where the loop splits, where it nests."""

import jax
import jax.numpy as jnp

import jaxremat

LAYERS, WIDTH, TOKENS = 24, 256, 2048


def loss_fn(params, x):
    def layer(x, w):
        hidden = jax.nn.gelu(x @ w["up"])
        return x + jnp.tanh(hidden @ w["down"]), None

    x, _ = jax.lax.scan(layer, x, params)
    return jnp.mean(x**2)


def compiled_bytes(fun, *args):
    memory = jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def main():
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.float32)
    params = {"up": shape(LAYERS, WIDTH, 4 * WIDTH), "down": shape(LAYERS, 4 * WIDTH, WIDTH)}
    x = shape(TOKENS, WIDTH)
    plain = compiled_bytes(loss_fn, params, x)
    print(f"{'budget':>10} {'compiled':>10} {'extra time':>11}")
    print(f"{'none':>10} {plain / 2**20:>6.0f} MiB {0:>11.1%}")
    for fraction in (0.8, 0.6, 0.4):
        plan = jaxremat.plan(loss_fn, params, x, budget=int(plain * fraction))
        used = compiled_bytes(plan.apply(loss_fn), params, x)
        print(f"{plain * fraction / 2**20:>6.0f} MiB {used / 2**20:>6.0f} MiB {plan.overhead:>11.1%}")
        assert used <= plain * fraction


if __name__ == "__main__":
    main()
