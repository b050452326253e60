"""The smallest plan is no larger than what people reach by hand."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_graphs import gradient_chain

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.planner.schedules import SchedulePlanner
from jaxremat.planning.executable import compile_program
from jaxremat.solvers.mincut.boundary import BoundarySearch
from jaxremat.trace.primal import read_primal

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


def compiled_bytes(fun, args):
    memory = jax.jit(jax.value_and_grad(fun)).lower(*args).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def test_adapters_take_no_more_than_a_checkpoint_around_each_layer():
    by_hand = compiled_bytes(lambda *args: loss(*args, layer=jax.checkpoint(layer)), shapes())
    plan = jaxremat.plan(loss, *shapes(), budget="least")
    assert compiled_bytes(plan.apply(loss), shapes()) <= by_hand
    assert plan.overhead < 0.5  # a third of a gradient without those of the frozen weights runs again, or twice that


def test_checkpointed_segments_run_again_once_and_leave_what_passes_between_them():
    planner = SchedulePlanner(read_primal(loss, shapes(), 0, False), resolve_target("cpu"))
    graph = planner.plain.problem.graph
    search = BoundarySearch(graph)
    for layout in search.checkpointed():
        runs = np.bincount(layout.steps, minlength=graph.num_nodes)
        assert runs.max() <= 2 and (runs[graph.backward] == 1).all()
    smallest = search.checkpointed()[0]
    assert smallest.peak_bytes < planner.plain.replayed_bytes


def test_checkpoints_in_checkpoints_run_a_group_again_and_then_a_segment():
    graph = gradient_chain(16)
    once, twice = BoundarySearch(graph).checkpointed()[0], BoundarySearch(graph).checkpointed_twice()[0]
    runs = np.bincount(twice.steps)
    assert runs[:16].max() <= 3 and (runs[16:] == 1).all()
    assert twice.peak_bytes < once.peak_bytes


def test_layers_of_generated_weights_take_no_more_than_checkpoints_in_checkpoints():
    """What a group of layers runs again for the last of them waits for the cotangent of the group."""
    layers, width, rows = 6, 64, 16384

    def generated(x, code, first, second):
        weights = (jnp.tanh(code @ first) @ second).reshape(width, width)
        return x + jax.nn.gelu(x @ weights) * jax.nn.sigmoid(x)

    def loss(params, x, layer=generated, around=lambda half: half):
        codes, *generator = params

        def half(x, codes):
            for i in range(layers // 2):
                x = layer(x, codes[i], *generator)
            return x

        for part in jnp.split(codes, 2):
            x = around(half)(x, part)
        return (x**2).mean()

    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    args = (of(layers, 32), of(32, 32), of(32, width * width)), of(rows, width)
    by_hand = compiled_bytes(functools.partial(loss, layer=jax.checkpoint(generated), around=jax.checkpoint), args)
    primal, device = read_primal(loss, args, 0, False), resolve_target("cpu")
    planner = SchedulePlanner(primal, device)
    twice = planner._with_sources_behind_barriers(planner._in_checkpoints()[2])
    report = compile_program(primal, twice.form.emitted(primal, device), False, device).report
    assert report.peak_bytes <= by_hand


@pytest.mark.parametrize("widths", [(128, 512, 128), (128, 512, 256, 128, 64, 128)])
def test_few_layers_of_different_sizes_take_no_more_than_a_checkpoint_around_each(widths):
    """The replay counts what kernels compute on the way: it saw nothing to gain, where this takes half."""

    def network(weights, x, layer):
        made = x
        for w in weights[:-1]:
            made = layer(made, w)
        return ((made @ weights[-1] - x) ** 2).mean()

    layer = lambda x, w: jax.nn.gelu(x @ w)
    weights = [jax.ShapeDtypeStruct(pair, jnp.float32) for pair in itertools.pairwise(widths)]
    args = weights, jax.ShapeDtypeStruct((BATCH, widths[0]), jnp.float32)
    as_written = functools.partial(network, layer=layer)
    by_hand = compiled_bytes(functools.partial(network, layer=jax.checkpoint(layer)), args)
    plan = jaxremat.plan(as_written, *args, budget="least")
    assert compiled_bytes(plan.apply(as_written), args) <= by_hand < 0.7 * compiled_bytes(as_written, args)
