"""In which order results lie, in lowered programs; compiled ones are asked in tests/aot/test_gpu_rules.py."""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxremat.backends.cpu import CPU
from jaxremat.backends.cuda import CUDA
from jaxremat.cost.hlo_model import lower


def array(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def lowered(fun, *args, backend=CUDA):
    """(operations that are needed, by the number of those that they read)."""
    program = lower(jax.make_jaxpr(fun)(*args).jaxpr, backend)
    needed, waiting = set(), list(program.outputs)
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting += program.reads[index]
    return program, [program.ops[index] for index in sorted(needed)]


Q, K = array(8, 64, 2, 4, 16), array(8, 64, 2, 16)


def scores(q, k):
    """[B, K, G, Q, S], which a product writes as [B, K, S, Q, G]."""
    return jnp.einsum("bqkgd,bskd->bkgqs", q, k)


def test_a_softmax_runs_in_the_order_in_which_its_scores_were_written():
    _, ops = lowered(lambda q, k: jnp.sum(jax.nn.softmax(scores(q, k)) ** 2), Q, K)
    large = {op.shape for op in ops if op.elements == 8 * 2 * 4 * 64 * 64 and op.kind not in ("broadcast", "transpose")}
    assert large == {(8, 2, 64, 64, 4)}
    rows = [op.partition for op in ops if op.kind == "reduce" and op.elements == 8 * 2 * 64 * 4]
    assert rows == [(16, 64, 256)] * 2, "the middle dimension is reduced: rows lie apart"
    assert not [op for op in ops if op.kind == "transpose" and op.elements > math.prod(Q.shape)]


def test_what_is_looked_up_or_scattered_into_lies_as_it_was_written():
    """Of scores that are normalised both ways; their gradients are scattered into either."""

    def contrastive(x):
        scores, labels = x @ x.T, jnp.arange(len(x))[:, None]
        return sum(jnp.take_along_axis(jax.nn.log_softmax(each), labels, 1).sum() for each in (scores, scores.T))

    _, ops = lowered(jax.grad(contrastive), array(64, 32))
    assert {op.kind for op in ops if op.elements == 64 * 64} >= {"scatter-add", "exp"}
    assert not [op for op in ops if op.kind == "transpose" and op.elements == 64 * 64]


def test_what_is_returned_lies_in_order():
    _, ops = lowered(lambda q, k: jnp.exp(scores(q, k)), Q, K)
    copies = [op for op in ops if op.kind == "transpose" and op.elements == 8 * 2 * 4 * 64 * 64]
    assert [op.shape for op in copies] == [(8, 2, 4, 64, 64)] and copies[0].turns_rows
    _, ops = lowered(lambda q, k: jnp.exp(scores(q, k)), Q, K, backend=CPU)
    assert [op.kind for op in ops][-2:] == ["transpose", "exp"], "on a CPU a transpose is where it is written"


@pytest.mark.parametrize("changed", [lambda x: x.astype(jnp.float32), lambda x: 2 * x.astype(jnp.float32)])
def test_of_two_products_the_result_of_the_later_is_copied_after_what_changes_it_alone(changed):
    """Its conversion comes before the copy, what a constant does with it after that."""
    half = lambda shape: array(*shape.shape, dtype=jnp.bfloat16)

    def fun(q, k, p, v):
        first = jnp.exp(scores(q, k)).astype(jnp.float32)
        second = jax.lax.dot_general(p, v, (((3,), (3,)), ((0, 1), (0, 1))))
        return jnp.sum(first * changed(second.reshape(first.shape)))

    p, v = array(8, 2, 256, 16, dtype=jnp.bfloat16), array(8, 2, 64, 16, dtype=jnp.bfloat16)
    program, ops = lowered(fun, half(Q), half(K), p, v)
    (copy,) = [index for index, op in enumerate(program.ops) if op in ops and op.kind == "transpose" and op.turns_rows]
    assert program.ops[copy].shape == (8, 2, 64, 64, 4) and program.ops[copy].dtype == "float32"
    (source,) = program.reads[copy]
    assert program.ops[source].kind == "convert_element_type"
    assert not [op for op in ops if op.kind == "mul" and op.shape == (8, 2, 4, 64, 64)]


def test_barriers_and_calls_hand_orders_on():
    behind = lambda q, k: jnp.sum(jax.nn.silu(jax.lax.optimization_barrier(scores(q, k))) ** 2)
    _, ops = lowered(behind, Q, K)
    assert {op.shape for op in ops if op.kind == "logistic"} == {(8, 2, 64, 64, 4)}


@pytest.mark.parametrize("form", ["bqhd,bkhd->bhqk", "bqhd,bkhd->bhkq"])
def test_a_product_is_transposed_by_its_operands(form):
    for turn in (lambda x: x, lambda x: x.swapaxes(2, 3)):
        fun = lambda q, k, turn=turn: jnp.exp(turn(jnp.einsum(form, q, k)))
        _, ops = lowered(fun, array(8, 64, 2, 16), array(8, 96, 2, 16))
        (made,) = (op for op in ops if op.kind == "exp")
        assert not [op for op in ops if op.kind == "transpose" and op.elements == made.elements]
        assert {op.shape for op in ops if op.elements == made.elements} == {made.shape}


def test_matrices_are_read_either_way():
    def loss(w, x):
        return jnp.sum((x @ w).T @ x)

    _, ops = lowered(jax.grad(loss), array(16, 32), array(64, 16))
    assert not [op for op in ops if op.kind == "transpose" and op.elements > 16 * 32]


def test_an_order_that_a_product_cannot_read_is_copied_for_it():
    mixed = lambda q, k, v: jnp.einsum("bkgqs,bskd->bqkgd", jnp.tanh(scores(q, k)), v)
    _, ops = lowered(lambda q, k, v: jnp.sum(mixed(q, k, v)), Q, K, K)
    assert len([op for op in ops if op.kind == "transpose" and op.elements == 8 * 2 * 4 * 64 * 64]) == 1


def test_long_chains_are_computed_in_another_order_without_recursion():
    def fun(q, k, x):
        for _ in range(3000):
            x = x * x + 1.0
        return jnp.sum(scores(q, k) * x)

    _, ops = lowered(fun, Q, K, array(8, 2, 4, 64, 64))
    assert {op.shape for op in ops if op.kind == "add" and op.elements > 10**5} == {(8, 2, 64, 64, 4)}


def experts(h, up, down):
    """A product of matrices, in whose result the experts do not lead, and one that reads it expert by expert."""
    return jnp.einsum("btef,efd->bted", jnp.tanh(jnp.einsum("btd,edf->btef", h, up)), down)


def test_a_product_of_matrices_writes_rows_and_columns_as_they_are_read():
    args = array(8, 16, 32), array(4, 32, 64), array(4, 64, 32)
    _, ops = lowered(lambda *args: jnp.sum(experts(*args)), *args)
    hidden = [op for op in ops if op.elements == 8 * 16 * 4 * 64]
    assert {op.shape for op in hidden} == {(4, 64, 8, 16)} and [op.kind for op in hidden] == ["dot", "tanh"]


def test_what_was_read_one_way_is_copied_for_who_reads_it_otherwise():
    """All that follows reads the product as the first reader had it written."""
    args = array(8, 16, 32), array(4, 32, 64), array(4, 64, 32)

    def both(h, up, down):
        hidden = jnp.tanh(jnp.einsum("btd,edf->btef", h, up))
        return jnp.sum(jnp.einsum("btef,efd->bted", hidden, down)), hidden[..., ::-1]

    _, ops = lowered(both, *args)
    assert len([op for op in ops if op.kind == "dot" and op.elements == 8 * 16 * 4 * 64]) == 1
    assert [op.kind for op in ops if op.shape == (8, 16, 4, 64)] == ["transpose", "rev"]


def test_a_transpose_of_what_is_written_otherwise_after_all_is_still_that():
    args = array(8, 16, 32), array(4, 32, 64), array(4, 64, 32)

    def both(h, up, down):
        hidden = jnp.einsum("btd,edf->btef", h, up)
        turned = hidden.transpose(2, 0, 1, 3)
        return jnp.sum(jnp.einsum("btef,efd->bted", hidden, down)), jnp.sin(turned)

    _, ops = lowered(both, *args)
    (made,) = (op for op in ops if op.kind == "sin")
    assert made.shape == (4, 64, 8, 16) and [op.shape for op in ops if op.kind == "transpose"][-1] == (4, 8, 16, 64)
