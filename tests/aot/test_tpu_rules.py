"""Each rule of XLA:TPU that the model follows, against a program compiled for a TPU that is not there.

Where another backend would write something, it is so large that main memory would tell.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import SingleDeviceSharding

from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.roofline import roofline
from jaxremat.compiled.targets import compiler_lock, target_devices
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.joined import run_as_one
from jaxremat.cost.kernels import kernel_seconds
from jaxremat.cost.memory import estimate_memory

pytestmark = pytest.mark.aot

V5E = resolve_target("tpu-v5e")
MIB = 2**20
fence = lax.optimization_barrier


def S(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


WIDE, WEIGHTS = S(131072, 1024, dtype=jnp.bfloat16), S(1024, 1024, dtype=jnp.bfloat16)
BESIDE, BEYOND, NARROW = S(4096, 1024), S(65536, 1024), S(2**24, 5)
TOKENS = S(64, 2048, 1024, dtype=jnp.bfloat16)
FLOATS, SQUARE = S(131072, 1024), S(1024, 1024)
HEADS = S(16, 2048, 16, 128, dtype=jnp.bfloat16)
KEY = jax.eval_shape(lambda: jax.random.key(0))
LAYERS = S(65536, 128, dtype=jnp.bfloat16), *[S(128, 128, dtype=jnp.bfloat16)] * 6


def kept_apart(x):
    """Written whole, and read by two sums."""
    made = fence(x * 2.0)
    return jnp.sum(made, 0), jnp.sum(fence(made) * made, 0)


def one_after_the_other(x, w):
    return jnp.sum(fence(x @ w) * 1.0, 0), jnp.sum(fence(x @ (w * 2)) * 1.0, 0)


def dropped_out(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0)


def by_two_products(key, x, w):
    kept = dropped_out(key, x)
    return kept @ w, kept @ (w * 2)


def by_two_products_more(x, w, v, u):
    made = x @ w
    return made @ v, made @ u


def by_exact_products(x, w, v, u):
    with jax.default_matmul_precision("highest"):
        return by_two_products_more(x, w, v, u)


def by_a_product_and_a_sum(x, w, v):
    made = x @ w
    return made @ v, made[::-1]


def gradients_of_gelus(x, *weights):
    def loss(weights):
        h = x
        for w in weights:
            h = h + jax.nn.gelu(h @ w)
        return jnp.sum(h.astype(jnp.float32) ** 2)

    return jax.grad(loss)(weights)


RULES = {
    "a product computes what it reads": (lambda x, w: (jnp.tanh(x) * x) @ w, (WIDE, WEIGHTS), 0),
    "whoever else does": (lambda x, w: (jnp.tanh(x) @ w, jnp.tanh(x) @ (w * 2)), (WIDE, WEIGHTS), 0),
    "a product sums what it makes": (lambda x, w: jnp.sum((x @ w).astype(jnp.float32), 0), (WIDE, WEIGHTS), 0),
    "of any rank": (lambda x, w: (jnp.tanh(x) @ w, jnp.tanh(x) @ (w * 2)), (TOKENS, WEIGHTS), 0),
    "what only products read is written in half precision": (by_two_products_more, (FLOATS, *[SQUARE] * 3), 256 * MIB),
    "but not for products of full precision": (by_exact_products, (FLOATS, *[SQUARE] * 3), 512 * MIB),
    "nor where others read it": (by_a_product_and_a_sum, (FLOATS, *[SQUARE] * 2), 512 * MIB),
    "a product that two read is written": (
        lambda x, w: ((y := x @ w) * 2, jnp.tanh(y)[::-1]), (WIDE, WEIGHTS), 256 * MIB,
    ),
    "a transposed operand is read as it lies": (
        lambda x, w: jnp.einsum("dn,df->nf", x, w), (S(1024, 131072, dtype=jnp.bfloat16), WEIGHTS), 0,
    ),
    "so is one whose batches do not lead": (lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), (HEADS,) * 2, 0),
    "a product of half precision stays so": (lambda x, w: x @ w, (WIDE, WEIGHTS), 0),
    "an exponential is made again": (lambda x: (jnp.sum(jnp.exp(x), 0), jnp.exp(x) * 2), (BEYOND,), 0),
    "a sum computes what it reads": (lambda x: jnp.sum(jnp.exp(x) * 2, 0), (BEYOND,), 0),
    "random bits that one loop reads are made there": (dropped_out, (KEY, BEYOND), 0),
    "random bits that two products read are made once": (by_two_products, (KEY, WIDE, WEIGHTS), 256 * MIB),
    "layers leave one value each, or two": (gradients_of_gelus, LAYERS, 64 * MIB),
    "kernels run in the order of the program": (one_after_the_other, (WIDE, WEIGHTS), 256 * MIB),
    "equal values on both sides of a barrier are two": (
        lambda x: (jnp.tanh(x), jnp.tanh(fence(x * 2.0))[::-1]), (BEYOND,), 256 * MIB,
    ),
    "what fits beside main memory is placed there": (kept_apart, (BESIDE,), 0),
    "what does not fit there is in main memory": (kept_apart, (BEYOND,), 256 * MIB),
    "narrow arrays fill up their tiles": (kept_apart, (NARROW,), 4 * 2**24 * 8),
}  # fmt: skip


def compiled(fun, args):
    place = SingleDeviceSharding(target_devices("tpu-v5e")[0])
    placed = [jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=arg.sharding or place) for arg in args]
    with compiler_lock(V5E):
        return jax.jit(fun).trace(*placed).lower(lowering_platforms=("tpu",)).compile()


def temp_bytes(fun, args):
    return compiled(fun, args).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("rule", RULES)
def test_what_is_in_main_memory(rule):
    fun, args, expected = RULES[rule]
    assert estimate_memory(jax.make_jaxpr(fun)(*args).jaxpr, V5E).temp_bytes == pytest.approx(expected, abs=MIB)
    assert temp_bytes(fun, args) == pytest.approx(expected, abs=MIB)


KERNELS = {
    "what normalises rows goes over them again for each sum": (jax.nn.softmax, (BEYOND,)),
    "a sum and what is divided by it go over rows twice": (lambda x: x / jnp.sum(x * x, -1, keepdims=True), (BEYOND,)),
    "a product computes what alone reads it": (lambda x, w: jax.nn.relu(x @ w), (WIDE, WEIGHTS)),
}


@pytest.mark.parametrize("rule", KERNELS)
def test_how_many_kernels_run_and_how_long(rule):
    fun, args = KERNELS[rule]
    fusion = fuse(lower(jax.make_jaxpr(fun)(*args).jaxpr, V5E.backend), V5E)
    modelled = kernel_seconds(fusion, run_as_one(fusion, V5E), V5E).values()
    kernels = [kernel.seconds for kernel in roofline(compiled(fun, args).as_text(), V5E).kernels]
    large = [seconds for seconds in kernels if seconds > 1e-5]  # weights are brought beside main memory before
    assert len(modelled) == len(large)
    assert sum(modelled) == pytest.approx(sum(large), rel=0.02)


def test_what_is_divided_by_a_row_is_not_multiplied_by_reciprocals():
    text = compiled(lambda x, row: x / row[:, None], (BEYOND, S(65536))).as_text()
    assert [dims for dims in re.findall(r"f32\[([\d,]+)\]\S* divide\(", text)] == ["65536,1024"]


def test_the_gradient_of_a_pooling_maximum_holds_no_indices():
    def pooled(x):
        return jnp.sum(lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"))

    text = compiled(jax.grad(pooled), (S(64, 128, 128, 128),)).as_text()
    assert "select-and-scatter" in text and not re.search(r"s32\[\d+,", text)


@pytest.mark.parametrize(("checkpointed", "copies"), [(False, 4), (True, 1)])
def test_an_iteration_runs_again_without_a_barrier(checkpointed, copies):
    """Six iterations leave their carry, and what is inside only where nothing runs again."""

    def block(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    iterated = jax.checkpoint(block, prevent_cse=False) if checkpointed else block

    def loss(weights, x):
        return jnp.sum(lax.scan(lambda x, w: (iterated(x, w), None), x, weights)[0].astype(jnp.float32))

    args = S(6, 512, 512, dtype=jnp.bfloat16), S(65536, 512, dtype=jnp.bfloat16)
    taken, program = temp_bytes(jax.grad(loss), args), jax.make_jaxpr(jax.grad(loss))(*args).jaxpr
    stack = 6 * 64 * MIB
    assert taken == pytest.approx(copies * stack, abs=0.6 * stack)
    assert estimate_memory(program, V5E).temp_bytes == pytest.approx(taken, rel=0.15)


def test_names_save_in_one_checkpoint_over_everything():
    def loss(weights, x):
        for w in weights:
            x = checkpoint_name(x + jnp.tanh(jnp.tanh(x @ w) @ w), "block")
        return jnp.sum(x.astype(jnp.float32) ** 2)

    named = jax.checkpoint(loss, policy=jax.checkpoint_policies.save_only_these_names("block"))
    args = S(65536, 1024, dtype=jnp.bfloat16), *[WEIGHTS] * 4
    plain, saving = (temp_bytes(lambda x, *weights, f=f: jax.grad(f)(list(weights), x), args) for f in (loss, named))
    assert saving < 0.7 * plain


def test_what_lies_on_the_host_is_copied_before_a_kernel_reads_it():
    host = SingleDeviceSharding(target_devices("tpu-v5e")[0], memory_kind="pinned_host")
    there = jax.ShapeDtypeStruct(BEYOND.shape, BEYOND.dtype, sharding=host)
    taken = temp_bytes(lambda x: jnp.sum(jax.device_put(x, jax.memory.Space.Device) * 2.0, 0), (there,))
    assert taken == pytest.approx(256 * MIB, abs=MIB)


def test_what_a_program_may_take_is_the_pool():
    with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available") as error:
        compiled(lambda x: jnp.sum(fence(jnp.sin(fence(x * 2.0))), 0) + jnp.sum(x, 0), (S(2**21, 1024),))
    (available,) = re.findall(r"available HBM \(([\d.]+)G\)", str(error.value))
    assert float(available) == pytest.approx(V5E.pool_bytes / 2**30, rel=0.02)
