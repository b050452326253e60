"""Bounds of integers: every number that a program makes lies between them, and simple ones are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.bounds import Bounds, bounds_in

INT8 = np.arange(-128, 128, dtype=np.int8)
UINT8 = np.arange(256, dtype=np.uint8)
EXACT = {
    "add": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "max": lax.max,
    "min": lax.min,
    "lt": lax.lt,
    "le": lax.le,
    "gt": lax.gt,
    "ge": lax.ge,
    "neg": lambda a, b: lax.neg(a),
    "abs": lambda a, b: jnp.abs(a),
    "sign": lambda a, b: lax.sign(a),
    "not": lambda a, b: lax.bitwise_not(a),
    "square": lambda a, b: lax.square(a),
    "power": lambda a, b: lax.integer_pow(a, 3),
    "even power": lambda a, b: lax.integer_pow(a, 2),
    "clamp": lambda a, b: lax.clamp(np.asarray(3, a.dtype), a, lax.max(b, np.asarray(7, b.dtype))),
}
WITHIN = EXACT | {
    "eq": lax.eq,
    "ne": lax.ne,
    "rem": lax.rem,
    "div": lax.div,
    "floor_divide": jnp.floor_divide,
    "mod": jnp.mod,
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
    "left": lax.shift_left,
    "right": lax.shift_right_arithmetic,
    "right as bits": lax.shift_right_logical,
    "bits": lambda a, b: lax.population_count(a),
    "zeros": lambda a, b: lax.clz(a),
    "narrower": lambda a, b: lax.convert_element_type(a, jnp.uint8 if a.dtype == jnp.int8 else jnp.int8),
    "wider": lambda a, b: lax.convert_element_type(a, jnp.int32) - lax.convert_element_type(b, jnp.int32),
    "bool": lambda a, b: a.astype(jnp.bool_).astype(a.dtype),
}


def between(x, low, high):
    return lax.clamp(np.asarray(low, x.dtype), x, np.asarray(high, x.dtype))


def results_and_bounds(fun, *args):
    """(the results of a function, the bounds of each)."""
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(fun)(*args))
    known = bounds_in(jaxpr)
    return jaxprs.evaluate(jaxpr, args), [known[v] for v in jaxpr.outvars]


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("numbers", [INT8, UINT8], ids=["signed", "unsigned"])
def test_all_numbers_lie_within_and_those_of_monotone_steps_fill_it(name, numbers):
    """Of all pairs of bytes between random bounds."""
    rng = np.random.default_rng(len(name))
    a, b = (jnp.asarray(x) for x in np.meshgrid(numbers, numbers))
    for spread in (0, 3, 12, 255):
        ends = np.sort(rng.integers(numbers.min(), int(numbers.max()) + 1, (2, 2)), axis=1)
        (a_low, a_high), (b_low, b_high) = [(low, min(high, low + spread)) for low, high in ends]
        (found,), (bounds,) = results_and_bounds(
            lambda a, b, x=(a_low, a_high), y=(b_low, b_high): WITHIN[name](between(a, *x), between(b, *y)), a, b
        )
        exact = Bounds(int(found.min()), int(found.max()))
        assert exact.within(bounds), (name, (a_low, a_high), (b_low, b_high))
        wraps = bounds in (Bounds(-128, 127), Bounds(0, 255))
        assert name not in EXACT or bounds == exact or wraps


@pytest.mark.parametrize(
    ("fun", "bounds"),
    [
        (lambda x: jnp.argmax(x, axis=1), (0, 6)),
        (lambda x: lax.top_k(x, 2)[1], (0, 6)),
        (lambda x: jnp.argsort(x, axis=0), (0, 4)),
        (lambda x: (x > 0).astype(jnp.int32), (0, 1)),
        (lambda x: jnp.cumsum(x > 0, axis=1), (0, 7)),
        (lambda x: jnp.sum(x > 0), (0, 35)),
        (lambda x: jnp.max(jnp.argmax(x, axis=1)) - 6, (-6, 0)),
        (lambda x: jnp.pad(jnp.argmax(x, axis=1), 1, constant_values=9), (0, 9)),
        (lambda x: jnp.concatenate([jnp.argmax(x, axis=1), jnp.arange(20)]), (0, 19)),
        (lambda x: jax.random.randint(jax.random.wrap_key_data(x.astype(jnp.uint32)[0, :2]), (3,), 0, 10), (0, 9)),
        (lambda x: lax.argmax(x.astype(jnp.int32), 1, jnp.int32) * 300 + 7, (7, 1807)),
        (lambda x: jax.nn.relu(jnp.argmax(x, axis=1) - 2), (0, 4)),
        (lambda x: x.astype(jnp.int32), (-(2**31), 2**31 - 1)),
        (lambda x: jnp.argmax(x, axis=1) * 2**29, (-(2**31), 2**31 - 1)),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: 3, lambda: 5), (3, 5)),
        (lambda x: lax.fori_loop(0, 5, lambda i, a: jnp.where(i > 2, a, 3), 3), (3, 3)),
        (lambda x: lax.scan(lambda a, row: (a, jnp.argmax(row)), 0, x)[1], (0, 6)),
        (lambda x: lax.scan(lambda a, row: (jnp.argmax(row), a), 2, x)[1], (-(2**31), 2**31 - 1)),
    ],
)
def test_bounds_are_proven(fun, bounds):
    (found,), (known,) = results_and_bounds(fun, jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)), jnp.float32))
    assert known == bounds
    assert Bounds(int(found.min()), int(found.max())).within(known)


def test_an_index_that_is_taken_from_the_end_where_it_is_negative_stays_one():
    """Every index of NumPy's kind: `select(i < 0, i, i + n)`, of which the first is known."""

    def taken(x):
        index = jnp.argmax(x, axis=1)
        return jnp.where(index < 0, index + 200, index)

    _, (known,) = results_and_bounds(taken, jnp.ones((3, 200)))
    assert known == Bounds(0, 199)


