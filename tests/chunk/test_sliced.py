"""Parts of differentiated programs in slices: the same values, and what need not exist whole does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_programs
from step_programs import numbers

from jaxremat.base import compat
from jaxremat.chunk.rewriting import program
from jaxremat.chunk.rewriting.sliced import SliceFinder
from jaxremat.chunk.tiling.subgraph import operand_windows
from jaxremat.chunk.tiling.tiles import Span
from jaxremat.step.rewriting import inlined_throughout
from jaxremat.trace import jaxpr as jaxprs

TOKENS, WIDTH, WIDE = 256, 16, 128


def normal(number, *shape):
    return 0.3 * jax.random.normal(jax.random.key(number), shape)


def gradient(loss):
    return lambda params, *data: jax.value_and_grad(loss)(params, *data)


def head(params, x, labels):
    logits = jnp.tanh(x @ params[0]) @ params[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlps(params, x):
    for up, down in params:
        x = x + jax.nn.gelu(x @ up) @ down
    return (x**2).mean()


def attention(params, x):
    for wq, wk, wv in params:
        q, k, v = (jnp.einsum("bsd,dhe->bhse", x, w) for w in (wq, wk, wv))
        scores = jnp.where(jnp.tril(jnp.ones((64, 64), bool)), jnp.einsum("bhqe,bhke->bhqk", q, k), -1e9)
        x = x + jnp.einsum("bhqk,bhke->bqhe", jax.nn.softmax(scores), v).reshape(x.shape)
    return (x**2).mean()


def normalised(params, x):
    """Statistics over the batch, which every slice waits for."""
    for up, down in params:
        h = x @ up
        h = jax.nn.relu((h - h.mean(0)) / (h.std(0) + 1e-3))
        x = x + h @ down
    return (x**2).mean()


PAIRS = [(normal(i, WIDTH, WIDE), normal(i + 9, WIDE, WIDTH)) for i in range(3)]
X = normal(20, TOKENS, WIDTH)
HEADS = [tuple(normal(3 * i + j, 16, 2, 8) for j in range(3)) for i in range(2)]
CASES = {
    "head": (head, ([normal(0, WIDTH, WIDTH), normal(1, WIDTH, WIDE)], X, jnp.arange(TOKENS) % WIDE), False),
    "mlps": (mlps, (PAIRS, X), False),
    "mlps over the batch": (mlps, (PAIRS, X), True),
    "attention": (attention, (HEADS, normal(9, 4, 64, 16)), False),
    "attention over the batch": (attention, (HEADS, normal(9, 4, 64, 16)), True),
    "statistics": (normalised, (PAIRS, X), True),
}  # fmt: skip


def flat_of(step, args):
    leaves, tree = jax.tree.flatten(args)
    return inlined_throughout(jax.make_jaxpr(lambda *xs: jax.tree.leaves(step(*jax.tree.unflatten(tree, xs))))(*leaves))


def cut(jaxpr, finder):
    """The program with all that is found in slices, and how many loops that took for each part."""
    loops = []
    while found := program.find(jaxpr, finder):
        loops.append(len(found))
        run = lambda *xs, jaxpr=jaxpr: program.run(jaxpr, xs, finder)
        jaxpr = jaxprs.inline_calls(jax.make_jaxpr(run)(*map(jaxprs.argument_like, jaxpr.invars)))
    return jaxpr, loops


def assert_same(jaxpr, other, leaves):
    run = lambda program: jax.jit(lambda *xs: jaxprs.evaluate(program, xs))(*leaves)
    for mine, own in zip(numbers(run(other)), numbers(run(jaxpr)), strict=True):
        np.testing.assert_allclose(mine, own, rtol=1e-4, atol=1e-5 * (1 + np.abs(own).max()))


def largest(jaxpr):
    return max(jaxprs.shape_of(v).size for eqn in jaxpr.eqns for v in eqn.outvars)


@pytest.mark.parametrize("name", CASES)
def test_values_are_the_same_and_large_ones_are_gone(name):
    loss, args, whole = CASES[name]
    jaxpr = flat_of(gradient(loss), args)
    other, loops = cut(jaxpr, SliceFinder(largest(jaxpr) // 4, whole=whole))
    assert loops and largest(other) <= largest(jaxpr) // 4
    assert_same(jaxpr, other, jax.tree.leaves(args))


@pytest.mark.parametrize(
    ("name", "loops"), [("head", [1]), ("mlps", [1, 2, 2]), ("mlps over the batch", [1]), ("attention", [1, 2])]
)
def test_what_needs_no_later_value_is_computed_in_one_loop(name, loops):
    """The cotangent of a mean is known before the mean: the last layer's gradients come with its results."""
    loss, args, whole = CASES[name]
    jaxpr = flat_of(gradient(loss), args)
    assert sorted(cut(jaxpr, SliceFinder(largest(jaxpr) // 4, whole=whole))[1]) == loops


@pytest.mark.parametrize(
    "name",
    ["adam", "auxiliary", "accumulated", "epochs", "linearized", "meta", "low_rank", "loss_scaled", "two_players"],
)
@pytest.mark.parametrize("whole", [False, True])
def test_steps_as_people_write_them_have_the_same_results(name, whole):
    step, args, *_ = getattr(step_programs, name)()
    jaxpr = flat_of(step, args)
    other, loops = cut(jaxpr, SliceFinder(64 * 16 // 4, whole=whole))
    assert loops
    assert_same(jaxpr, other, jax.tree.leaves(args))


def test_large_values_that_are_returned_stay_whole_but_rows_of_a_batch_are_joined_again():
    step = lambda params, x: (jax.value_and_grad(mlps)(params, x), jax.nn.gelu(x @ params[0][0]))
    jaxpr = flat_of(step, (PAIRS, X))
    finder = SliceFinder(largest(jaxpr) // 4, whole=True)
    assert_same(jaxpr, cut(jaxpr, finder)[0], jax.tree.leaves((PAIRS, X)))
    returned = lambda params, x: jax.nn.gelu(x @ params[0][0])
    assert not program.find(flat_of(returned, (PAIRS, X)), SliceFinder(64))


def test_low_precision_is_added_up_in_float32():
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PAIRS, X))
    jaxpr = flat_of(gradient(mlps), (params, x))
    other, _ = cut(jaxpr, SliceFinder(largest(jaxpr) // 64, whole=True))
    scans = [eqn for eqn in other.eqns if eqn.primitive.name == "scan"]
    carried = [v for eqn in scans for v in eqn.outvars[: compat.scan_arity(eqn)[1]]]
    assert {str(jaxprs.dtype_of(v)) for v in carried} == {"float32"}
    assert all(str(jaxprs.dtype_of(v)) == "bfloat16" for v in other.outvars)


def test_derivative_of_picking_entries_is_cut_along_rows_alone():
    pick = lambda x: jnp.take_along_axis(x, jnp.zeros((8, 1), jnp.int32), 1).sum()
    eqn = next(e for e in flat_of(jax.grad(pick), (jnp.ones((8, 4)),)).eqns if e.primitive.name == "scatter-add")
    rows = operand_windows(eqn, (Span(0), None))
    assert rows is not None and rows[0] == (Span(0), None) and rows[1][0] == rows[2][0] == Span(0)
    assert operand_windows(eqn, (None, Span(0))) is None
