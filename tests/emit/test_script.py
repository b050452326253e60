"""A schedule as equations: where the backward begins, what it keeps, what is fenced, and that it computes the same."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emitted import ARGS, FORMS, array, assert_same, counts, network, network_plan
from jax import lax
from put_together import emitted_program

from jaxremat.base import compat
from jaxremat.cost.pricing import price
from jaxremat.emit import scheduled
from jaxremat.emit.orders import AS_IT_IS, WITHOUT_UNIT_AXES
from jaxremat.emit.scheduled import run_backward, run_forward
from jaxremat.emit.script import ScriptWriter, write_script
from jaxremat.graph.scheduled import BARRIER_SCOPES, in_order, schedule_program
from jaxremat.solvers.mincut.assemble import assemble_parts
from jaxremat.solvers.mincut.search import Search
from jaxremat.solvers.mincut.structure import Structure
from jaxremat.trace import jaxpr as jaxprs
from jaxremat.trace.fingerprint import describe
from jaxremat.trace.joint import trace_joint


@pytest.fixture
def bare_barriers(monkeypatch):
    """Values pass barriers as they are, axes of length one included."""
    bare = lambda values, forms: lax.optimization_barrier(values) if values else ()
    monkeypatch.setattr(scheduled, "behind_barrier", bare)


def branching(w, x, key):
    """Fan-out, several results of one equation, integers, a key, a loop and a branch."""
    y = jnp.tanh(x @ w)
    first, index = lax.top_k(y, 4)
    y = jnp.where(
        jax.random.bernoulli(key, 0.5, y.shape), jnp.sin(y) * y, jnp.take_along_axis(y, index[:, ::-1], 1).sum()
    )
    z = lax.scan(lambda c, row: (jnp.cos(c @ w) + row, c.sum()), y, jnp.stack([y, x]))
    z = lax.cond(first[0, 0] > 0, lambda a: a * a, lambda a: a @ w, z[0]) + z[1][0]
    return jnp.sum(z * z), first, index


@functools.cache
def joint_of(name):
    """(joint, graph, inputs, cotangents)."""
    fun, args = {
        "network": (network, ARGS),
        "branching": (branching, (array(8, 8), array(16, 8, seed=1), jax.random.key(3))),
    }[name]
    joint = trace_joint(fun, *args)
    cotangents = [jnp.ones(joint.outputs[i].aval.shape) for i in joint.primal.cotangents_of]
    return joint, price(joint), jax.tree.leaves(args), cotangents


def random_schedules(graph, seed, number):
    """Schedules that keep some values, on one level and on two, with barriers of any scope."""
    rng = np.random.default_rng(seed)
    needed = Structure(graph).needed
    for k in range(number):
        kept = needed & (rng.random(graph.num_values) < rng.choice([0.0, 0.3, 0.7]))
        group = np.cumsum(rng.random(graph.num_nodes) < 0.1) if k % 2 else None
        schedule, start = assemble_parts(graph, kept, group, kept & (rng.random(graph.num_values) < 0.5))
        yield schedule_program(graph, schedule, backward_start=start, barrier_scope=BARRIER_SCOPES[k // 2 % 3])


def written(script):
    """The equations of a script, and what passes barriers between them."""
    passes = [
        [(s.eqns, s.barrier_operands, s.passed, s.results) for s in part] for part in (script.forward, script.backward)
    ]
    return *passes, script.residuals, [segment.eqns for segment in script.opening]


@pytest.mark.parametrize("name,seed", [("network", 8), ("branching", 9)])
def test_who_has_written_other_schedules_writes_the_same(name, seed):
    joint, graph, _, _ = joint_of(name)
    writer = ScriptWriter(joint, frozenset())
    for program in random_schedules(graph, seed, 6):
        assert written(writer.write(program)) == written(write_script(joint, program))


def read_from(joint, eqns):
    """Variables that equations read and that are not made by an earlier one of them."""
    made, read = set(joint.jaxpr.constvars), {}
    for eqn in eqns:
        read.update((v, None) for v in jaxprs.vars_of(eqn.invars) if v not in made)
        made.update(eqn.outvars)
    return set(read)


@pytest.mark.parametrize("name,seed", [("network", 0), ("branching", 1)])
def test_any_schedule_computes_the_same(name, seed):
    joint, graph, inputs, cotangents = joint_of(name)

    with jax.disable_jit():  # one operation after the other: compiling every schedule takes far longer
        expected = jaxprs.evaluate(joint.jaxpr, [*inputs, *cotangents])
        for program in random_schedules(graph, seed, 4):
            script = write_script(joint, program)
            outputs, residuals = run_forward(joint, script, inputs)
            gradients = run_backward(joint, script, residuals, cotangents)
            assert_same([*outputs, *gradients], expected, rtol=1e-6)


@pytest.mark.parametrize("name,seed", [("network", 6), ("branching", 7)])
def test_a_program_put_together_is_the_one_that_the_passes_are_traced_to(name, seed, bare_barriers):
    joint, graph, _, _ = joint_of(name)
    shapes = [list(map(jaxprs.shape_of, part)) for part in (joint.inputs, joint.cotangents)]
    for program in random_schedules(graph, seed, 6):
        script = write_script(joint, program)

        def passes(inputs, cotangents, script=script):
            outputs, residuals = run_forward(joint, script, inputs)
            return outputs, run_backward(joint, script, residuals, cotangents)

        made = emitted_program(joint, script)
        compat.check_jaxpr(made)
        assert describe(made) == describe(jax.make_jaxpr(passes)(*shapes))


def test_values_pass_barriers_without_axes_of_length_one():
    """With them, XLA:GPU lays the rows that a kernel works on together far apart."""
    values = [jnp.ones((1, 4, 1)), jnp.arange(3.0), jnp.ones((1, 1)), jnp.ones((7, 1, 3))]
    behind = lambda values: scheduled.behind_barrier(values, [*[WITHOUT_UNIT_AXES] * 3, AS_IT_IS])
    traced = jax.make_jaxpr(behind)(values)
    assert shapes_at_barriers(traced) == [[(4,), (3,), (), (7, 1, 3)]]
    assert_same(behind(values), values)


def test_what_the_program_is_given_passes_barriers_in_its_own_shape():
    """Without its axes of length one, a weight comes in another layout than its reader's."""

    def network(w, x):
        for _ in range(3):
            x = jnp.sin(jnp.tanh(x * w))
        return jnp.sum(x)

    w, x = array(1, 8), array(16, 8, 1)
    joint = trace_joint(network, w, x[..., 0])
    graph = price(joint)
    steps, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    script = write_script(joint, schedule_program(graph, steps, backward_start=start))
    _, residuals = run_forward(joint, script, [w, x[..., 0]])
    backward = jax.make_jaxpr(lambda one: run_backward(joint, script, residuals, [one]))(jnp.ones(()))
    assert any((1, 8) in shapes for shapes in shapes_at_barriers(backward))