def test_constants_that_a_program_carries_may_be_others():
    table = jnp.arange(4)
    _, (known,) = results_and_bounds(lambda i: table[i % 4] + 0 * i, jnp.arange(3))
    assert known == Bounds(-(2**31), 2**31 - 1)


def _stepped(rng, pool):
    """One more array [3, 4], made of some that are there by a random step."""
    x, y, z = (pool[i] for i in rng.integers(len(pool), size=3))
    small = np.asarray(rng.integers(1, 9), x.dtype)
    axis = int(rng.integers(2))
    index = jnp.argmax(x, axis=axis, keepdims=True).astype(x.dtype)
    table = {
        "add": lambda: x + y,
        "sub": lambda: x - y,
        "mul": lambda: x * small,
        "rem": lambda: lax.rem(x, small + 0 * y),
        "mod": lambda: x % small,
        "div": lambda: x // small,
        "clamp": lambda: lax.clamp(lax.min(y, z), x, lax.max(y, z)),
        "and": lambda: x & y,
        "or": lambda: x | small,
        "shift": lambda: lax.shift_right_logical(x, small),
        "where": lambda: jnp.where(y < z, x, z),
        "index": lambda: index + 0 * x,
        "order": lambda: jnp.argsort(x, axis=axis).astype(x.dtype),
        "both sorted": lambda: lax.sort((x, y), dimension=axis)[1],
        "taken": lambda: jnp.take_along_axis(x, lax.rem(jnp.abs(y.astype(jnp.int32)), 3), axis=0),
        "taken anywhere": lambda: jnp.take(x, y[:, 0], axis=0),
        "set": lambda: x.at[y[0] % 3].set(z[:1]),
        "summed": lambda: jnp.cumsum(lax.rem(x, small), axis=axis, dtype=x.dtype),
        "sum": lambda: y + jnp.sum(lax.rem(x, small), axis=axis, keepdims=True, dtype=x.dtype),
        "most": lambda: jnp.maximum(y, jnp.max(x, axis=axis, keepdims=True)),
        "turned": lambda: jnp.flip(x.reshape(4, 3).T, axis).astype(x.dtype),
        "rolled": lambda: jnp.roll(x, 1, axis),
        "largest": lambda: lax.top_k(x, 4)[1].astype(x.dtype),
        "looped": lambda: lax.fori_loop(0, 3, lambda i, a: lax.min(a + small, lax.max(a, y)), x),
        "scanned": lambda: lax.scan(lambda a, row: (lax.rem(a + row, small), a), x[0], y)[1],
        "chosen": lambda: lax.cond(x[0, 0] > y[0, 0], lambda a, b: a, lambda a, b: b + small, y, z),
    }
    return table[str(rng.choice(sorted(table)))]()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
@pytest.mark.parametrize("seed", range(8))
def test_random_programs_stay_within_their_bounds(seed, dtype):
    def program(x, y):
        rng, pool = np.random.default_rng(seed), [x, y, lax.rem(x, np.asarray(5, dtype)), jnp.full((3, 4), 2, dtype)]
        for _ in range(25):
            pool.append(_stepped(rng, pool))
        return pool

    rng, kind = np.random.default_rng(100 + seed), jnp.iinfo(dtype)
    for low, high in ((kind.min, kind.max), (0, 9)):
        x, y = (jnp.asarray(rng.integers(low, high, (3, 4), endpoint=True), dtype) for _ in range(2))
        found, bounds = results_and_bounds(program, x, y)
        for values, known in zip(found, bounds, strict=True):
            assert Bounds(int(values.min()), int(values.max())).within(known)
