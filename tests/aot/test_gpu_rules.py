"""Each rule of XLA:GPU that the model follows, against a program compiled for a GPU that is not there."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import masked_rows
import numpy as np
import pytest
from compiled_buffers import compiled_buffers, modelled_buffers, modelled_fusion
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from layer_stacks import gated_in_checkpoints

import jaxremat
from jaxremat.backends.backend import Backend
from jaxremat.backends.devices import resolve_target
from jaxremat.compiled.compile import rematerialized
from jaxremat.compiled.gpu_configs import target_config
from jaxremat.compiled.roofline import roofline
from jaxremat.compiled.targets import target_devices
from jaxremat.cost.joined import run_as_one
from jaxremat.cost.kernels import kernel_seconds
from jaxremat.cost.memory import estimate_memory
from jaxremat.cost.pricing import price
from jaxremat.emit.orders import orders_of_operands
from jaxremat.emit.scheduled import run_backward, run_forward
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.trace.joint import trace_joint
from jaxremat.trace.masks import NO_MASKS

pytestmark = pytest.mark.aot

X = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
HALF = jax.ShapeDtypeStruct((2048, 1024), jnp.bfloat16)
TOKENS = jax.ShapeDtypeStruct((4, 512, 1024), jnp.bfloat16)
W = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
GATES, STATE = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1024, 2048), (2048, 512)))
ROW = jax.ShapeDtypeStruct((1024,), jnp.bfloat16)
ROWS = jax.ShapeDtypeStruct((2048,), jnp.int32)
KEY = jax.eval_shape(lambda: jax.random.key(0))
PART = jax.ShapeDtypeStruct((512, 1024), jnp.float32)
PICTURES = jax.ShapeDtypeStruct((4, 64, 64, 128), jnp.float32)
FILL = 4 * 2048 * 1024
WEIGHTS = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
FEW_TILES = jax.ShapeDtypeStruct((4096, 256), jnp.bfloat16)
UNEVEN = jax.ShapeDtypeStruct((500, 256), jnp.float32)
DEEP = jax.ShapeDtypeStruct((65536, 64), jnp.float32)


QUERIES = jax.ShapeDtypeStruct((16, 512, 2, 4, 64), jnp.bfloat16)
SHARED_KEYS = jax.ShapeDtypeStruct((16, 512, 2, 64), jnp.bfloat16)
UP, DOWN = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4, 1024, 512), (4, 512, 1024)))
GROUPS = jax.ShapeDtypeStruct((64, 1024, 8, 8), jnp.float32)


def shares_of_groups(q, k):
    """[B, K, G, Q, S], of scores that their product writes as [B, K, S, Q, G]."""
    return jax.nn.softmax(jnp.einsum("bqkgd,bskd->bkgqs", q, k).astype(jnp.float32)).astype(q.dtype)


def squared(x):
    return jnp.sum(x.astype(jnp.float32) ** 2, tuple(range(1, x.ndim)))


def grouped(q, k):
    return squared(jnp.einsum("bkgqs,bskd->bqkgd", shares_of_groups(q, k), k))


def grouped_twice(q, k):
    shares = shares_of_groups(q, k)
    products = jnp.einsum("bkgqs,bskd->bqkgd", shares, k), jnp.einsum("bkgqs,bqkgd->bskd", shares, q)
    return tuple(map(squared, products))


def experts(h, up, down):
    return squared(jnp.einsum("btef,efd->bted", jnp.tanh(jnp.einsum("btd,edf->btef", h, up)), down))


def exponentials_and_shares(x):
    exponentials = jnp.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True), exponentials


def averaged(x, size):
    """Averages over windows, two apart, of what is not cheap to make again."""
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    return jnp.exp(lax.reduce_window(jnp.sin(x)[..., ::-1], 0.0, lax.add, window, strides, "SAME"))


def on_both_sides_of_a_barrier(x):
    return jnp.tanh(x), jnp.tanh(lax.optimization_barrier(x))[::-1]


RULES = {
    "a cheap value is made again by each loop": (
        lambda x: ((y := x * 3.0 + 1.0)[::-1] * 2.0, y + 5.0), (X,), [FILL] * 2,
    ),
    "an exponential is made again": (lambda x: (jnp.exp(x)[::-1] * 2.0, jnp.exp(x) + 1.0), (X,), [FILL] * 2),
    "a hyperbolic tangent is written once": (
        lambda x: (jnp.tanh(x)[::-1] * 2.0, jnp.tanh(x) + 1.0), (X,), [FILL] * 3,
    ),
    "a product takes what it alone reads": (lambda x, w: jnp.exp(x * 2) @ w, (HALF, W), [FILL // 2]),
    "a product does not take what reads two arrays": (
        lambda x, y, w: (x * y) @ w, (HALF, HALF, W), [FILL // 2] * 2,
    ),
    "a product spreads a row itself": (lambda x, row, w: (x * row[None]) @ w, (HALF, ROW, W), [FILL // 2]),
    "a kernel reads 96 arrays at most": (
        lambda *arrays: functools.reduce(jnp.add, arrays), (X,) * 100, [FILL] * 2,
    ),
    "a softmax is one kernel": (
        lambda x, w: jax.nn.softmax((x @ w).astype(jnp.float32)).astype(jnp.bfloat16) @ w, (HALF, W), [FILL // 2] * 3,
    ),
    "a softmax leaves exponentials that someone else reads": (exponentials_and_shares, (X,), [FILL] * 2),
    "what is divided by the sum of its row is not written": (
        lambda x: jnp.sin(x) / jnp.sin(x).sum(-1, keepdims=True), (X,), [FILL],
    ),
    "a sum leaves what others read": (lambda x: (jnp.tanh(x)[::-1], jnp.sum(jnp.tanh(x), 0)), (X,), [FILL] * 2),
    "a product's result is written before it is summed": (
        lambda x, w: jnp.sum((x @ w).astype(jnp.float32), 0), (HALF, W), [FILL // 2],
    ),
    "what is transposed is computed where it is read": (lambda x: jnp.exp(x.T) + 1.0, (X,), [FILL]),
    "what is gathered is computed where it is read": (lambda x, rows: jnp.exp(x)[rows] * 2.0, (X, ROWS), [FILL]),
    "what is joined is computed where it is written": (
        lambda x: jnp.concatenate([jnp.exp(x), jnp.sin(x)]) * 2.0, (X,), [2 * FILL],
    ),
    "random bits are made once": (
        lambda key: ((bits := jax.random.uniform(key, X.shape))[::-1] * 2.0, bits + 1.0), (KEY,), [FILL] * 3,
    ),
    "random bits that one loop reads are made there": (
        lambda key, x: jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0.0), (KEY, X), [FILL],
    ),
    "an update in place takes what it writes over and what it writes": (
        lambda x, part: lax.dynamic_update_slice(jnp.sin(x), jnp.cos(part), (0, 0)), (X, PART), [FILL],
    ),
    "windows are made in one loop with what surrounds them": (
        functools.partial(averaged, size=2), (PICTURES,), [FILL // 4],
    ),
    "what windows read again and again is written": (
        functools.partial(averaged, size=3), (PICTURES,), [FILL, FILL // 4],
    ),
    "a barrier's operands are written": (lambda x: jnp.cos(lax.optimization_barrier(x * 2.0)), (X,), [FILL] * 2),
    "equal values on both sides of a barrier are two": (on_both_sides_of_a_barrier, (X,), [FILL] * 2),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_is_written(rule):
    fun, args, expected = RULES[rule]
    large = lambda sizes: Counter(size for size in sizes if size >= FILL // 4)
    assert large(modelled_buffers(fun, args, resolve_target("h200"))) == Counter(expected)
    assert large(compiled_buffers(compiled_text(fun, args), several=True)) == Counter(expected)


IN_PARTS = {
    "parts are written in full precision, and summed where they are read": (
        lambda x, y: jnp.exp(x.T @ y) * 2.0, FEW_TILES, [16 * 4 * 256 * 256, 2 * 256 * 256],
    ),
    "what is not cut into equal parts is filled up": (
        lambda x, y: jnp.sin(x).T @ y, UNEVEN, [4 * 512 * 256] * 2 + [8 * 4 * 256 * 256, 4 * 256 * 256],
    ),
    "many parts are summed apart": (
        lambda x, y: jnp.tanh(x.T @ y)[::-1], DEEP, [128 * 4 * 64 * 64, 4 * 64 * 64, 4 * 64 * 64],
    ),
}  # fmt: skip


MANY_ROWS = jax.ShapeDtypeStruct((16384, 512), jnp.float32)
TOO_MANY_ROWS = jax.ShapeDtypeStruct((32512, 512), jnp.float32)
FACTOR = jax.ShapeDtypeStruct((512, 512), jnp.float32)


def on_one_side(x, w, v):
    return jnp.sin(x @ w), jnp.cos(x @ v)


def by_each(x, *factors):
    return [jnp.sin(x @ w) for w in factors]


def on_the_other(x, y, w):
    return jnp.sin(x @ w), jnp.cos(y @ w)


@pytest.mark.parametrize(
    ("fun", "args", "expected"),
    [
        (on_one_side, (MANY_ROWS, FACTOR, FACTOR), [8 * 16384 * 512] + [4 * 16384 * 512] * 2),
        (on_the_other, (MANY_ROWS, MANY_ROWS, FACTOR), [8 * 16384 * 512] + [4 * 16384 * 512] * 2),
        (on_one_side, (TOO_MANY_ROWS, FACTOR, FACTOR), [4 * 32512 * 512] * 2),
        (
            on_one_side,
            (TOO_MANY_ROWS, FACTOR, jax.ShapeDtypeStruct((512, 8), jnp.float32)),
            [4 * 32512 * n for n in (512, 8)],
        ),
        (by_each, (MANY_ROWS, *[FACTOR] * 3), [8 * 16384 * 512] + [4 * 16384 * 512] * 3),
    ],
    ids=["rows", "columns", "too large", "one too large", "several too large"],
)
def test_products_that_read_the_same_are_one(fun, args, expected):
    assert Counter(modelled_buffers(fun, args, resolve_target("h200"))) == Counter(expected)
    assert Counter(compiled_buffers(compiled_text(fun, args))) == Counter(expected)


@pytest.mark.parametrize("rule", IN_PARTS)
def test_products_of_few_tiles_are_multiplied_in_parts(rule):
    fun, operand, expected = IN_PARTS[rule]
    args = operand, operand
    assert Counter(modelled_buffers(fun, args, resolve_target("h200"))) == Counter(expected)
    assert Counter(compiled_buffers(compiled_text(fun, args))) == Counter(expected)


def compiled_text(fun, args):
    return compiled_for_h200(fun, args).as_text()


def compiled_for_h200(fun, args):
    place = SingleDeviceSharding(target_devices("h200")[0])
    placed = jax.tree.map(lambda arg: jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=place), args)
    return jax.jit(fun).trace(*placed).lower(lowering_platforms=("cuda",)).compile()


SCALE = jax.ShapeDtypeStruct((1024,), jnp.float32)
ODD, LONG = jax.ShapeDtypeStruct((2048, 1365), jnp.float32), jax.ShapeDtypeStruct((128, 20000), jnp.float32)
HEADS = jax.ShapeDtypeStruct((8, 512, 8, 64), jnp.bfloat16)
TALL = jax.ShapeDtypeStruct((512, 8, 1024), jnp.float32)
IMAGES, FILTERS = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 64, 64, 64), (3, 3, 64, 64)))
BATCHES, SHORT = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 128, 2048), (16, 64, 2048)))
BIAS, FEW = jax.ShapeDtypeStruct((64,), jnp.float32), jax.ShapeDtypeStruct((4, 4096, 16), jnp.float32)


def in_float32(spec, *operands):
    return jnp.einsum(spec, *operands, preferred_element_type=jnp.float32)


def softmax_and_its_gradient(scores, ct):
    shares, back = jax.vjp(lambda s: jax.nn.softmax(s.astype(jnp.float32)).astype(jnp.bfloat16), scores)
    return shares, back(ct)[0]


def tanh_on_both_sides(x, w):
    y = jnp.tanh(x @ w)
    return jnp.exp(y), jnp.cos(lax.optimization_barrier(y))


def rms(x, scale=1.0):
    return x * (lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale)


def convolved(images, filters):
    return lax.conv_general_dilated(images, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def normalised_in_groups(images):
    groups = images.reshape(*images.shape[:3], 8, -1)
    centred = groups - groups.mean((1, 2, 4), keepdims=True)
    return (centred * lax.rsqrt((centred * centred).mean((1, 2, 4), keepdims=True) + 1e-6)).reshape(images.shape)


def gradients_of_normalised_convolutions(images, first, second, bias):
    def loss(first, second):
        hidden = jnp.tanh(normalised_in_groups(convolved(images, first) + bias))
        return jnp.sum(jnp.tanh(normalised_in_groups(convolved(hidden, second) + bias)))

    return jax.grad(loss, (0, 1))(first, second)


def attention_and_its_gradient(q, k, v):
    out, back = jax.vjp(functools.partial(jax.nn.dot_product_attention, is_causal=True), q, k, v)
    return out, back(out)


def side_by_side(x, *ys):
    return x.T @ jnp.concatenate([jnp.exp(x * y) for y in ys], 1)


def gates(x, w, state):
    """A cell of an LSTM: the state, and what it makes of it."""
    kept, added, made, shown = jnp.split(x @ w, 4, 1)
    state = jax.nn.sigmoid(kept) * state + jax.nn.sigmoid(added) * jnp.tanh(made)
    return state, jax.nn.sigmoid(shown) * jnp.tanh(state)


def turned_and_not(x):
    made = jnp.tanh(x) * x
    return (jnp.exp(made) * 2.0).T, made * 3.0 + x


KERNELS = {
    "two operations are apart": (lambda x: (jnp.exp(x), jnp.sin(x)), (X,)),
    "an operation and a sum are one kernel": (lambda x: (jnp.exp(x), jnp.sum(x, 1)), (X,)),
    "gates are one kernel": (gates, (X, GATES, STATE)),
    "what a loop and a transpose read is written before": (turned_and_not, (X,)),
    "a product reads seven arrays side by side": (side_by_side, (X,) * 8),
    "a product does not read eight arrays side by side": (side_by_side, (X,) * 9),
    "loops that read the same are one kernel": (lambda x: (x * 2.0, jnp.exp(x)), (X,)),
    "a loop and a sum that read the same are one kernel": (lambda x: (x * 2.0, jnp.sum(x, 1)), (X,)),
    "sums along different axes are apart": (lambda x: (jnp.sum(x, 0), jnp.sum(x, 1)), (X,)),
    "loops that read the same product are apart": (lambda x, w: ((y := x @ w) * 2, jnp.tanh(y)), (HALF, W)),
    "a product computes what alone reads it": (lambda x, w, row: jax.nn.relu(x @ w + row), (HALF, W, ROW)),
    "a product adds an array that is there": (lambda x, w, y: x @ w + y, (HALF, W, HALF)),
    "a product does not add what a loop computes": (lambda x, w, y: x @ w - jnp.exp(y), (HALF, W, HALF)),
    "a product computes the matrix that a barrier takes": (tanh_on_both_sides, (HALF, W)),
    "a product adds another": (lambda x, y, w, v: x @ w + y @ v, (HALF, HALF, W, W)),
    "a product does not read its own result twice": (lambda x, w: (y := x @ w) * y, (HALF, W)),
    "a product narrows its result": (lambda x, w: in_float32("qd,dk->qk", x, w).astype(x.dtype), (HALF, W)),
    "what is turned and then narrowed is narrowed first": (
        lambda q, k: in_float32("bqhd,bkhd->bqhk", q, k).astype(q.dtype), (HEADS,) * 2,
    ),
    "a product leaves what is widened to its readers": (lambda x, w: (x @ w).astype(jnp.float32) * 2, (HALF, W)),
    "operands whose batches do not lead are copied": (lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), (HEADS,) * 2),
    "a softmax and what follows are one kernel": (lambda x, y: jax.nn.softmax(x) * y, (X, X)),
    "a softmax and a sum of its rows are one kernel": (lambda x, y: jnp.sum(jax.nn.softmax(x) * y, -1), (X, X)),
    "a softmax is written before it is summed over rows": (lambda x: jnp.sum(jax.nn.softmax(x), 0), (X,)),
    "a softmax is written before it is turned around": (lambda x: jax.nn.softmax(x)[::-1], (X,)),
    "rows are padded to powers of two": (lambda x: jax.nn.softmax(x) * 2, (ODD,)),
    "a norm is one kernel": (rms, (X,)),
    "a norm with a scale that is there is one kernel": (rms, (X, SCALE)),
    "a norm with a scale that is computed is two": (lambda x, scale: rms(x, jnp.tanh(scale)), (X, SCALE)),
    "a norm the other way around is two": (lambda x: lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * x, (X,)),
    "two norms of one another are one kernel": (lambda x: rms(x - x.mean(-1, keepdims=True)), (X,)),
    "a sum is negated where it is made": (lambda x: jnp.exp(-jnp.sum(x, -1)), (X,)),
    "a sum of columns reads one array": (lambda x, y: jnp.sum(x * y, 0), (X, X)),
    "a sum of columns computes nothing": (lambda x: jnp.sum(jnp.exp(x), 0), (X,)),
    "a sum of few columns reads one array": (lambda x, y: jnp.sum(x * y, 1), (FEW, FEW)),
    "sums of dimensions that are apart take a kernel each": (lambda x: jnp.sum(x * x, (1, 3)), (GROUPS,)),
    "sums of columns in many blocks read two arrays": (lambda x, y: jnp.sum(x * y, 1), (BATCHES, BATCHES)),
    "sums of short columns read two arrays": (lambda x, y: jnp.sum(x * y, 0), (SHORT, SHORT)),
    "a convolution copies its filters and adds a row": (
        lambda x, w, row: convolved(x, w) + row, (IMAGES, FILTERS, BIAS),
    ),
    "what is saved as it is is not rounded": (lambda x: jnp.exp(lax.reduce_precision(jnp.tanh(x), 8, 23)), (X,)),
    "what spreads and sums the same are one kernel": (
        lambda part, x: (part[:, None] * jnp.sin(x), (part[:, None] * jnp.cos(x)).sum(-1)), (PART, TALL),
    ),
    "copies of a product in two orders are one kernel": (
        lambda x, w: ((y := jnp.tanh(jnp.einsum("btc,cd->btd", x, w))), jnp.swapaxes(y, 1, 2)), (TOKENS, W),
    ),
    "a convolution adds nothing but a row": (lambda x, w: jnp.tanh(convolved(x, w)), (IMAGES, FILTERS)),
    "sums that read the same convolution are one kernel": (
        lambda x, w: (jnp.sum(y := convolved(x, w), 1), jnp.sum(y * y, 1)), (IMAGES, FILTERS),
    ),
    "a product of few tiles is multiplied in parts": (lambda x, y: x.T @ y, (FEW_TILES, FEW_TILES)),
    "few entries by a vector are a sum": (lambda x, v: jnp.exp(x) @ v, (X, SCALE)),
    "an outer product is made with what follows": (lambda x, v: jnp.exp(x[:, 0])[:, None] * v + 1.0, (X, SCALE)),
    "a product makes again what one array is changed by": (lambda x, w: ((y := jnp.sin(x)) @ w, y * x), (X, WEIGHTS)),
    "a product makes again what a given row is added to": (
        lambda x, w, v: ((y := x + v) @ w, y * y), (X, WEIGHTS, SCALE),
    ),
    "a product reads what a row is added to that is made": (lambda x, w, v: (x + jnp.tanh(v)) @ w, (X, WEIGHTS, SCALE)),
    "a product reads what a given row chooses": (lambda x, w, v: jnp.where(v > 0, x, 0.0) @ w, (X, WEIGHTS, SCALE)),
    "a sum is scaled where it is read": (lambda x: jnp.sum(x, -1) * 2.0, (X,)),
    "the gradient of a softmax keeps no exponentials": (softmax_and_its_gradient, (HALF, HALF)),
}  # fmt: skip


def kernels(fun, args):
    """The seconds of the kernels of a program, as modelled and as compiled."""
    device = resolve_target("h200")
    fusion = modelled_fusion(fun, args, device)
    modelled = kernel_seconds(fusion, run_as_one(fusion, device), device)
    compiled = roofline(compiled_text(fun, args), device).kernels
    return list(modelled.values()), [kernel.seconds for kernel in compiled]


@pytest.mark.parametrize("rule", KERNELS)
def test_how_many_kernels_run_and_how_long(rule):
    modelled, compiled = kernels(*KERNELS[rule])
    assert len(modelled) == len(compiled)
    assert sum(modelled) == pytest.approx(sum(compiled), rel=0.01)


ORDERS = {
    "scores of groups are normalised as they were written": (grouped, (QUERIES, SHARED_KEYS), 5, 0.01),
    "what two products read otherwise is written before it is turned": (grouped_twice, (QUERIES, SHARED_KEYS), 7, 0.1),
    "a product of matrices is written as the next one reads it": (experts, (TOKENS, UP, DOWN), 2, 0.01),
}


@pytest.mark.parametrize("rule", ORDERS)
def test_in_which_order_results_lie(rule):
    """Of kernels that take more than 8 microseconds."""
    fun, args, number, within = ORDERS[rule]
    modelled, compiled = ([second for second in each if second > 8e-6] for each in kernels(fun, args))
    assert len(modelled) == len(compiled) == number
    assert sum(modelled) == pytest.approx(sum(compiled), rel=within)


def test_a_product_leaves_what_a_barrier_takes_in_another_shape():
    modelled, compiled = kernels(tanh_on_both_sides, (TOKENS, W))
    assert len(modelled) == len(compiled) == 3  # the product, what follows it with the exponential, the cosine


def test_what_sums_over_images_read_in_few_blocks_is_written_before():
    args = IMAGES, FILTERS, FILTERS, BIAS
    program = jax.make_jaxpr(gradients_of_normalised_convolutions)(*args).jaxpr
    modelled = estimate_memory(program, resolve_target("h200"))
    compiled = compiled_for_h200(gradients_of_normalised_convolutions, args).memory_analysis()
    assert modelled.temp_bytes == pytest.approx(compiled.temp_size_in_bytes, rel=0.02)


def gradients_of_rows_with_maxima(x, w):
    """Of the largest of four neighbours in what a product makes."""

    def loss(w):
        windows = (x @ w).reshape(*x.shape[:-1], -1, 4)
        return jnp.sum(jnp.take_along_axis(windows, jnp.argmax(windows, -1)[..., None], -1) ** 2)

    return jax.grad(loss)(w)


def test_indices_are_found_with_maxima_and_joined_with_those_of_batches_before_a_scatter():
    args = X, jax.ShapeDtypeStruct((X.shape[1], 2048), X.dtype)
    modelled = estimate_memory(jax.make_jaxpr(gradients_of_rows_with_maxima)(*args).jaxpr, resolve_target("h200"))
    compiled = compiled_for_h200(gradients_of_rows_with_maxima, args).memory_analysis()
    assert modelled.temp_bytes == pytest.approx(compiled.temp_size_in_bytes, rel=0.01)


def contrastive(x, w):
    """Both ways, as of pairs of texts and images."""
    scores, labels = (x @ w) @ x.T, jnp.arange(len(x))[:, None]
    picked = [jnp.take_along_axis(jax.nn.log_softmax(each), labels, 1) for each in (scores, scores.T)]
    return -jnp.mean(picked[0] + picked[1])


def messages(x, w, senders, receivers):
    for _ in range(3):
        sent = jax.ops.segment_sum(2 * x[senders], receivers, len(x))
        x = jnp.tanh(sent @ w) * sent
    return jnp.sum(x**2)


def summed(x, w, senders, receivers):
    for _ in range(3):
        x = jax.ops.segment_sum(2 * x[senders], receivers, len(x)) @ w
    return x


def nodes(number):
    return *(jax.ShapeDtypeStruct((size, 64), jnp.float32) for size in (number, 64)), PAIRS, PAIRS


PAIRS = jax.ShapeDtypeStruct((8192,), jnp.int32)
LOOKED_UP = {
    "both ways": (jax.grad(contrastive, (0, 1)), (X, WEIGHTS)),
    "by nodes of a graph": (jax.grad(messages, (0, 1)), (X, WEIGHTS, PAIRS, PAIRS)),
    "by few nodes": (summed, nodes(4095)),
    "by a node more": (summed, nodes(4096)),
}


@pytest.mark.parametrize("name", LOOKED_UP)
def test_what_is_looked_up_or_scattered_into_lies_as_it_was_written(name):
    """What is scattered into is copied when it is made, once for each of those who do."""
    fun, args = LOOKED_UP[name]
    modelled = estimate_memory(jax.make_jaxpr(fun)(*args).jaxpr, resolve_target("h200"))
    compiled = compiled_for_h200(fun, args).memory_analysis()
    assert modelled.temp_bytes == pytest.approx(compiled.temp_size_in_bytes, rel=0.02)


def test_kernels_run_in_the_smaller_of_two_orders():
    """What frees most first would make the gradient of what is gated before that of the weights after it."""
    gradients, args = gated_in_checkpoints()
    modelled = estimate_memory(jax.make_jaxpr(gradients)(*args).jaxpr, resolve_target("h200"))
    compiled = compiled_for_h200(gradients, args).memory_analysis()
    assert modelled.temp_bytes == pytest.approx(compiled.temp_size_in_bytes, rel=0.01)


def gradients_of_pooled_convolutions(act, images, filters):
    def loss(filters):
        hidden = act(convolved(images, filters[0]))
        hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for each in filters[1:]:
            hidden = jnp.tanh(convolved(hidden, each))
        return jnp.sum(hidden)

    return jax.value_and_grad(loss)(filters)


@pytest.mark.parametrize("act", [jax.nn.relu, jnp.tanh])
def test_pooled_maxima_are_found_again_with_indices_and_scattered_into_zeros(act):
    """A ReLU's zeros wait from the forward on, others are made where they are written into."""
    args = jax.ShapeDtypeStruct((8, 64, 64, 64), jnp.float32), (FILTERS,) * 3
    gradients = functools.partial(gradients_of_pooled_convolutions, act)
    modelled = estimate_memory(jax.make_jaxpr(gradients)(*args).jaxpr, resolve_target("h200"))
    compiled = compiled_for_h200(gradients, args).memory_analysis()
    assert modelled.temp_bytes == pytest.approx(compiled.temp_size_in_bytes, rel=0.01)


