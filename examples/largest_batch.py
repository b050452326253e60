"""How large may the batch be? One step, one budget, sizes tried by prediction, the chosen one compiled and trained."""

import jax
import jax.numpy as jnp
import optax

import jaxremat

WIDTH, LAYERS, BUDGET = 128, 8, "64MiB"
optimizer = optax.adamw(1e-3)


def train_step(state, batch):
    """One step as anyone would write it."""

    def loss(params):
        x = batch
        for w in params:
            x = x + jax.nn.gelu(x @ w["up"]) @ w["down"]
        return jnp.mean((x - jnp.sin(batch)) ** 2)

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value


def fresh():
    keys = jax.random.split(jax.random.key(0), 2 * LAYERS)
    random = lambda key, *shape: jax.random.normal(key, shape) / 50
    params = [{"up": random(a, WIDTH, 512), "down": random(b, 512, WIDTH)} for a, b in zip(keys[::2], keys[1::2])]
    return {"params": params, "opt": optimizer.init(params)}


def main():
    state = jax.eval_shape(fresh)
    args_for = lambda size: (state, jax.ShapeDtypeStruct((size, WIDTH), jnp.float32))
    sizes = range(256, 4097, 256)
    best = jaxremat.largest_batch(train_step, args_for, sizes=sizes, budget=BUDGET, donate_argnums=0)
    print(best, "\n")
    step = jaxremat.jit(train_step, budget=BUDGET, donate_argnums=0)
    state, batch = fresh(), jax.random.normal(jax.random.key(1), (best.size, WIDTH))
    losses = []
    for _ in range(10):
        state, value = step(state, batch)
        losses.append(float(value))
    print(f"trained with batches of {best.size} within {BUDGET}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    assert losses[-1] < losses[0]


if __name__ == "__main__":
    main()
