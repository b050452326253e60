"""Plans for an H200 and for a TPU from a machine with neither; the H200's compiler then says what its plan takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxremat

LAYERS, WIDTH, VOCAB, LENGTH, BATCH = 4, 2048, 32000, 2048, 8


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = lambda features, name: nn.Dense(features, use_bias=False, dtype=jnp.bfloat16, name=name)
        h = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        q, k, v = (dense(WIDTH, name)(h).reshape(*h.shape[:2], 16, -1) for name in ("query", "key", "value"))
        x = x + dense(WIDTH, "out")(jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        h = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        return x + dense(WIDTH, "down")(nn.silu(dense(4 * WIDTH, "gate")(h)) * dense(4 * WIDTH, "up")(h))


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCAB, WIDTH, dtype=jnp.bfloat16)(tokens)
        for i in range(LAYERS):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(VOCAB, use_bias=False, dtype=jnp.bfloat16, name="head")(nn.RMSNorm(dtype=jnp.bfloat16)(x))


model = LanguageModel()


def loss(params, tokens):
    logits = model.apply(params, tokens).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)  # shapes are enough: nothing here is ever allocated
params = jax.eval_shape(model.init, jax.random.key(0), tokens)

plans = {
    target: jaxremat.plan(loss, params, tokens, budget="14GiB", target=target, verify="replay")
    for target in ("h200", "tpu-v5e")
}
print(plans["h200"], "\n")
for target, plan in plans.items():
    print(
        f"{target:8} as written {plan.baseline_peak_bytes / 2**30:5.1f} GiB, planned {plan.peak_bytes / 2**30:5.1f} GiB"
    )
try:
    print(jaxremat.verify(plans["h200"]))
except jaxremat.TargetError as error:  # the compilers of absent devices are an extra
    print(error)