def test_rows_that_do_not_fit_in_registers_are_read_twice():
    """Summed in two steps, of which the second takes a launch and no more."""
    modelled, compiled = kernels(lambda x: x / jnp.sum(x * x, -1, keepdims=True), (LONG,))
    assert len(modelled) == len(compiled) == 3
    assert sum(modelled) == pytest.approx(sum(compiled), rel=0.01)


@pytest.mark.parametrize("heads, length", [(8, 512), (4, 256), (8, 256), (8, 128), (2, 512)])
@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("fun", [masked_rows.sums, masked_rows.half_weights, masked_rows.gradient, masked_rows.softmax])
def test_rows_that_share_a_mask_are_taken_together(fun, is_read, heads, length):
    """Far apart where no tile has room for two that lie side by side, and where the mask is read and no number per row
    is, at a part of the bandwidth."""

    def masked(scores, numbers):
        mask = masked_rows.causal(length)
        return fun(scores, numbers, masked_rows.read_from_memory(mask) if is_read else mask)

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, heads, length, length), (8, heads, length))]
    modelled, compiled = kernels(masked, args)
    assert sum(modelled) == pytest.approx(sum(compiled), rel=0.03)


def causal_layers(weights, x):
    """Attention of 8 heads over 512 tokens and what follows it."""
    for *qkv, up, down in weights:
        queries, keys, values = ((x @ w).reshape(*x.shape[:2], 8, -1) for w in qkv)
        mixed = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
        x = x + mixed.reshape(x.shape)
        x = x + jnp.tanh(x @ up) @ down
    return jnp.sum(x.astype(jnp.float32) ** 2)


