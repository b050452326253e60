"""Models as large as what people train on one GPU, most of them in bfloat16; makers as in `models.MODELS`."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from models import Bottleneck, ConvNeXt, Convolutional, Llama, Patches, Scanned, Sequence, Transformer


class Rotary(nn.Module):
    """A block of the LLaMA family with its own attention: rotary positions, grouped queries, RMS norms, SwiGLU."""

    heads: int = 8
    kv_heads: int = 2

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        project = lambda heads, name: nn.DenseGeneral((heads, width // self.heads), use_bias=False, name=name)
        h = nn.RMSNorm()(x)
        q, k = (rotated(project(heads, n)(h)) for n, heads in (("query", self.heads), ("key", self.kv_heads)))
        v = project(self.kv_heads, "value")(h)
        grouped = q.reshape(*q.shape[:2], self.kv_heads, -1, q.shape[-1])
        mixed = jnp.einsum("bkgqs,bskd->bqkgd", causal_weights(grouped, k), v).reshape(x.shape)
        x = x + nn.Dense(width, use_bias=False, name="out")(mixed)
        h, inner = nn.RMSNorm()(x), 8 * width // 3 // 64 * 64
        gate, up = (nn.Dense(inner, use_bias=False, name=n)(h) for n in ("gate", "up"))
        return x + nn.Dense(width, use_bias=False, name="down")(nn.silu(gate) * up)


def rotated(x):
    """[B, T, H, D]: each pair of features turned by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 1e4 ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angles).astype(x.dtype), jnp.cos(angles).astype(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def causal_weights(q, k):
    """[B, K, G, T, T] attention weights of queries [B, T, K, G, D] in groups that share keys [B, T, K, D]."""
    scores = jnp.einsum("bqkgd,bskd->bkgqs", q, k).astype(jnp.float32) / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return nn.softmax(jnp.where(seen, scores, -1e30)).astype(q.dtype)


class Selective(nn.Module):
    """A block of the Mamba family: a gated state that an associative scan carries along the sequence."""

    states: int = 8

    @nn.compact
    def __call__(self, x):
        h = nn.RMSNorm()(x)
        inner, gate = (nn.Dense(x.shape[-1], use_bias=False, name=n)(h) for n in ("inner", "gate"))
        inner = nn.silu(nn.Conv(x.shape[-1], (4,), padding="CAUSAL", feature_group_count=x.shape[-1])(inner))
        step = nn.softplus(nn.Dense(x.shape[-1], name="step")(inner).astype(jnp.float32))
        into, out = (
            nn.Dense(self.states, use_bias=False, name=n)(inner).astype(jnp.float32) for n in ("into", "out_of")
        )
        rate = -jnp.exp(self.param("rate", nn.initializers.zeros, (x.shape[-1], self.states)).astype(jnp.float32))
        decay = jnp.exp(step[..., None] * rate)
        added = (step * inner)[..., None] * into[:, :, None]
        _, state = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (decay, added), axis=1)
        mixed = jnp.einsum("btds,bts->btd", state, out).astype(x.dtype)
        return x + nn.Dense(x.shape[-1], use_bias=False, name="out")(mixed * nn.silu(gate))


class Biased(nn.Module):
    """Attention of the T5 family: a learned bias for each distance, no scaling, before it an RMS norm."""

    heads: int = 8
    causal: bool = False

    @nn.compact
    def __call__(self, x, memory=None):
        h = nn.RMSNorm()(x)
        memory = h if memory is None else memory
        project = lambda y, name: nn.DenseGeneral((self.heads, x.shape[-1] // self.heads), use_bias=False, name=name)(y)
        scores = jnp.einsum("bqhd,bkhd->bhqk", project(h, "query"), project(memory, "key")).astype(jnp.float32)
        distance = jnp.arange(memory.shape[1]) - jnp.arange(x.shape[1])[:, None]
        bias = self.param("bias", nn.initializers.normal(), (32, self.heads))[jnp.clip(distance // 16 + 16, 0, 31)]
        scores = scores + bias.transpose(2, 0, 1).astype(jnp.float32)
        if self.causal:
            scores = jnp.where(distance <= 0, scores, -1e30)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores).astype(x.dtype), project(memory, "value"))
        return x + nn.Dense(x.shape[-1], use_bias=False, name="out")(mixed.reshape(x.shape))


def feed_forward(x):
    h = nn.relu(nn.Dense(4 * x.shape[-1], use_bias=False, name="up")(nn.RMSNorm(name="norm")(x)))
    return x + nn.Dense(x.shape[-1], use_bias=False, name="down")(h)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return feed_forward(Biased(name="self")(x))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x, memory):
        return feed_forward(Biased(name="cross")(Biased(causal=True, name="self")(x), memory))


class Translation(nn.Module):
    """Tokens through an encoder, and shifted through a decoder that reads it, to logits."""

    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]
    layers: int = 3
    width: int = 512

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(1024, self.width)
        memory = x = embed(tokens)
        for i in range(self.layers):
            memory = self.encoder(name=f"encoder_{i}")(memory)
        for i in range(self.layers):
            x = self.decoder(name=f"decoder_{i}")(x, memory)
        return nn.Dense(1024, name="head")(x)


