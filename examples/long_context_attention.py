"""Long contexts: the same attention, without its square of scores, in code that was never written for it.

python examples/long_context_attention.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxremat import attention, chunk

LENGTH, VOCABULARY = 4096, 16384


class Model(nn.Module):
    """A block of attention in somebody else's code, and a head with a large vocabulary."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, 128)(tokens)
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


model = Model()
tokens = jax.random.randint(jax.random.key(0), (1, LENGTH), 0, VOCABULARY)
params = jax.jit(model.init)(jax.random.key(1), tokens)


def loss(params, tokens):
    logits = model.apply(params, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


def temp_mib(fun):
    executable = jax.jit(jax.value_and_grad(fun)).lower(params, tokens).compile()
    return executable.memory_analysis().temp_size_in_bytes / 2**20


lean = chunk.rewrite(attention.rewrite(loss))
print("attention:", attention.rewrite(loss).explain(params, tokens))
print("loss head:", chunk.rewrite(loss).explain(params, tokens))
print(f"temporaries of the gradient: {temp_mib(loss):.0f} MiB as written, {temp_mib(lean):.0f} MiB rewritten")

# In new code, call it directly: jax.nn.dot_product_attention's signature, a million keys.
million = jax.ShapeDtypeStruct((1, 2**20, 1, 64), jnp.bfloat16)
memory = jax.jit(attention.dot_product_attention).lower(million, million, million).compile().memory_analysis()
print(f"a million queries and keys: {memory.temp_size_in_bytes / 2**20:.0f} MiB of temporaries")