def causal_layers_args(dtype=jnp.bfloat16):
    shapes = ((512, 512),) * 3 + ((512, 1024), (1024, 512))
    layer = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    return [layer] * 2, jax.ShapeDtypeStruct((8, 512, 512), dtype)


def test_buffers_lie_at_fixed_addresses_with_gaps_between_them():
    """16 MiB further than what is live at once, of 284."""

    @jax.checkpoint
    def layer(x, weights):
        *qkv, up, down = weights
        queries, keys, values = ((x @ w).reshape(*x.shape[:2], 8, -1) for w in qkv)
        shares = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", queries, keys))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", shares, values).reshape(x.shape)
        return x + jnp.tanh(x @ up) @ down

    def loss(weights, x):
        for each in weights:
            x = layer(x, each)
        return jnp.sum(x**2)

    gradients, args = jax.value_and_grad(loss), causal_layers_args(jnp.float32)
    modelled = estimate_memory(jax.make_jaxpr(gradients)(*args).jaxpr, resolve_target("h200"))
    compiled = compiled_for_h200(gradients, args).memory_analysis()
    assert modelled.gap_bytes == 16 * 2**20
    assert modelled.temp_bytes == pytest.approx(compiled.temp_size_in_bytes, rel=1e-4)


def test_masks_that_pass_a_barrier_let_rows_lie_side_by_side(monkeypatch):
    """In plans that make attention again; a seed of its own has one planned anew."""
    planned = functools.partial(jaxremat.plan, causal_layers, *causal_layers_args(), budget=0.7, target="h200")
    written = planned()
    monkeypatch.setattr(Backend, "masks", lambda backend, joint: NO_MASKS)
    assert written.overhead < planned(seed=1).overhead - 0.05