def shapes_at_barriers(traced):
    """Shapes of what goes through each barrier."""
    barriers = [eqn for eqn in traced.eqns if eqn.primitive.name == "optimization_barrier"]
    return [[v.aval.shape for v in eqn.invars] for eqn in barriers]


@pytest.mark.parametrize("name,seed", [("network", 2), ("branching", 3)])
def test_scripts_run_what_the_schedule_says(name, seed):
    joint, graph, _, _ = joint_of(name)
    constants = set(map(id, joint.constants))
    for program in random_schedules(graph, seed, 20):
        script = write_script(joint, program)
        told = [joint.eqns[node] for node in program.steps]
        early, late = ([eqn for segment in part for eqn in segment.eqns] for part in (script.forward, script.backward))
        assert [*early, *late] == [eqn for eqn in told if id(eqn) not in constants]
        assert len(early) == sum(id(eqn) not in constants for eqn in told[: program.backward_start])
        given = {*joint.cotangents, *(v for eqn in joint.constants for v in eqn.outvars)}
        needed = read_from(joint, late) | (set(jaxprs.vars_of(joint.gradients)) - {v for e in late for v in e.outvars})
        assert set(script.residuals) == needed - given
        assert len(script.residuals) == len(set(script.residuals))


@pytest.mark.parametrize("name,seed", [("network", 4), ("branching", 5)])
def test_recomputation_waits_behind_what_it_reads_and_a_cotangent(name, seed):
    joint, graph, _, _ = joint_of(name)
    constants = {v for eqn in joint.constants for v in eqn.outvars}
    late = {v for eqn, is_late in zip(joint.eqns, joint.backward) if is_late for v in eqn.outvars}
    segments = 0
    for program in random_schedules(graph, seed, 20):
        for segment in write_script(joint, dataclasses.replace(program, barrier_scope="all")).backward:
            outside = read_from(joint, segment.eqns) - constants
            assert set(segment.barrier_operands) == outside
            assert set(segment.barrier_operands) & (late | set(joint.cotangents))
            segments += 1
    assert segments > 40


