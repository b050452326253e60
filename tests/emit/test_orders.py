"""In which order of axes the operands of products wait behind barriers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emitted import assert_same

from jaxremat.cost.pricing import price
from jaxremat.emit.orders import AS_IT_IS, Order, orders_of_operands
from jaxremat.emit.scheduled import behind_barrier, run_backward, run_forward
from jaxremat.emit.script import write_script
from jaxremat.graph.scheduled import schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.joint import trace_joint

BATCH, TOKENS, HEADS, FEATURES = 2, 6, 3, 4
X = jnp.linspace(-1.0, 1.0, BATCH * TOKENS * 5).reshape(BATCH, TOKENS, 5)
W = jnp.linspace(1.0, -1.0, 5 * HEADS * FEATURES).reshape(5, HEADS, FEATURES)


def scores(queries, keys):
    return jnp.einsum("bqhd,bkhd->bhqk", queries, keys)


def attention(w, x):
    queries, keys, values = (jnp.einsum("btc,chd->bthd", x, w * scale) for scale in (1.0, 2.0, 3.0))
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores(queries, keys)), values)


def orders(fun, *args):
    return list(orders_of_operands(jaxprs.read(fun, *args).jaxpr.eqns).values())


def test_batches_come_first_and_what_is_made_together_stays_together():
    """Queries, keys and values alike, although rows of one, and columns of the others, are tokens."""
    expected = Order((0, 2, 3, 1), joined=1)
    assert orders(attention, W, X) == [expected] * 3
    turned = expected.turned(jnp.ones((BATCH, TOKENS, HEADS, FEATURES)))
    assert turned.shape == (BATCH, HEADS * FEATURES, TOKENS)


def test_axes_of_length_one_do_not_count():
    grouped = lambda w, x: jnp.einsum(
        "bqhgd,bkhd->bhgqk", jnp.einsum("btc,chd->bthd", x, w)[:, :, :, None], jnp.einsum("btc,chd->bthd", x, -w)
    )
    assert {order.axes for order in orders(grouped, W, X)} == {(0, 2, 3, 1)}


@pytest.mark.parametrize(
    "fun",
    [
        lambda w, x: scores(jnp.tanh(jnp.einsum("btc,chd->bthd", x, w)), jnp.sin(jnp.einsum("btc,chd->bthd", x, w))),
        lambda w, x: jnp.einsum("btc,chd->bthd", x, w),
        lambda w, x: jnp.einsum("hbtd,hbsd->hbts", *[jnp.einsum("btc,chd->hbtd", x, a) for a in (w, -w)]),
    ],
    ids=["computed elementwise", "read by nothing", "laid out already"],
)
def test_others_wait_as_they_are_written(fun):
    assert orders(fun, W, X) == []


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 3, 1, 4), (1, 5, 3, 4)])
def test_a_value_comes_back_as_it_was(shape):
    lengths = [length for length in shape if length > 1]
    order = Order((0, 2, 3, 1) if len(lengths) == 4 else (1, 2, 0), joined=1 if len(lengths) == 4 else 0)
    value = jnp.arange(float(math.prod(shape))).reshape(shape)
    assert_same([order.restored(order.turned(value), shape)], [value])
    assert_same(behind_barrier([value, value], [order, AS_IT_IS]), [value, value])


def test_what_is_kept_lies_in_its_order_from_the_first():
    """Queries and keys pass one barrier where they are made, and one where scores run again; nothing else changes."""
    joint = trace_joint(lambda w, x: jnp.sum(jnp.sin(attention(w, x))), W, X)
    graph, found = price(joint), orders_of_operands(joint.eqns)
    kept = np.array([v in found for v in joint.values])
    steps, start = assemble_parts(graph, kept)
    program = schedule_program(graph, steps, backward_start=start)
    plain, ordered = write_script(joint, program), write_script(joint, program, orders=found)

    def passes(script, inputs):
        outputs, residuals = run_forward(joint, script, inputs)
        return [*outputs, *run_backward(joint, script, residuals, [jnp.ones(())])]

    assert len(ordered.orders) >= 2 and not plain.orders
    assert_same(passes(ordered, [W, X]), passes(plain, [W, X]))
    barriers = [eqn for eqn in jax.make_jaxpr(functools.partial(passes, ordered))([W, X]).eqns if is_barrier(eqn)]
    shapes = [v.aval.shape for eqn in barriers for v in eqn.invars]
    read_again = [v for segment in ordered.backward for v in segment.through if v in ordered.orders]
    assert shapes.count((BATCH, HEADS * FEATURES, TOKENS)) == len(ordered.orders) + len(read_again)


def is_barrier(eqn):
    return eqn.primitive.name == "optimization_barrier"