def test_what_products_have_made_waits_as_it_is_read():
    """Queries and keys are made by one product, and lie as the keys are read; in the order of the program, queries
    would be turned once more."""
    w, x = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((512, 4, 128), (16, 512, 512)))
    joint = trace_joint(lambda w, x: jnp.sum(jnp.sin(attention(w, x)).astype(jnp.float32)), w, x)
    found = orders_of_operands(joint.eqns)
    steps, start = assemble_parts(price(joint), np.array([v in found for v in joint.values]))
    program = schedule_program(joint, steps, backward_start=start)

    def turned(script):
        text = compiled_text(functools.partial(passes, joint, script), (w, x))
        return sum(fused.count(" transpose(") > 1 for fused in re.findall(r"^%fused_transpose.*?^}", text, re.M | re.S))

    assert turned(write_script(joint, program)) and not turned(write_script(joint, program, orders=found))


def attention(w, x):
    queries, keys, values = (jnp.einsum("btc,chd->bthd", x, w * scale) for scale in (1, 2, 3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys).astype(jnp.float32)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores).astype(jnp.bfloat16), values)


def passes(joint, script, *inputs):
    outputs, residuals = run_forward(joint, script, inputs)
    return outputs, run_backward(joint, script, residuals, [jnp.ones(())])