@pytest.mark.parametrize("name,seed", [("network", 6), ("branching", 7)])
def test_in_strict_order_all_of_a_stretch_is_made_before_the_next_begins(name, seed):
    """What a stretch makes for later ones, or gives out, passes the barrier that the next one stands behind."""
    joint, graph, _, _ = joint_of(name)
    passed = 0
    for program in random_schedules(graph, seed, 10):
        script = write_script(joint, dataclasses.replace(program, barrier_scope="order"))
        segments = script.backward
        for k, (before, after) in enumerate(itertools.pairwise(segments), start=1):
            wanted = set(jaxprs.vars_of(joint.gradients))
            for later in reversed(segments[k:]):
                wanted = wanted - {v for eqn in later.eqns for v in eqn.outvars} | read_from(joint, later.eqns)
            made = {v for eqn in before.eqns for v in eqn.outvars}
            assert made & wanted <= {*after.barrier_operands, *after.passed}
            assert set(after.passed) == made & wanted - set(after.barrier_operands)
            passed += len(after.passed)
    assert passed > 10


def test_a_schedule_that_repeats_nothing_has_no_barrier():
    joint, graph, _, _ = joint_of("network")
    script = write_script(joint, in_order(graph))
    assert not any(segment.barrier_operands for segment in script.backward)
    eqns = [eqn for segment in (*script.forward, *script.backward) for eqn in segment.eqns]
    assert eqns == [eqn for eqn in joint.eqns if eqn not in joint.constants]


def test_barriers_open_where_they_are_told_to():
    joint, graph, _, _ = joint_of("network")
    schedule, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    late = schedule.size - start
    barriers = [start + late // 3, start + 2 * late // 3]

    def segments(barriers):
        program = schedule_program(graph, schedule, backward_start=start, barriers=barriers)
        return write_script(joint, program).backward

    assert len(segments(barriers)) == 3
    assert segments([start, *barriers])[1].eqns == segments(barriers)[1].eqns
    assert len(segments([])) == 1


@pytest.mark.parametrize("scope", BARRIER_SCOPES)
def test_what_only_runs_again_waits_for_a_cotangent(scope):
    """A stretch that reads none, as an outer checkpoint that leaves what inner ones begin with."""
    joint, graph, _, _ = joint_of("network")
    steps, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    late = graph.backward[steps]
    first = next(t for t in range(start + 1, steps.size - 2) if late[t - 1] and not late[t : t + 3].any())
    program = schedule_program(graph, steps, backward_start=start, barriers=(first, first + 2), barrier_scope=scope)
    again = write_script(joint, program).backward[1]
    assert all(v in joint.early_values for eqn in again.eqns for v in eqn.outvars) and again.barrier_operands
    assert not joint.early_values.issuperset({*again.through} - {*joint.inputs})


def test_constants_are_neither_kept_nor_fenced():
    def fun(x):
        for _ in range(3):
            x = jnp.sin(x) * jnp.full(x.shape, 2.0) + lax.iota(jnp.float32, 8)
        return jnp.sum(x)

    joint = trace_joint(fun, array(8))
    graph = price(joint)
    made = {v for eqn in joint.constants for v in eqn.outvars}
    assert made and all(not jaxprs.vars_of(eqn.invars) for eqn in joint.constants)
    schedule, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    script = write_script(joint, schedule_program(graph, schedule, backward_start=start))
    assert not made & set(script.residuals)
    assert not any(made & set(segment.barrier_operands) for segment in script.backward)


def emitted_counts(joint, script, inputs, cotangents):
    def gradient(inputs, cotangents):
        outputs, residuals = run_forward(joint, script, inputs)
        return outputs, run_backward(joint, script, residuals, cotangents)

    jaxpr = jax.make_jaxpr(gradient)(inputs, cotangents)
    return collections.Counter(eqn.primitive.name for eqn in jaxpr.eqns)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.0])
