"""Layers, and blocks, of a gradient program that has no names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.planner.problem import pose
from jaxremat.solvers.mincut.layers import entering_layers, layers_of
from jaxremat.solvers.mincut.search import Search
from jaxremat.trace.primal import read_primal

X, W = jax.ShapeDtypeStruct((512, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)


def stack(ws, x):
    for w in ws:
        x = x + jnp.tanh(x @ w.astype(jnp.float32))
    return (x**2).sum()


def posed(fun=stack, args=([W] * 3, X)):
    return pose(read_primal(fun, args, 0, False), resolve_target("cpu"))


def names_of(problem, layer, number):
    early = np.flatnonzero(layer == number)
    return [problem.graph.names[node] for node in early]


def test_a_layer_is_a_contraction_with_what_it_alone_reads_and_what_follows():
    problem = posed()
    layer = layers_of(problem.graph, problem.contracts)
    assert set(layer[~problem.graph.backward].tolist()) == {0, 1, 2} and (layer[problem.graph.backward] == -1).all()
    for number in range(3):
        kinds = names_of(problem, layer, number)
        assert kinds.count("dot_general") == 1 and kinds.count("convert_element_type") == 1
        assert kinds.index("convert_element_type") < kinds.index("dot_general") < kinds.index("add")


def test_what_enters_a_layer_is_what_others_make_and_it_reads():
    problem = posed()
    layer = layers_of(problem.graph, problem.contracts)
    entering = np.flatnonzero(entering_layers(problem.graph, layer))
    assert [problem.graph.names[problem.graph.producer[value]] for value in entering] == ["add", "add"]


def test_without_contractions_there_are_no_layers():
    problem = posed(lambda w, x: (jnp.sin(x) * w).sum(), (X, X))
    assert (layers_of(problem.graph, problem.contracts) == -1).all()
    assert Search(problem.graph).in_layers(problem.contracts) == []


@pytest.mark.parametrize("keeps_products", [False, True])
def test_layers_run_again_one_by_one(keeps_products):
    problem = posed()
    search = Search(problem.graph)
    program = search.in_layers(problem.contracts)[keeps_products].program
    runs = np.bincount(program.steps, minlength=problem.graph.num_nodes)
    products = problem.contracts & ~problem.graph.backward
    assert (runs[problem.graph.backward] == 1).all() and runs.max() == 2
    assert (runs[products] == (1 if keeps_products else 2)).all()
    assert len(program.barriers) == 3


def test_blocks_end_where_little_passes_on():
    """What widens eightfold inside passes on as it came."""

    def wide(ws, x):
        for up, down in ws:
            x = x + jnp.tanh(x @ up) @ down
        return (x**2).sum()

    up, down = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 512), (512, 64)))
    problem = posed(wide, ([(up, down)] * 3, X))
    blocks = Search(problem.graph).structure.blocks
    assert [names_of(problem, blocks, number).count("tanh") for number in range(3)] == [1, 1, 1]
    assert blocks.max() == 2 and (blocks[problem.graph.backward] == -1).all()