def gpt_in_bfloat16(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """A GPT that fills a GPU's kernels: 16 x 512 tokens, parameters in float32, all else in bfloat16."""
    block = wrap(Transformer)
    return _language_loss(Sequence(lambda name: block(causal=True, name=name), width=512, vocab=1024))


def _language_loss(model: nn.Module, batch: int = 16) -> tuple[Callable, tuple]:
    tokens = jax.ShapeDtypeStruct((batch, 512), jnp.int32)

    def loss(params, tokens):
        logits = model.apply(_in_bfloat16(params), tokens).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    return loss, (jax.eval_shape(model.init, jax.random.key(0), tokens), tokens)


def _in_bfloat16(params):
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)


def resnet_50(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """ResNet-50 on 32 images of 224 x 224, in float32."""
    model = Convolutional(wrap(Bottleneck), (3, 4, 6, 3), 64, True)
    images, labels = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)

    def loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels).mean()

    return loss, (jax.eval_shape(model.init, jax.random.key(0), images), images, labels)


def llama_scanned(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """RMS norms, grouped queries and SwiGLU, one block scanned over 8 layers, in bfloat16."""
    block = wrap(Llama)
    return _language_loss(Scanned(lambda causal: block(), width=512))


def gpt_scanned(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """The GPT with 8 layers, its block scanned over them."""
    return _language_loss(Scanned(wrap(Transformer), width=512))


def vit_in_bfloat16(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """A ViT of 6 blocks on 64 images of 224 x 224 in patches of 16, in bfloat16."""
    block = wrap(Transformer)
    return _classes_loss(Patches(lambda name: block(name=name), patch=16, width=384))


def _classes_loss(model: nn.Module) -> tuple[Callable, tuple]:
    images, labels = jax.ShapeDtypeStruct((64, 224, 224, 3), jnp.bfloat16), jax.ShapeDtypeStruct((64,), jnp.int32)

    def loss(params, images, labels):
        logits = model.apply(_in_bfloat16(params), images).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss, (jax.eval_shape(model.init, jax.random.key(0), images), images, labels)


def llama_in_bfloat16(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """Four blocks with rotary positions, grouped queries and SwiGLU, not scanned."""
    return _language_loss(Sequence(wrap(Rotary), layers=4, width=512, vocab=1024))


def mamba_in_bfloat16(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """Four blocks with a gated state that an associative scan carries."""
    return _language_loss(Sequence(wrap(Selective), layers=4, width=256, vocab=1024), batch=8)


def t5_in_bfloat16(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """An encoder and a decoder of three blocks each, with learned biases in all attention."""
    return _language_loss(Translation(wrap(Encoder), wrap(Decoder)))


def convnext_in_bfloat16(wrap: Callable[[type], type]) -> tuple[Callable, tuple]:
    """A ConvNeXt of 2, 2 and 4 blocks on 64 images of 224 x 224."""
    return _classes_loss(Convolutional(wrap(ConvNeXt), (2, 2, 4), 96, False))


LARGE = {
    "GPT, bfloat16": gpt_in_bfloat16,
    "ResNet-50": resnet_50,
    "GPT, scanned, bfloat16": gpt_scanned,
    "LLaMA, scanned, bfloat16": llama_scanned,
    "ViT, bfloat16": vit_in_bfloat16,
    "LLaMA, bfloat16": llama_in_bfloat16,
    "Mamba, bfloat16": mamba_in_bfloat16,
    "T5, bfloat16": t5_in_bfloat16,
    "ConvNeXt, bfloat16": convnext_in_bfloat16,
}

SCANNED = frozenset({"GPT, scanned", "LSTM", "GPT, scanned, bfloat16", "LLaMA, scanned, bfloat16"})
"""Models whose blocks run in a loop, where checkpoints need no barriers."""