def test_every_primitive_is_emitted_as_often_as_scheduled(share, bare_barriers):
    joint, graph, inputs, cotangents = joint_of("network")
    search = Search(graph)
    candidate = search.fit(int(share * search.plain.peak_bytes)) if share else search.smallest
    script = write_script(joint, candidate.program)
    constants = set(map(id, joint.constants))
    expected = collections.Counter(
        joint.eqns[node].primitive.name for node in candidate.program.steps if id(joint.eqns[node]) not in constants
    )
    expected.update(2 * [eqn.primitive.name for eqn in joint.constants])
    segments = (*script.forward, *script.backward)
    expected["optimization_barrier"] = sum(bool(segment.barrier_operands) for segment in segments)
    assert emitted_counts(joint, script, inputs, cotangents) == +expected
    assert share > 0.8 or expected["optimization_barrier"] > 1


@pytest.mark.parametrize("form", FORMS)
def test_products_of_a_plan_are_emitted_as_often_as_scheduled(form):
    plan = network_plan(form)
    eqns = plan.problem.joint.eqns
    for primitive in ("dot_general", "tanh"):
        scheduled = sum(eqns[node].primitive.name == primitive for node in plan.schedule)
        assert counts(jax.value_and_grad(plan.apply(network)), *ARGS)[primitive] == scheduled


def attending(w, x):
    """[2, 2, 8, 8]: scores of which each position sees those before it, twice."""
    for _ in range(2):
        x = jax.nn.softmax(jnp.where(jnp.tri(8, dtype=bool)[None, None], x @ w, -1e9)) + jnp.sin(x)
    return jnp.sum(x * x)


def test_masks_are_made_by_both_passes_and_pass_a_barrier():
    """Neither kept nor made again between them, and read behind it."""
    joint = trace_joint(attending, array(8, 8), array(2, 2, 8, 8, seed=1))
    graph = price(joint)
    steps, start = assemble_parts(graph, np.zeros(graph.num_values, bool))
    program = schedule_program(graph, steps, backward_start=start)
    script = write_script(joint, program, masks=joint.masks)
    made, passed = script.opening
    assert joint.masks.in_order == passed.through and set(joint.masks.eqns) < set(made.eqns)
    late = [*script.forward, *script.backward]
    assert not any(set(joint.masks.eqns) & set(segment.eqns) for segment in late)
    assert joint.masks.made.isdisjoint([*script.residuals, *(v for segment in late for v in segment.through)])
    inputs, cotangents = [array(8, 8), array(2, 2, 8, 8, seed=1)], [jnp.ones(())]
    counted = emitted_counts(joint, script, inputs, cotangents)
    assert counted["ge"] == 2 * sum(eqn.primitive.name == "ge" for eqn in joint.masks.eqns) > 0
    outputs, residuals = run_forward(joint, script, inputs)
    gradients = run_backward(joint, script, residuals, cotangents)
    assert_same((outputs[0], gradients[0]), jax.value_and_grad(attending)(*inputs))


def test_masks_of_what_repeats_nothing_pass_no_barrier():
    joint = trace_joint(attending, array(8, 8), array(2, 2, 8, 8, seed=1))
    script = write_script(joint, in_order(price(joint)), masks=joint.masks)
    assert not any(segment.through for segment in (*script.opening, *script.forward, *script.backward))
