"""Trains a small transformer on real text twice, its step as written and within half the memory: the losses agree."""

import time
from pydoc_data.topics import topics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxremat

LAYERS, WIDTH, HEADS, LENGTH, BATCH, STEPS = 4, 96, 4, 128, 16, 30


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        q, k, v = (nn.DenseGeneral((HEADS, WIDTH // HEADS), name=n)(h) for n in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + nn.Dense(WIDTH, name="out")(mixed.reshape(x.shape))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm()(x))))


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(128, WIDTH)(tokens) + self.param("position", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        for i in range(LAYERS):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(128, name="head")(nn.LayerNorm()(x))


model, optimizer = LanguageModel(), optax.adam(2e-3)


def train_step(state, tokens):
    def loss(params):
        logits = model.apply(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value


def train(step, state, batches):
    """Returns the step's compiled memory in MiB, its median time in milliseconds, and every loss."""
    memory = step.lower(state, batches[0]).compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    losses, seconds = [], []
    for tokens in batches:
        start = time.perf_counter()
        state, value = step(state, tokens)
        losses.append(float(value))
        seconds.append(time.perf_counter() - start)
    return (peak - memory.alias_size_in_bytes) / 2**20, 1e3 * float(np.median(seconds)), losses


text = np.frombuffer("\n".join(topics.values()).encode("ascii", "ignore"), np.uint8)  # the documentation of Python
starts = np.random.default_rng(0).integers(0, len(text) - LENGTH, (STEPS, BATCH, 1))
batches = list(jnp.asarray(text[starts + np.arange(LENGTH)], jnp.int32))
params = jax.jit(model.init)(jax.random.key(0), batches[0])
new_state = lambda: {"params": jax.tree.map(jnp.copy, params), "opt": optimizer.init(params)}

plain_step = jax.jit(train_step, donate_argnums=0)
planned_step = jaxremat.jit(train_step, donate_argnums=0, budget=0.5)
print(planned_step.plan(new_state(), batches[0]), "\n")

plain = train(plain_step, new_state(), batches)
planned = train(planned_step, new_state(), batches)
print(f"{'':18}{'jax.jit':>10}{'jaxremat':>10}")
print(f"{'step, MiB':18}{plain[0]:10.1f}{planned[0]:10.1f}\n{'step, ms':18}{plain[1]:10.1f}{planned[1]:10.1f}")
for i in (0, STEPS // 4, STEPS // 2, STEPS - 1):
    print(f"{f'loss at step {i}':18}{plain[2][i]:10.4f}{planned[2][i]:10.4f}")
assert planned[0] <= 0.5 * plain[0] and planned[2][-1] < 0.8 * planned[2][0], "memory or loss did not go down"
