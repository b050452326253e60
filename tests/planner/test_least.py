"""The smallest plan is no larger than what people reach by hand."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.solvers.mincut.boundary import BoundarySearch
from jaxremat.trace.joint import read_primal

LAYERS, BATCH, WIDTH, RANK = 4, 2048, 64, 4


def layer(x, frozen, adapter):
    (up, down), (a, b) = frozen, adapter
    return x + jax.nn.gelu(x @ up + (x @ a) @ b) @ down


def loss(adapters, frozen, x, layer=layer):
    """Low-rank adapters beside weights that are not trained."""
    for each in zip(frozen, adapters):
        x = layer(x, *each)
    return (x**2).mean()


def shapes():
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    adapters = [(of(WIDTH, RANK), of(RANK, 4 * WIDTH))] * LAYERS
    return adapters, [(of(WIDTH, 4 * WIDTH), of(4 * WIDTH, WIDTH))] * LAYERS, of(BATCH, WIDTH)


def compiled_bytes(fun):
    memory = jax.jit(jax.value_and_grad(fun)).lower(*shapes()).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def test_adapters_take_no_more_than_a_checkpoint_around_each_layer():
    by_hand = compiled_bytes(lambda *args: loss(*args, layer=jax.checkpoint(layer)))
    plan = jaxremat.plan(loss, *shapes(), budget="least")
    assert compiled_bytes(plan.apply(loss)) <= by_hand
    assert plan.overhead < 0.3  # one forward more is a third of a gradient without those of the frozen weights, or less


def test_checkpointed_segments_run_again_once_and_leave_what_passes_between_them():
    planner = SchedulePlanner(read_primal(loss, shapes(), 0, False), resolve_target("cpu"))
    graph = planner.plain.problem.graph
    search = BoundarySearch(graph)
    for layout in search.checkpointed():
        runs = np.bincount(layout.steps, minlength=graph.num_nodes)
        assert runs.max() <= 2 and (runs[graph.backward] == 1).all()
    smallest = search.checkpointed()[0]
    assert smallest.peak_bytes < planner.plain.replayed_bytes