def test_attention_keeps_scores_and_sums_for_its_gradient():
    """But for a second copy of the keys, in yet another layout."""
    modelled, compiled = kernels(attention_and_its_gradient, (HEADS,) * 3)
    assert sum(modelled) == pytest.approx(sum(compiled), rel=0.03)


def test_shares_of_queries_in_groups_are_made_again_in_the_order_in_which_their_gradient_reads_them(monkeypatch):
    """Kept from the forward on, the second copy would be one more of the large arrays; the model does not know which
    tiles XLA will choose for rows of groups."""
    for module in ("compiled.roofline", "cost.kernels"):
        monkeypatch.setattr(f"jaxremat.{module}.ROWS_APART", 1.0)
    args = [jax.ShapeDtypeStruct((8, 512, heads, 64), jnp.float32) for heads in (8, 2, 2)]
    modelled, compiled = kernels(attention_and_its_gradient, args)
    assert sum(modelled) == pytest.approx(sum(compiled), rel=0.05)
    program = jax.make_jaxpr(attention_and_its_gradient)(*args).jaxpr
    held = compiled_for_h200(attention_and_its_gradient, args).memory_analysis().temp_size_in_bytes
    assert estimate_memory(program, resolve_target("h200")).temp_bytes == pytest.approx(held, rel=0.02)


