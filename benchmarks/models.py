"""The model zoo of the benchmarks: fourteen models of the common families, small enough for two CPU cores.

Every maker takes `wrap`, a function from a block's class to the class that is used: the identity for the model as
written, `nn.remat` with a policy for what an expert writes by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

Wrap = Callable[[type], type]


class Attention(nn.Module):
    heads: int = 4
    kv_heads: int = 4
    causal: bool = False

    @nn.compact
    def __call__(self, x, memory=None):
        memory = x if memory is None else memory
        width = x.shape[-1] // self.heads
        q = nn.DenseGeneral((self.heads, width), use_bias=False, name="query")(x)
        k, v = (nn.DenseGeneral((self.kv_heads, width), use_bias=False, name=n)(memory) for n in ("key", "value"))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        return nn.Dense(x.shape[-1], use_bias=False, name="out")(mixed.reshape(x.shape))


class Transformer(nn.Module):
    """A block before which everything is normalised: GPT and ViT (BERT normalises afterwards)."""

    causal: bool = False
    norm_first: bool = True

    @nn.compact
    def __call__(self, x):
        mlp = lambda h: nn.Dense(x.shape[-1], name="down")(nn.gelu(nn.Dense(4 * x.shape[-1], name="up")(h)))
        attend = Attention(causal=self.causal)
        if self.norm_first:
            x = x + attend(nn.LayerNorm()(x))
            return x + mlp(nn.LayerNorm()(x))
        x = nn.LayerNorm()(x + attend(x))
        return nn.LayerNorm()(x + mlp(x))


class Llama(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = lambda features, name: nn.Dense(features, use_bias=False, name=name)
        x = x + Attention(heads=8, kv_heads=2, causal=True)(nn.RMSNorm()(x))
        h = nn.RMSNorm()(x)
        inner = 8 * x.shape[-1] // 3
        return x + dense(x.shape[-1], "down")(nn.silu(dense(inner, "gate")(h)) * dense(inner, "up")(h))


class Experts(nn.Module):
    """A mixture of four experts, two for each token."""

    experts: int = 4

    @nn.compact
    def __call__(self, x):
        x = x + Attention(causal=True)(nn.RMSNorm()(x))
        h, width = nn.RMSNorm()(x), x.shape[-1]
        weights, chosen = jax.lax.top_k(nn.softmax(nn.Dense(self.experts, name="router")(h)), 2)
        gates = (jax.nn.one_hot(chosen, self.experts) * weights[..., None]).sum(-2)
        up = self.param("up", nn.initializers.lecun_normal(), (self.experts, width, 2 * width))
        down = self.param("down", nn.initializers.lecun_normal(), (self.experts, 2 * width, width))
        out = jnp.einsum("btef,efd->bted", nn.silu(jnp.einsum("btd,edf->btef", h, up)), down)
        return x + (out * gates[..., None]).sum(-2)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x, memory):
        x = x + Attention(causal=True, name="self")(nn.LayerNorm()(x))
        x = x + Attention(name="cross")(nn.LayerNorm()(x), memory)
        return x + nn.Dense(x.shape[-1])(nn.relu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        mlp = lambda h, name: nn.Dense(h.shape[-1], name=f"{name}_down")(nn.gelu(nn.Dense(256, name=f"{name}_up")(h)))
        x = x + mlp(nn.LayerNorm()(x).swapaxes(1, 2), "tokens").swapaxes(1, 2)
        return x + mlp(nn.LayerNorm()(x), "channels")


class Bottleneck(nn.Module):
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        norm = lambda: nn.GroupNorm(num_groups=8)
        y = nn.relu(norm()(nn.Conv(self.features, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm()(nn.Conv(self.features, (3, 3), (self.strides,) * 2, use_bias=False)(y)))
        y = norm()(nn.Conv(4 * self.features, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = norm()(nn.Conv(4 * self.features, (1, 1), (self.strides,) * 2, use_bias=False)(x))
        return nn.relu(x + y)


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        h = nn.LayerNorm()(nn.Conv(width, (7, 7), feature_group_count=width)(x))
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(h)))


class DoubleConv(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.swish(nn.GroupNorm(num_groups=8)(nn.Conv(self.features, (3, 3))(x)))
        return x


class Sequence(nn.Module):
    """Tokens through a stack of blocks to logits."""

    block: Callable[..., nn.Module]
    layers: int = 6
    width: int = 128
    vocab: int = 512

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocab, self.width)(tokens)
        for i in range(self.layers):
            x = self.block(name=f"block_{i}")(x)
        return nn.Dense(self.vocab, name="head")(nn.LayerNorm()(x))


class Scanned(nn.Module):
    """The same with one block scanned over layers."""

    block: Any
    layers: int = 8
    width: int = 128

    @nn.compact
    def __call__(self, tokens):
        step = nn.scan(
            lambda block, carry, _: (block(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = step(self.block(causal=True), nn.Embed(512, self.width)(tokens), None)
        return nn.Dense(512, name="head")(nn.LayerNorm()(x))


class EncoderDecoder(nn.Module):
    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(512, 128)
        memory = embed(tokens)
        for i in range(4):
            memory = self.encoder(name=f"encoder_{i}")(memory)
        x = embed(tokens)
        for i in range(4):
            x = self.decoder(name=f"decoder_{i}")(x, memory)
        return nn.Dense(512, name="head")(x)


class Patches(nn.Module):
    """Images in patches through a stack of blocks to classes."""

    block: Callable[..., nn.Module]
    patch: int = 8
    layers: int = 6
    width: int = 128

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2)(images)
        x = x.reshape(x.shape[0], -1, self.width)
        for i in range(self.layers):
            x = self.block(name=f"block_{i}")(x)
        return nn.Dense(100, name="head")(x.mean(1))


class Convolutional(nn.Module):
    """Images through stages of convolutional blocks to classes."""

    block: Callable[..., nn.Module]
    stages: tuple[int, ...]
    width: int
    strided: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (4, 4), (4, 4))(x)
        for stage, blocks in enumerate(self.stages):
            if not self.strided and stage:
                x = nn.Conv(2 * x.shape[-1], (2, 2), (2, 2))(x)
            for i in range(blocks):
                own = (
                    {"features": self.width * 2**stage, "strides": 2 if stage and not i else 1} if self.strided else {}
                )
                x = self.block(name=f"stage{stage}_{i}", **own)(x)
        return nn.Dense(100, name="head")(x.mean((1, 2)))


class UNet(nn.Module):
    block: Callable[..., nn.Module]
    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x):
        skips = []
        for features in self.widths:
            x = self.block(features)(x)
            skips.append(x)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.block(2 * self.widths[-1])(x)
        for features, skip in zip(reversed(self.widths), reversed(skips), strict=True):
            x = jax.image.resize(x, skip.shape[:3] + x.shape[3:], "nearest")
            x = self.block(features)(jnp.concatenate([x, skip], -1))
        return nn.Conv(3, (1, 1))(x)


def _language(model: nn.Module, batch: int = 8, length: int = 256):
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def loss(params, tokens):
        logits = model.apply(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    return loss, (jax.eval_shape(model.init, jax.random.key(0), tokens), tokens)


def _classes(model: nn.Module, batch: int = 16, size: int = 64):
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, images), labels).mean()

    return loss, (jax.eval_shape(model.init, jax.random.key(0), images), images, labels)


def _regression(model: nn.Module, inputs: jax.ShapeDtypeStruct):
    def loss(params, x):
        return jnp.mean((model.apply(params, x) - x) ** 2)

    return loss, (jax.eval_shape(model.init, jax.random.key(0), inputs), inputs)


def _partial(cls: type, **own) -> Callable[..., nn.Module]:
    return lambda *args, **more: cls(*args, **own, **more)


def _lstm(wrap: Wrap):
    inputs = jax.ShapeDtypeStruct((16, 256, 128), jnp.float32)
    return _regression(nn.RNN(wrap(nn.OptimizedLSTMCell)(128)), inputs)


MODELS: dict[str, Callable[[Wrap], tuple[Callable, tuple]]] = {
    "ResNet": lambda wrap: _classes(Convolutional(wrap(Bottleneck), (2, 3, 3), 16, True), 16, 128),
    "ConvNeXt": lambda wrap: _classes(Convolutional(wrap(ConvNeXt), (2, 2, 4), 32, False), 16, 64),
    "U-Net": lambda wrap: _regression(UNet(wrap(DoubleConv)), jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)),
    "ViT": lambda wrap: _classes(Patches(wrap(Transformer), patch=4)),
    "Mixer": lambda wrap: _classes(Patches(wrap(Mixer), patch=4)),
    "BERT": lambda wrap: _language(Sequence(_partial(wrap(Transformer), norm_first=False))),
    "GPT": lambda wrap: _language(Sequence(_partial(wrap(Transformer), causal=True))),
    "GPT, 12 layers": lambda wrap: _language(Sequence(_partial(wrap(Transformer), causal=True), layers=12), 4),
    "GPT, scanned": lambda wrap: _language(Scanned(wrap(Transformer))),
    "LLaMA": lambda wrap: _language(Sequence(wrap(Llama))),
    "Mixture of experts": lambda wrap: _language(Sequence(wrap(Experts), layers=4)),
    "Encoder-decoder": lambda wrap: _language(EncoderDecoder(wrap(Transformer), wrap(Decoder))),
    "LSTM": _lstm,
}
"""Makers of (loss, its arguments as shapes); the gradient is that of the first argument."""


def enlarged(problem: tuple[Callable, tuple], times: int) -> tuple[Callable, tuple]:
    """The same loss, with `times` its batch."""
    loss, (params, *data) = problem
    return loss, (params, *(jax.ShapeDtypeStruct((times * d.shape[0], *d.shape[1:]), d.dtype) for d in data))
