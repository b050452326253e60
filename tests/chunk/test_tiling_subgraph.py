"""Tiles of a subgraph against the same part of the whole: every equation that passes a window on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.base.compat import Literal
from jaxremat.chunk.rewriting.finding import producers_of
from jaxremat.chunk.tiling.subgraph import operand_windows, tiled_subgraph
from jaxremat.chunk.tiling.tiles import Span, Tiling
from jaxremat.trace import jaxpr as jaxprs

ROWS, COLUMNS = 7, 6
X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, COLUMNS)), jnp.float32)
TILING = Tiling((ROWS, COLUMNS), (3, 2))
WINDOW = (Span(0), Span(1))


def values_of(jaxpr, args):
    """All that a program computes."""
    env = dict(zip(jaxpr.invars, args))
    for eqn in jaxpr.eqns:
        read = [atom.val if isinstance(atom, Literal) else env[atom] for atom in eqn.invars]
        found = eqn.primitive.bind(*read, **eqn.params)
        env.update(zip(eqn.outvars, found if eqn.primitive.multiple_results else [found]))
    return env


def labelled(x):
    return jnp.take_along_axis(x, jnp.full((ROWS, 1), 2), 1) + x


PROGRAMS = {
    "element-wise": lambda x: jnp.tanh(x) * 2.0 + jnp.exp(-x),
    "indices": lambda x: x + jax.lax.broadcasted_iota(jnp.float32, x.shape, 0) * 2.0 - jnp.arange(COLUMNS),
    "turned": lambda x: (x.T * 3.0).T,
    "sums of rows": lambda x: x / jnp.sum(x * x, 1, keepdims=True),
    "products": lambda x: jnp.sin(x @ jnp.ones((COLUMNS, 4))) @ jnp.ones((4, COLUMNS)),
    "cut out": lambda x: jnp.concatenate([x, x], 0)[2:9] + x,
    "unit axes": lambda x: jnp.squeeze(x[:, None, :] * jnp.ones((1, 1, COLUMNS)), 1),
    "merged and split": lambda x: (x[:, :, None] + jnp.zeros(4)).reshape(ROWS, COLUMNS * 4).sum(1)[:, None] + x,
    "picked": labelled,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_tile_is_that_part_of_the_whole(name):
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(PROGRAMS[name])(X))
    need = jaxpr.outvars[0], WINDOW
    cut = tiled_subgraph(producers_of(jaxpr), [need], lambda var, window: True)
    env, whole = values_of(jaxpr, [X]), np.asarray(PROGRAMS[name](X))
    assert cut.eqns
    for place in TILING.places():
        reads = TILING.reads(jnp.asarray(place))
        blocks = [TILING.block(jnp.asarray(env[var]), window, reads) for var, window in cut.sources]
        (found,) = cut.compute(blocks, reads, TILING)
        row, column = map(int, reads)
        np.testing.assert_allclose(found, whole[row : row + 3, column : column + 2], rtol=1e-5, atol=1e-5)


def test_a_value_is_computed_once_for_each_window_under_which_it_is_read():
    def outer(x):
        y = jnp.sin(x)
        return y @ y.T

    jaxpr = jax.make_jaxpr(outer)(X)
    cut = tiled_subgraph(producers_of(jaxpr.jaxpr), [(jaxpr.jaxpr.outvars[0], WINDOW)], lambda var, window: True)
    assert sorted(eqn.primitive.name for eqn in cut.eqns) == ["dot_general", "sin", "sin", "transpose"]
    assert {window for _, window in cut.sources} == {(Span(0), None), (Span(1), None)}


@pytest.mark.parametrize(
    "fun",
    [lambda x: jnp.sort(x, 1), lambda x: x[::2], lambda x: x.reshape(COLUMNS, ROWS), lambda x: jnp.cumsum(x, 0)],
    ids=["sort", "strides", "another shape", "running sums"],
)
def test_what_cannot_be_cut_ends_a_subgraph(fun):
    (eqn,) = (e for e in jaxprs.inline_calls(jax.make_jaxpr(fun)(X)).eqns if e.outvars[0].aval.shape)
    assert operand_windows(eqn, WINDOW) is None