LENGTH, ENTRY = 4, 4 * 2048 * 2048
SQUARE, STACK = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2048, 2048), (LENGTH, 2048, 2048)))


def large_kernels(step):
    """The kernels of a scan over a stack that move as much as an entry of it, in the order in which they run."""
    text = compiled_text(lambda x, stack: lax.scan(step, x, stack), (SQUARE, STACK))
    return [kernel for kernel in roofline(text, resolve_target("h200")).kernels if kernel.moved_bytes >= ENTRY]


def in_loop(kernels):
    return [kernel for kernel in kernels if kernel.runs == LENGTH]


def test_a_loop_reads_a_slice_where_it_is():
    (kernel,) = in_loop(large_kernels(lambda x, w: (jnp.sin(x) + w, None)))
    assert kernel.moved_bytes == pytest.approx(3 * ENTRY, rel=1e-3)


def test_a_product_reads_a_copy_of_its_slice():
    copied, product, *_ = in_loop(large_kernels(lambda x, w: (x @ w, None)))
    assert copied.moved_bytes == pytest.approx(2 * ENTRY, rel=1e-3) and not copied.flops
    assert product.flops


def test_what_is_stacked_is_written_in_place_by_a_kernel_of_its_own_into_zeros():
    kernels = large_kernels(lambda x, w: (jnp.sin(x) + w, x))
    assert sorted(kernel.moved_bytes // ENTRY for kernel in in_loop(kernels)) == [2, 3]
    assert LENGTH in [kernel.moved_bytes // ENTRY for kernel in kernels if kernel.runs == 1]


def gated(x, weights):
    up, gate, down = weights
    return x + (jnp.tanh(x @ up) * jax.nn.silu(x @ gate)) @ down


@pytest.mark.parametrize(("block", "number"), [(lambda x, weights: x + jnp.tanh(x @ weights[0]), 1), (gated, 3)])
def test_slices_of_a_body_are_there_from_its_start_and_what_is_stacked_to_its_end(block, number):
    """The body of the gradient reads slices of weights and residuals, and stacks gradients of weights."""

    def loss(x, *stacks):
        return jnp.mean(lax.scan(lambda x, weights: (block(x, weights), None), x, stacks)[0] ** 2)

    args = SQUARE, *(STACK,) * number
    gradient = jax.value_and_grad(loss, range(1 + number))
    compiled = compiled_for_h200(gradient, args).memory_analysis().temp_size_in_bytes
    program = jax.make_jaxpr(gradient)(*args).jaxpr
    assert estimate_memory(program, resolve_target("h200")).temp_bytes == pytest.approx(compiled, rel=0.001)


def read_early(x, w):
    """`first` is read for the last time early in the order of the program; found from the outputs, late."""
    first = x @ w
    summed = jnp.sum(jnp.sort(first, 0))
    second = first @ x
    return (second @ w) @ second, summed


def heads_again(x, weights):
    """Scores of eight heads are there twice in the order of the program; found from the outputs, once."""
    heads = lambda w: (x @ w).reshape(*x.shape[:2], 8, -1)
    query, key, value, out = weights
    shares = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", heads(query), heads(key)).astype(jnp.float32))
    return x + jnp.einsum("bhqk,bkhd->bqhd", shares.astype(x.dtype), heads(value)).reshape(x.shape) @ out


def gradient_of_scan(block):
    def loss(weights, x):
        again = jax.checkpoint(block, prevent_cse=False)
        return jnp.sum(lax.scan(lambda x, w: (again(x, w), None), x, weights)[0].astype(jnp.float32) ** 2)

    return jax.grad(loss)


EMBEDDED, MATRICES = (jax.ShapeDtypeStruct((4, rows, 512), jnp.bfloat16) for rows in (1024, 512))


@pytest.mark.parametrize(
    ("fun", "args"),
    [
        (lambda x, stack: lax.scan(read_early, x, stack), (SQUARE, STACK)),
        (gradient_of_scan(heads_again), ((MATRICES,) * 4, EMBEDDED)),
    ],
    ids=["found from the outputs", "of the program"],
)
def test_iterations_run_in_the_larger_of_two_orders(fun, args):
    """XLA:GPU runs the first as a search from the outputs finds it, the second in the order of the program."""
    compiled = compiled_for_h200(fun, args).memory_analysis().temp_size_in_bytes
    program = jax.make_jaxpr(fun)(*args).jaxpr
    assert estimate_memory(program, resolve_target("h200")).temp_bytes == pytest.approx(compiled, rel=0.01)


def chain(weights, x):
    for w in weights:
        x = x + jnp.tanh(x @ w)
    return (x.astype(jnp.float32) ** 2).mean()


@pytest.mark.parametrize(("gigabytes", "trips"), [(150, False), (0.2, True)])
def test_a_report_says_whether_xla_rematerializes(gigabytes, trips):
    """The pass keeps to a part of the device's memory; on a small device this program trips it."""
    args = [jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)] * 12, jax.ShapeDtypeStruct((8192, 512), jnp.bfloat16)
    config = re.sub(r"device_memory_size: \d+", f"device_memory_size: {int(gigabytes * 1e9)}", target_config("h200"))
    small = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=config)
    place = SingleDeviceSharding(small.devices[0])
    placed = jax.tree.map(lambda arg: jax.ShapeDtypeStruct(arg.shape, arg.dtype, sharding=place), args)
    lowered = jax.jit(jax.value_and_grad(chain)).trace(*placed).lower(lowering_platforms=("cuda",))
    text = lowered.compile(compiler_options={"xla_gpu_autotune_level": 0}).as_text()
    assert bool(rematerialized(text)) == trips
