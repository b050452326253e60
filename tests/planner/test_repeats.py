"""Layers of programs that name no modules, by the contractions that repeat."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_stacks import gated, gated_in_checkpoints

from jaxremat.backends.devices import resolve_target
from jaxremat.cost.memory import estimate_memory
from jaxremat.planner.problem import pose
from jaxremat.planner.repeats import repeated_layers
from jaxremat.planner.timed import TimedPlanner
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace.primal import read_primal

H200 = resolve_target("h200")


def size(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def layers(fun, *args):
    """Each answer: of every contraction of the forward, the number of the layer that it is in."""
    problem = pose(read_primal(fun, args, 0, False), H200)
    answers = repeated_layers(problem.joint, Structure(problem.graph), problem.contracts)
    assert all((answer[problem.joint.backward] == -1).all() for answer in answers)
    return [answer[problem.contracts & ~problem.joint.backward].tolist() for answer in answers]


def widening(ws, x):
    for up, down in ws:
        x = x + jax.nn.gelu(x @ up) @ down
    return x


WIDE = [(size(64, 256), size(256, 64))] * 4
EQUAL = [(size(64, 64), size(64, 64))] * 4
X = size(128, 64)


def test_a_layer_is_what_repeats():
    assert layers(lambda ws, x: jnp.mean(widening(ws, x) ** 2), WIDE, X) == [
        [0, 0, 1, 1, 2, 2, 3, 3],
        [0] * 4 + [1] * 4,
    ]


def test_halves_that_contract_alike_are_told_from_layers_by_what_passes_on():
    single, double = layers(lambda ws, x: jnp.mean(widening(ws, x) ** 2), EQUAL, X)
    assert single == list(range(8)) and double == [0, 0, 1, 1, 2, 2, 3, 3]


def test_layers_begin_where_least_passes_on():
    """Behind a product that contracts as their halves do."""
    after_a_stem = lambda w, ws, x: jnp.mean(widening(ws, jnp.tanh(x @ w)) ** 2)
    assert layers(after_a_stem, size(64, 64), EQUAL, X)[1] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_what_contracts_after_the_last_row_is_in_no_layer():
    head = lambda ws, e, x: jax.nn.logsumexp(widening(ws, x) @ e, -1).mean()
    assert layers(head, WIDE, size(64, 512), X)[0] == [0, 0, 1, 1, 2, 2, 3, 3, -1]


def test_rows_may_follow_one_another():
    """Two stages, and a product between them that repeats nothing."""
    stages = lambda ws, turn, vs, x: jnp.mean(widening(vs, widening(ws, x) @ turn) ** 2)
    args = WIDE[:2], size(64, 32), [(size(32, 96), size(96, 32))] * 3, X
    single = layers(stages, *args)[0]
    assert single[:4] == [0, 0, 1, 1] and np.diff(single[5:]).tolist() == [0, 1, 0, 1, 0]


def test_where_nothing_repeats_there_are_no_layers():
    """A product that is like the first but one is no second layer."""

    def pyramid(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    for widths in ((64, 32, 16, 8), (64, 32, 64, 32, 16)):
        ws = [size(*each) for each in itertools.pairwise(widths)]
        assert layers(pyramid, ws, X) == [[-1] * len(ws)] * 2


@pytest.mark.parametrize("share", [1.0, 1.1])
def test_gated_layers_fit_within_the_bytes_of_checkpoints_around_each(share):
    by_hand, args = gated_in_checkpoints()
    rival = estimate_memory(jax.make_jaxpr(by_hand)(*args).jaxpr, H200)
    found = TimedPlanner(read_primal(gated(), args, 0, False), H200).fit(int(share * rival.peak_bytes))
    assert found.peak_bytes <= share * rival.peak_bytes and found.cost < rival.seconds
