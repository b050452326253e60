"""Pieces by hand: what is cut where, what is named, and what every piece computes for itself."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emitted import array, assert_same, counts

from jaxremat.emit.segments import Pieces, emit_in_one, emit_pieces
from jaxremat.planning.plan import apply_flat
from jaxremat.trace.primal import read_primal

WS = [array(8, 8, seed=i, scale=0.4) for i in range(6)]
X = array(32, 8, seed=10)


def layered(ws, x):
    """A mask that all layers read, and a first result that is returned besides."""
    mask = jnp.exp(x[:, :1] * 0) * 0.5
    hidden = []
    for w in ws:
        x = jnp.tanh(x @ w) * mask
        hidden.append(x)
    return jnp.sum(x**2) + jnp.sum(hidden[0])


PRIMAL = read_primal(layered, (WS, X), 0, False)
NAMES = [eqn.primitive.name for eqn in PRIMAL.jaxpr.eqns]
PRODUCTS = [i for i, name in enumerate(NAMES) if name == "dot_general"]
TANHS = [i for i, name in enumerate(NAMES) if name == "tanh"]
ENDS = (PRODUCTS[2] - 1, PRODUCTS[4] - 1)  # pieces of two layers each
MASK = tuple(range(PRODUCTS[0]))


@functools.cache
def plain():
    return jax.jit(jax.value_and_grad(layered))(WS, X)


@functools.cache
def plain_counts():
    return counts(jax.grad(layered), WS, X)


def emitted(ends=ENDS, duplicated=(), labels=None, form=emit_pieces):
    flat = form(PRIMAL, Pieces(tuple(ends), tuple(duplicated)), labels or {})
    return lambda *args: apply_flat(PRIMAL, flat, args)


def extra(fun, primitive):
    """How many more equations of a kind its gradient has than the plain one."""
    return counts(jax.grad(fun), WS, X)[primitive] - plain_counts()[primitive]


@pytest.mark.parametrize(
    "made",
    [
        dict(ends=()),
        dict(ends=ENDS),
        dict(ends=ENDS, duplicated=MASK),
        dict(ends=range(len(NAMES) - 1)),
        dict(ends=ENDS, labels={(PRODUCTS[1], 0): "a", (PRODUCTS[5], 0): "b"}),
        dict(ends=ENDS, form=emit_in_one, labels={(PRODUCTS[3], 0): "a"}),
    ],
    ids=["one", "three", "duplicated", "an equation each", "named", "in one"],
)
def test_any_cut_computes_the_same(made):
    assert_same(jax.jit(jax.value_and_grad(emitted(**made)))(WS, X), plain(), rtol=1e-4)


def test_all_pieces_but_the_last_run_again():
    assert extra(emitted(), "tanh") == 4 and extra(emitted(()), "tanh") == 0
    assert extra(emitted(ENDS[:1]), "tanh") == 2


def test_what_is_named_is_not_run_again():
    by_product = {(i, 0): f"product {i}" for i in PRODUCTS}
    assert extra(emitted(), "dot_general") == 4
    assert extra(emitted(labels=by_product), "dot_general") == 0
    assert extra(emitted(labels={(PRODUCTS[1], 0): "one"}), "dot_general") == 3
    assert extra(emitted(labels=by_product), "tanh") == 4


def test_in_one_checkpoint_only_what_is_named_is_kept():
    named = {(TANHS[1], 0): "low", (TANHS[3], 0): "high"}
    assert extra(emitted(form=emit_in_one, labels=named, ends=()), "dot_general") >= 4


def test_duplicated_equations_run_in_every_piece_that_reads_them():
    assert counts(emitted(), WS, X)["exp"] == 1
    assert counts(emitted(duplicated=MASK), WS, X)["exp"] == 3


def test_pieces_number_equations_and_survive_json():
    pieces = Pieces((1, 4), (0,))
    assert pieces.piece_of(7).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert Pieces(()).piece_of(3).tolist() == [0, 0, 0]
    assert Pieces.from_json(json.loads(json.dumps(pieces.to_json()))) == pieces
    assert np.all(np.diff(ENDS) > 0)
