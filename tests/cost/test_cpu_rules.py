"""Each rule of XLA:CPU that the model follows, against the compiled program: what is written, and what is live."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from compiled_buffers import compiled_buffers, modelled_buffers
from jax import lax

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.fusion import fuse
from jaxremat.cost.hlo_model import lower
from jaxremat.cost.memory import estimate_memory
from jaxremat.trace.stack import Stack

CPU = resolve_target("cpu")


def S(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


X, W, ROW = S(64, 128), S(128, 128), S(128)
HALF, BRAIN = S(64, 128, dtype=jnp.float16), S(64, 128, dtype=jnp.bfloat16)
FILL = 4 * 64 * 128  # bytes of X
NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x, k, numbers=NHWC):
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)


def depthwise(x, k):
    return lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=x.shape[-1])


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()


def averaged(x, size, step):
    """Averages over windows of what a ReLU makes of an array that is written."""
    window, strides = (1, size, size, 1), (1, step, step, 1)
    return lax.reduce_window(jnp.maximum(jnp.sin(x)[..., ::-1], 0.0), 0.0, lax.add, window, strides, "SAME") * 0.5


def averaged_back(x):
    window, like = (1, 2, 2, 1), jnp.zeros((2, 16, 16, 8))
    return jax.vjp(lambda y: lax.reduce_window(y, 0.0, lax.add, window, window, "VALID"), like)[1](jnp.tanh(x))[0] * 0.5


def scattered(rows, x, *, read_twice):
    y = jnp.zeros((64, 128)).at[rows].add(2.0)
    return jnp.exp(y + jnp.sort(x)), y[::-1] if read_twice else rows


def twice(first, second=lambda y: y[::-1] * 2.0):
    """A value with two readers."""

    def fun(*args):
        y = first(*args)
        return y * 3.0, second(y)

    return fun


def both_ways(x, around):
    filled = lax.pad(x, 0.0, ((around, around, 0), (0, 0, 0)))
    return filled * 2.0 + filled[::-1]


def folded(x):
    """Sums of neighbours: the first is read at 16 places, what it reads at 32."""
    for _ in range(5):
        x = x[1:] + x[:-1] * 2.0
    return x


RULES = {
    "a product is in the library alone": (lambda x, w: jnp.maximum((x * 2.0 + 1.0) @ w, 0.0), (X, W), [FILL] * 3),
    "a convolution is in the library alone": (
        lambda x, k: jnp.maximum(conv(x, k), 0.0), (S(2, 8, 8, 32), S(3, 3, 32, 32)), [16384] * 2,
    ),
    "a reduction takes a chain that only it reads": (lambda x: jnp.sum(jnp.exp(x) * 2.0, 0), (X,), []),
    "a reduction takes what is spread along rows": (lambda x, b: jnp.sum(jnp.tanh(x) * b[None], 0), (X, ROW), []),
    "a reduction takes a product": (lambda x, w: jnp.sum(x @ w, 0), (X, W), []),
    "a reduction takes a convolution": (
        lambda x, k: jnp.sum(conv(x, k), (0, 1, 2)), (S(2, 16, 16, 32), S(3, 3, 32, 32)), [],
    ),
    "a convolution of few channels is not in the library": (
        lambda x, k: jnp.sum(conv(x, k), (0, 1, 2)), (S(2, 16, 16, 16), S(3, 3, 16, 16)), [32768],
    ),
    "a reduction leaves what others read": (lambda x: ((y := jnp.exp(x))[::-1], jnp.sum(y, 0)), (X,), [FILL] * 2),
    "a reduction leaves what the library lacks": (
        lambda x, m: jnp.sum(jnp.where(m > 0, x, 0.0), 0), (X, X), [FILL],
    ),
    "a reduction's reader joins it": (lambda x: jnp.exp(jnp.sum(x, 1)), (S(8, 64, 1024),), [4 * 8 * 1024]),
    "a small reduction runs in a loop": (
        lambda x: jnp.exp(jnp.sum(x, 0))[None] * jnp.ones((64, 1)), (S(16, 64),), [16384],
    ),
    "a small reduction takes what the library lacks": (
        lambda x, m: jnp.sum(jnp.where(m > 0, x, 0.0), 0), (S(16, 64),) * 2, [],
    ),
    "a cheap value of one operand is made twice": (twice(lambda x: x + 1.0), (X,), [FILL] * 2),
    "an expensive value is written": (twice(jnp.exp), (X,), [FILL] * 3),
    "a value of two operands is made twice where all take it": (twice(jnp.add), (X, X), [FILL] * 2),
    "a value of two operands is written where one cannot take it": (twice(jnp.add, jnp.sort), (X, X), [FILL] * 3),
    "a value of one operand is made twice all the same": (twice(lambda x: x + 1.0, jnp.sort), (X,), [FILL] * 3),
    "parts of rows are joined apart": (
        lambda a, b: jnp.concatenate([a * 2.0, b + 1.0], 1) * 3.0, (S(8, 512),) * 2, [16384] * 2 + [32768] * 2,
    ),
    "whole rows are joined in the loop": (
        lambda a, b: jnp.concatenate([a * 2.0, b + 1.0], 0) * 3.0, (X, X), [2 * FILL],
    ),
    "many parts of rows are joined apart": (
        lambda a: jnp.concatenate([a[:, :16] * float(i + 2) for i in range(9)], 1) * 3.0, (S(16, 32),),
        [1024] * 9 + [9216] * 2,
    ),
    "an expensive value is made once before it is spread": (
        lambda b: jnp.broadcast_to(jnp.exp(b)[None], (64, 512)) * 1.5, (S(512),), [2048, 131072],
    ),
    "a cheap value is made where it is spread": (
        lambda b: jnp.broadcast_to((b + 1.0)[None], (64, 512)) * 1.5, (S(512),), [131072],
    ),
    "a batch that does not lead is moved": (
        lambda a, b: jnp.einsum("abc,dbc->bad", a, b), (S(16, 8, 32),) * 2, [8192, 16384, 16384],
    ),
    "a batch that leads stays": (lambda a, b: jnp.einsum("bac,bdc->bad", a, b), (S(8, 16, 32),) * 2, [8192]),
    "contracted dimensions that are torn apart are moved": (
        lambda a, b: lax.dot_general(a, b, (((0, 2), (0, 2)), ((), ()))), (S(16, 8, 32),) * 2, [16384] * 2,
    ),
    "contracted dimensions that lead are moved last": (
        lambda a, b: lax.dot_general(a, b, (((0, 1), (0, 1)), ((), ()))), (S(16, 8, 32), S(16, 8, 64)), [8192, 16384],
    ),
    "contracted dimensions that come last in the second are moved first": (
        lambda a, b: lax.dot_general(a, b, (((2,), (2,)), ((), ()))), (S(6, 8, 64), S(4, 32, 64)), [24576, 32768],
    ),
    "contracted dimensions in another order are moved": (
        lambda a, b: lax.dot_general(a, b, (((3, 2), (2, 1)), ((), ()))), (S(4, 16, 4, 32), S(64, 4, 32)),
        [16384] + [32768] * 2,
    ),
    "a batch of matrices stays, whichever of its dimensions is contracted": (
        lambda a, b: lax.dot_general(a, b, (((1,), (2,)), ((0,), (0,)))), (S(4, 64, 16), S(4, 32, 64)), [8192],
    ),
    "a transposed matrix is read as it lies": (lambda a, b: a.T @ b, (X, X), [65536]),
    "a transposed product of matrices changes its operands": (lambda a, b: (a @ b).T, (S(64, 32), S(32, 64)), [16384]),
    "a kernel is turned": (
        lambda x, k: conv(x, k, ("NHWC", "OIHW", "NHWC")), (S(2, 8, 8, 32), S(32, 32, 3, 3)), [16384, 36864],
    ),
    "an image is turned, and the result back": (
        lambda x, k: conv(x, k, ("NCHW", "HWIO", "NCHW")), (S(2, 32, 8, 8), S(3, 3, 32, 32)), [16384] * 3,
    ),
    "gradients of depthwise filters go through those of dense ones": (
        jax.grad(lambda k, x: jnp.sum(depthwise(x, k) ** 2)), (S(3, 3, 1, 32), S(2, 8, 8, 32)),
        [1152] + [16384] * 3 + [36864] * 2,
    ),
    "division by what is spread multiplies by reciprocals": (
        lambda x, b: x / b[:, None], (S(1024, 8), S(1024)), [4096, 32768],
    ),
    "equal values are one": (lambda x: (jnp.exp(x)[::-1] + 1.0, jnp.exp(x) * 2.0), (X,), [FILL] * 3),
    "a barrier's operands are written": (lambda x: jnp.cos(lax.optimization_barrier(x * 2.0)), (X,), [FILL] * 2),
    "equal values on both sides of a barrier are two": (
        lambda x: (jnp.exp(x)[::-1] + 1.0, jnp.exp(lax.optimization_barrier(x)) * 2.0), (X,), [FILL] * 2,
    ),
    "the order of factors does not matter": (
        lambda x, z: (jnp.exp(x * z) * 2.0, jnp.exp(z * x)[::-1] + 1.0), (X, X), [FILL] * 3,
    ),
    "windows side by side are in the library with what surrounds them": (
        lambda x: averaged(x, 2, 2), (S(2, 32, 32, 8),), [65536, 16384],
    ),
    "windows that overlap read and write buffers": (
        lambda x: averaged(x, 3, 2), (S(2, 32, 32, 8),), [65536, 16384, 16384],
    ),
    "zeros between what is summed are part of the window": (averaged_back, (S(2, 8, 8, 8),), [4096, 16384, 16384]),
    "what is scattered into zeros and added is scattered into the other": (
        functools.partial(scattered, read_twice=False), (S(2, dtype=jnp.int32), X), [1024] + [FILL] * 3,
    ),
    "what is scattered for two is added by itself": (
        functools.partial(scattered, read_twice=True), (S(2, dtype=jnp.int32), X), [1024] + [FILL] * 5,
    ),
    "a pooling gradient searches arrays of indices": (jax.grad(pooled), (S(2, 16, 16, 8),), [4096] + [16384] * 7),
    "what is filled up for two is written": (functools.partial(both_ways, around=1), (X,), [4 * 66 * 128] * 2),
    "what is cut off costs nothing": (functools.partial(both_ways, around=-1), (X,), [4 * 62 * 128]),
    "what is filled up and cut is filled up, then cut": (
        lambda x: lax.pad(x, 0.0, ((2, -2, 0), (0, 0, 0))) * 2.0, (X,), [FILL],
    ),
    "a loop's code is not written out more than fifteen times": (folded, (X,), [4 * 63 * 128, 4 * 59 * 128]),
    "bfloat16 products that no library takes are float32": (
        lambda a, b: a.T @ b, (BRAIN, BRAIN), [FILL, FILL, 65536, 32768],
    ),
    "bfloat16 products in the library stay": (lambda a, b: a @ b, (BRAIN, S(128, 64, dtype=jnp.bfloat16)), [8192]),
    "bfloat16 arithmetic is written": (twice(lambda x: x + 1, lambda y: (y * 2)[::-1]), (BRAIN,), [FILL // 2] * 3),
    "bfloat16 without rounding is made twice": (lambda x: ((y := -x)[::-1], jnp.abs(y)), (BRAIN,), [FILL // 2] * 2),
    "bfloat16 convolutions are float32": (
        conv, (S(2, 8, 8, 32, dtype=jnp.bfloat16), S(3, 3, 32, 32, dtype=jnp.bfloat16)), [8192, 16384, 16384, 36864],
    ),
    "float16 products are float32": (
        lambda a, b: jnp.exp(a) @ b, (HALF, S(128, 64, dtype=jnp.float16)), [8192, 16384, FILL, FILL],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_is_written(rule):
    fun, args, expected = RULES[rule]
    executable = jax.jit(fun).lower(*args).compile()
    assert Counter(modelled_buffers(fun, args, CPU)) == Counter(expected)
    assert Counter(compiled_buffers(executable.as_text())) == Counter(expected)


def stacked(x, v):
    """An element-wise loop over what a scan has stacked."""
    rows = lax.scan(lambda total, row: (total + row, jnp.tanh(total)), jnp.zeros_like(x[0]), x)[1]
    return jnp.exp(rows) @ v


def looped(x):
    """Loops one after another: each stacks X, and carries from zeros on."""
    sums = []
    for _ in range(4):
        total, x = lax.scan(lambda c, row: (c + row, row * 2.0), jnp.zeros(x.shape[1:]), x)
        sums.append(jnp.sum(total))
    return x, sums


def idle(x, *, carried):
    """A loop whose stacked results nobody reads, as JAX stacks them or as a carry that is written into."""

    def step(running, entry):
        (total, rows), (row, k) = running, entry
        new = jnp.tanh(row)
        rows = Stack(rows).put(new, k).array if carried else rows
        return (total + row, rows), () if carried else new

    first = jnp.zeros(x.shape[1:]), jnp.zeros(x.shape if carried else ())
    return jnp.sum(lax.scan(step, first, (x, jnp.arange(len(x))))[0][0][::-1], 1)


KEY = jax.eval_shape(lambda: jax.random.key(0))
LIVE = {
    "nothing is written over what a loop returns": (stacked, (S(512, 128), S(128, 8)), 2 * 4 * 512 * 128),
    "a loop that reads elsewhere does not write over what it reads": (
        lambda x, w, v: jnp.exp((x @ w)[::-1]) @ v, (X, W, S(128, 8)), 2 * FILL,
    ),
    "a chain of element-wise loops takes one buffer": (
        lambda x, w, v: jnp.exp(jnp.tanh(x @ w)) @ v, (X, W, S(128, 8)), FILL,
    ),
    "a reversal does not write over what it reads": (lambda x, w: (x @ w)[::-1] * 2.0, (X, W), FILL),
    "what loops stack, and carry from constants on, is made at the start": (
        looped, (S(2, 64, 128),), 3 * 2 * FILL + 4 * FILL,
    ),
    "what a loop stacks for nobody is not there": (functools.partial(idle, carried=False), (S(9, 64, 128),), 2 * FILL),
    "what a loop writes into for nobody is not there": (
        functools.partial(idle, carried=True), (S(9, 64, 128),), 2 * FILL,
    ),
    "what two read lives until the second has": (twice(jnp.exp), (X,), FILL),
    "an index of a maximum is found with the maximum": (
        lambda x: jnp.argmax(x.reshape(64, 32, 4), -1), (X,), FILL // 4,
    ),
    "random bits are made in halves, of halves": (lambda key: jax.random.bits(key, X.shape), (KEY,), 3 * FILL),
    "the halves of random bits are joined where they are read": (
        lambda key, x: jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x, 0.0) * 2.0, (KEY, X), 3 * FILL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", LIVE)
def test_what_is_live(rule):
    fun, args, expected = LIVE[rule]
    estimated = estimate_memory(jax.make_jaxpr(fun)(*args).jaxpr, CPU).temp_bytes
    compiled = jax.jit(fun).lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert [estimated, compiled] == pytest.approx([expected] * 2, abs=2048)


def test_what_is_ready_first_runs_first():
    """The second product of the program is ready at once, and runs before the chain that is written first goes on."""

    def fun(x, w, v):
        first = x
        for _ in range(3):
            first = jnp.sort(first @ w)
        return first, jnp.sort(x @ v)

    args = X, W, S(128, 1024)
    wide = 4 * 64 * 1024
    sizes = compiled_buffers(jax.jit(fun).lower(*args).compile().as_text())
    jaxpr = jax.make_jaxpr(fun)(*args).jaxpr
    steps = [4 * jaxpr.eqns[e].outvars[0].aval.size for e in estimate_memory(jaxpr, CPU).steps]
    assert len(sizes) == len(steps) == 8
    assert sizes.index(wide) <= 1 and steps.index(wide) <= 1


def test_a_value_that_one_reader_cannot_take_is_read_by_the_others_too():
    """A sum of two arrays, sorted: the loop beside the sort reads the sum, not the two arrays."""
    fun = twice(jnp.add, lambda y: jnp.sort(y))
    fusion = fuse(lower(jax.make_jaxpr(fun)(X, X).jaxpr, CPU.backend), CPU)
    (loop,) = [kernel for kernel in fusion.kernels if fusion.program.ops[kernel].kind == "mul"]
    (read,) = fusion.buffers_read[loop]
    assert fusion.program.ops[read].kind == "add"
    text = jax.jit(fun).lower(X, X).compile().as_text()
    entry = text[text.index("\nENTRY ") :]
    operands = [found.count("%") for found in re.findall(r" fusion\(([^)]*)\), kind=kLoop", entry)]
    assert sorted(operands) == [1, 2], "one loop adds two arrays, one reads their sum"
