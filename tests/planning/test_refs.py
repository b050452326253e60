"""Functions that make a `jax.Ref` and steps that are given one: it is planned as the values that it holds."""

import jax
import jax.numpy as jnp
import pytest
from gradient_programs import assert_same, count
from jax import lax

import jaxremat

WS = tuple(0.1 * jax.random.normal(key, (32, 32)) for key in jax.random.split(jax.random.key(0), 6))
X = jax.random.normal(jax.random.key(1), (512, 32))


def layer(x, w):
    return x + jnp.tanh(jnp.sin(x @ w))


def loss(x):
    return jnp.mean(x**2)


def as_a_sum(ws, x):
    total = jax.new_ref(jnp.zeros(()))
    for w in ws:
        x = layer(x, w)
        total[...] += loss(x)
    return jax.freeze(total)


def as_a_buffer(ws, x):
    state = jax.new_ref(x)
    for w in ws:
        state[...] = layer(state[...], w)
    return loss(state[...])


def by_rows(ws, x):
    """Rows that are written one after another, and read once before another is written over."""
    rows = jax.new_ref(jnp.zeros((2, *x.shape)))
    for k, w in enumerate(ws):
        x = layer(x, w)
        rows[k % 2] = x
    return loss(jax.freeze(rows))


def around_a_scan(ws, x):
    total = jax.new_ref(jnp.zeros(()))

    def body(x, w):
        x = layer(x, w)
        total[...] += loss(x)
        return x, None

    return loss(lax.scan(body, x, jnp.stack(ws))[0]) + jax.freeze(total)


def around_branches(ws, x):
    state = jax.new_ref(x)

    def write(w):
        state[...] = layer(state[...], w)

    for w in ws:
        lax.cond(w[0, 0] > 0, write, lambda w: None, w)
    return loss(jax.freeze(state))


def inside_a_call(ws, x):
    @jax.jit
    def called(x, w):
        state = jax.new_ref(x)
        state[...] = layer(state[...], w)
        return jax.freeze(state)

    for w in ws:
        x = called(x, w)
    return loss(x)


PROGRAMS = [as_a_sum, as_a_buffer, by_rows, around_a_scan, around_branches, inside_a_call]


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda fun: fun.__name__)
def test_a_ref_that_the_loss_makes_is_planned(fun):
    plan = jaxremat.plan(fun, WS, X, budget=0.75, verify="replay")
    assert plan.decision.emit == "schedule" and plan.peak_bytes < plan.baseline_peak_bytes
    planned = jaxremat.remat(fun, budget=0.75)
    assert_same(jax.jit(jax.value_and_grad(planned))(WS, X), jax.jit(jax.value_and_grad(fun))(WS, X))


@pytest.mark.parametrize("fun", [as_a_buffer, around_a_scan], ids=lambda fun: fun.__name__)
def test_the_compiled_program_fits(fun):
    plan = jaxremat.plan(fun, WS, X, budget=0.7)
    assert plan.compiled.peak_bytes <= plan.budget_bytes < plan.baseline_peak_bytes
    assert count(plan.apply(fun), WS, X) > count(fun, WS, X) or plan.decision.form.loops


def test_what_is_logged_in_a_ref_comes_out():
    def logging(ws, x):
        log = jax.new_ref(jnp.zeros(len(ws)))
        for k, w in enumerate(ws):
            x = layer(x, w)
            log[k] = lax.stop_gradient(jnp.abs(x).mean())
        return loss(x), jax.freeze(log)

    planned = jaxremat.remat(logging, budget=0.75, has_aux=True)
    assert_same(jax.value_and_grad(planned, has_aux=True)(WS, X), jax.value_and_grad(logging, has_aux=True)(WS, X))


def test_a_ref_in_forward_mode_and_in_checkpoints():
    planned = jaxremat.remat(as_a_buffer, budget=0.9, emit="segments")
    assert_same(jax.jvp(planned, (WS, X), (WS, X)), jax.jvp(as_a_buffer, (WS, X), (WS, X)))
    assert_same(jax.grad(planned)(WS, X), jax.grad(as_a_buffer)(WS, X))


def test_a_step_whose_loss_makes_a_ref():
    def step(ws, x):
        value, grads = jax.value_and_grad(around_a_scan)(ws, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, grads), value

    planned = jaxremat.jit(step, budget=0.7)
    assert planned.plan(WS, X).compiled.peak_bytes <= 0.7 * planned.plan(WS, X).baseline_peak_bytes
    assert_same(planned(WS, X), jax.jit(step)(WS, X))


def loss_of_layers(ws, x):
    for w in ws:
        x = layer(x, w)
    return loss(x)


