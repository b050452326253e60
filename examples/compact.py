"""Trains one small language model in full and with CompAct, and prints memory and loss side by side."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxremat

LENGTH, BATCH, STEPS = 64, 16, 60


class Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x):
        width, dense = x.shape[-1], functools.partial(nn.Dense, use_bias=False)
        h = nn.RMSNorm()(x)
        q, k, v = (dense(width, name=n)(h).reshape(*h.shape[:2], self.heads, -1) for n in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + dense(width, name="out")(mixed.reshape(x.shape))
        h = nn.RMSNorm()(x)
        return x + dense(width, name="down")(nn.silu(dense(3 * width, name="gate")(h)) * dense(3 * width, name="up")(h))


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(128, 128)(tokens) + self.param("position", nn.initializers.normal(0.02), (LENGTH, 128))
        for i in range(3):
            x = Block(heads=4, name=f"block_{i}")(x)
        return nn.Dense(128, use_bias=False, name="head")(nn.RMSNorm()(x))


model, optimizer = LanguageModel(), optax.adam(3e-3)


def loss(params, tokens):
    logits = model.apply(params, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def full_step(state, tokens):
    params, opt_state = state
    value, grads = jax.value_and_grad(loss)(params, tokens)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), {"loss": value}


def train(step, state, batches):
    """Returns the compiled step's memory in MiB and the loss at every step."""
    compiled = jax.jit(step, donate_argnums=0).lower(state, batches[0]).compile()
    m = compiled.memory_analysis()
    needed = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    losses = []
    for tokens in batches:
        state, metrics = compiled(state, tokens)
        losses.append(float(metrics["loss"]))
    return needed / 2**20, losses


text = np.frombuffer(pathlib.Path(__file__).read_bytes(), np.uint8) % 128
starts = np.random.default_rng(0).integers(0, len(text) - LENGTH, (STEPS, BATCH))
batches = [jnp.asarray(text[s[:, None] + np.arange(LENGTH)], jnp.int32) for s in starts]
fresh = lambda: model.init(jax.random.key(0), batches[0])

compact = jaxremat.compact.CompAct(loss, optimizer, rank=0.25, scale=0.5, refresh_every=30)
full_mib, full = train(full_step, (fresh(), optimizer.init(fresh())), batches)
compact_mib, compressed = train(compact.step, compact.init(fresh()), batches)

print(f"{'':12} {'full':>8} {'CompAct':>8}\n{'step, MiB':12} {full_mib:8.1f} {compact_mib:8.1f}")
for i in range(0, STEPS, 20):
    print(f"{f'loss @ {i}':12} {full[i]:8.3f} {compressed[i]:8.3f}")
print(f"{'last loss':12} {np.mean(full[-5:]):8.3f} {np.mean(compressed[-5:]):8.3f}")
