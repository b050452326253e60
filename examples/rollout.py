"""A rollout whose gradient does not fit as written: a thousand steps of a wave, and the gradient of its first state."""

import jax
import jax.numpy as jnp

import jaxremat

GRID, STEPS, BUDGET = 128, 1000, "24MiB"


def laplacian(u):
    return sum(jnp.roll(u, shift, axis) for shift in (-1, 1) for axis in (0, 1)) - 4 * u


def error(first, speed, target):
    """How far a wave that starts as `first` is from `target` in the end."""

    def step(state, _):
        u, v = state
        v = v + 0.1 * (speed * laplacian(u) - jnp.sin(u))
        return (u + 0.1 * v, v), None

    (last, _), _ = jax.lax.scan(step, (first, jnp.zeros_like(first)), None, length=STEPS)
    return jnp.mean((last - target) ** 2)


def peak_mib(fun, *args):
    memory = jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis()
    return (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes) / 2**20


def main():
    x, y = jnp.meshgrid(jnp.linspace(-3, 3, GRID), jnp.linspace(-3, 3, GRID))
    target, speed = jnp.exp(-(x**2) - y**2), jnp.ones((GRID, GRID))
    first = jnp.zeros((GRID, GRID))
    plan = jaxremat.plan(error, first, speed, target, budget=BUDGET)
    print(plan, "\n")
    planned = plan.apply(error)
    as_written, within = peak_mib(error, first, speed, target), peak_mib(planned, first, speed, target)
    print(f"gradient: {as_written:.0f} MiB as written, {within:.1f} MiB within {BUDGET}")
    descend = jax.jit(jax.value_and_grad(planned))
    for i in range(5):
        value, gradient = descend(first, speed, target)
        first = first - 0.1 * gradient / jnp.abs(gradient).max()
        print(f"iteration {i}: error {value:.5f}")
    assert within <= 24 < as_written


if __name__ == "__main__":
    main()
