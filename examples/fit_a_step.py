"""A whole training step within a budget: parameters, optimizer and gradients count, and nothing inside is edited."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxremat

WIDTH, LAYERS, LENGTH, BATCH, VOCABULARY = 96, 4, 128, 16, 128
optimizer = optax.adamw(1e-3)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        q, k, v = (nn.DenseGeneral((4, WIDTH // 4), name=name)(h) for name in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + nn.Dense(WIDTH, name="out")(mixed.reshape(x.shape))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm()(x))))


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        for i in range(LAYERS):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(VOCABULARY, name="head")(x)


model = LanguageModel()


def train_step(state, tokens):
    """One step as anyone would write it."""

    def loss(params):
        logits = model.apply(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, optimizer_state = optimizer.update(grads, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}, value


def fresh():
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))
    return {"params": params, "optimizer": optimizer.init(params)}


def peak_mib(step, *args):
    m = step.lower(*args).compile().memory_analysis()
    needed = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    return needed / 2**20


def main():
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, VOCABULARY)
    plain = jax.jit(train_step, donate_argnums=0)
    budget = int(0.6 * peak_mib(plain, fresh(), tokens) * 2**20)
    step = jaxremat.jit(train_step, budget=budget, donate_argnums=0)
    print(step.plan(fresh(), tokens), "\n")
    written, within = peak_mib(plain, fresh(), tokens), peak_mib(step, fresh(), tokens)
    print(f"as written {written:.1f} MiB, within the budget {within:.1f} MiB")
    a, b = fresh(), fresh()
    for i in range(3):
        (a, expected), (b, value) = plain(a, tokens), step(b, tokens)
        print(f"step {i}: {expected:.5f} as written, {value:.5f} within the budget")
        assert abs(expected - value) < 1e-4


if __name__ == "__main__":
    main()