def counting(ws, x, total):
    value, grads = jax.value_and_grad(loss_of_layers)(ws, x)
    total[...] += value
    return grads


def updating(ws, x, scale):
    value, grads = jax.value_and_grad(loss_of_layers)([w[...] for w in ws], x)
    for w, grad in zip(ws, grads, strict=True):
        w[...] -= scale[...] * grad
    return value


def accumulating(sums, x, ws):
    def body(total, x):
        value, grads = jax.value_and_grad(loss_of_layers)(ws, x)
        for so_far, grad in zip(sums, grads, strict=True):
            so_far[...] += grad
        return total + value, None

    return lax.scan(body, 0.0, x.reshape(2, -1, 32))[0]


def logging_inside(ws, x, log):
    def logged(ws):
        y = x
        for k, w in enumerate(ws):
            y = layer(y, w)
            log["rows"][k] = lax.stop_gradient(jnp.abs(y).mean())
        return loss(y)

    return jax.grad(logged)(ws)


def refs(arrays):
    return [jax.new_ref(jnp.array(array)) for array in arrays]


STEPS = {
    counting: (lambda: (WS, X, jax.new_ref(jnp.zeros(()))), 0.75),
    updating: (lambda: (refs(WS), X, jax.new_ref(jnp.float32(0.1))), 0.75),
    accumulating: (lambda: (refs(map(jnp.zeros_like, WS)), X, WS), 0.95),
    logging_inside: (lambda: (WS, X, {"rows": jax.new_ref(jnp.zeros(8))}), 0.75),
}


def held(tree):
    return [leaf[...] if isinstance(leaf, jax.Ref) else leaf for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_refs_among_the_arguments_of_a_step_are_changed_in_place(step):
    arguments, budget = STEPS[step]
    planned, plain = jaxremat.jit(step, budget=budget), jax.jit(step)
    ours, theirs = arguments(), arguments()
    for _ in range(2):
        assert_same(planned(*ours), plain(*theirs))
    assert_same(held(ours), held(theirs))
    plan = planned.plan(*ours)
    assert not plan.is_plain and plan.compiled.peak_bytes <= plan.budget_bytes
    assert plan.baseline_peak_bytes == peak_bytes(plain.lower(*theirs))
    assert plan.compiled.peak_bytes == peak_bytes(planned.lower(*ours))


def peak_bytes(lowered):
    read = lowered.compile().memory_analysis()
    used = read.argument_size_in_bytes + read.output_size_in_bytes + read.temp_size_in_bytes
    return used - read.alias_size_in_bytes


def test_one_plan_serves_other_refs_an_outer_trace_and_shapes():
    traced = []

    def step(ws, x, total):
        traced.append(1)
        return counting(ws, x, total)

    planned = jaxremat.jit(step, budget=0.75)
    shapes = jax.ShapeDtypeStruct((), jnp.float32, is_ref=True)
    plan = planned.plan(WS, X, shapes)
    first, second = jax.new_ref(jnp.zeros(())), jax.new_ref(jnp.ones(()))
    planned(WS, X, first), planned(WS, X, second)
    assert_same(second[...], first[...] + 1)
    jax.jit(lambda total: planned(WS, X, total))(second)
    assert_same(second[...], 2 * first[...] + 1)
    assert planned.plan(WS, X, first) is plan and len(traced) == 1
    assert jax.tree.structure(planned.eval_shape(WS, X, first)) == jax.tree.structure(WS)


def test_a_plan_file_serves_a_step_that_takes_a_ref(tmp_path):
    total = jax.new_ref(jnp.zeros(()))
    jaxremat.jit(counting, budget=0.75).plan(WS, X, total).save(tmp_path / "plan.json")
    loaded = jaxremat.jit(counting, budget=0.75)
    loaded.load_plan(tmp_path / "plan.json", WS, X, total)
    loaded(WS, X, total)
    assert_same(total[...], loss_of_layers(WS, X))


def test_an_array_in_the_place_of_a_ref_is_another_step():
    def step(ws, x, scale):
        updating(made := refs(ws), x, scale)
        return [jax.freeze(w) for w in made]

    planned = jaxremat.jit(step, budget=0.75)
    assert_same(planned(WS, X, jnp.float32(0.1)), planned(WS, X, jax.new_ref(jnp.float32(0.1))))


def test_a_step_that_closes_over_a_ref_changes_it():
    counter = jax.new_ref(jnp.zeros(()))

    def step(ws, x):
        counter[...] += 1
        value, grads = jax.value_and_grad(loss_of_layers)(ws, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, grads), value

    assert_same(jaxremat.jit(step, budget=0.7)(WS, X), jax.jit(step)(WS, X))
    assert counter[...] == 2
