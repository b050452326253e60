"""Random differentiable programs: the same program at every trace, for a seed."""

import random

import jax
import jax.numpy as jnp
import numpy as np

ROWS, WIDTH = 24, 16


@jax.custom_jvp
def smooth_step(x):
    return jnp.where(x > 0, jnp.tanh(x), 0.5 * jnp.sin(x))


@smooth_step.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    y = smooth_step(x)
    return y, t * jnp.where(x > 0, 1 - y * y, 0.5 * jnp.cos(x))


def arguments():
    """(w, x) in float32."""
    w = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    x = np.random.default_rng(1).normal(size=(ROWS, WIDTH))
    return jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32)


def random_program(seed):
    """Matmuls, element-wise chains, reductions, masks, gathers, cond, scans, custom rules, with fan-out."""
    steps = _recipe(random.Random(seed))

    def fun(w, x):
        values = [x, jnp.tanh(x @ w)]
        for operation, first, second, number in steps:
            values.append(_OPERATIONS[operation](values[first], values[second], w, number))
        return sum(jnp.mean(value**2) for value in values[-3:])

    return fun


def _recipe(rng):
    steps = []
    for count in range(2, 2 + rng.randint(4, 16)):
        steps.append((rng.randrange(len(_OPERATIONS)), rng.randrange(count), rng.randrange(count), rng.randint(1, 5)))
    return steps


def _scan(a, b, w, number):
    def body(carry, row):
        carry = jnp.tanh(carry @ w) + 0.1 * row
        return carry, jnp.sin(carry).sum(-1)

    last, stacked = jax.lax.scan(body, a, jnp.stack([b] * number))
    return last + stacked.mean()


def _nested_scan(a, b, w, number):
    def outer(carry, _):
        return jax.lax.fori_loop(0, 2, lambda i, c: jnp.cos(c @ w) * 0.9, carry), None

    return jax.lax.scan(outer, a, None, length=number)[0] + b


_OPERATIONS = (
    lambda a, b, w, n: jnp.tanh(a @ w),
    lambda a, b, w, n: a * b,
    lambda a, b, w, n: a + jnp.sin(n * b),
    lambda a, b, w, n: a / (1 + jnp.exp(-b)),
    lambda a, b, w, n: a - a.mean(-1, keepdims=True),
    lambda a, b, w, n: jax.nn.softmax(a) * 3,
    lambda a, b, w, n: jnp.where(a > 0, b, a / 10),
    lambda a, b, w, n: jnp.concatenate([a[:, :n], b[:, n:]], 1),
    lambda a, b, w, n: jax.nn.softmax(a @ b.T) @ b,
    lambda a, b, w, n: a[jnp.arange(ROWS)[::-1] % (4 * n)] + b,
    lambda a, b, w, n: jax.lax.cond(a.mean() > b.mean(), lambda x: jnp.tanh(x @ w), jnp.sin, a),
    lambda a, b, w, n: smooth_step(a) * jax.nn.gelu(b),
    lambda a, b, w, n: jax.checkpoint(lambda x: jnp.sin(x @ w) ** 2)(a) + b,
    lambda a, b, w, n: jnp.cumsum(a, 0) / ROWS + jnp.sort(b, -1),
    _scan,
    _nested_scan,
)
