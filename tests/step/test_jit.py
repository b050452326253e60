import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_programs
from step_programs import copied, numbers, peak_bytes

import jaxremat
from jaxremat.backends.devices import resolve_target
from jaxremat.backends.memory import usable_bytes


def assert_same(ours, theirs):
    for a, b in zip(numbers(ours), numbers(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", step_programs.STEPS)
def test_two_steps_within_the_least_memory_are_two_steps_as_written(name):
    step, args, donated = step_programs.STEPS[name]()
    planned = jaxremat.jit(step, budget="least", donate_argnums=donated, verify="replay")
    plain, ours, theirs = jax.jit(step), copied(args), args
    for _ in range(2):
        mine, expected = planned(*ours), plain(*theirs)
        assert_same(mine, expected)
        if donated == ():
            break
        first = lambda out: out[0] if isinstance(out, tuple) else out
        ours, theirs = (first(mine), *copied(args[1:])), (first(expected), *args[1:])


def test_second_call_traces_nothing_and_donated_buffers_are_gone():
    step, args, donated = step_programs.adam()
    traced = []

    def counted(*args):
        traced.append(1)
        return step(*args)

    planned = jaxremat.jit(counted, budget="least", donate_argnums=donated, verify="replay")
    given = copied(args)
    state, _ = planned(*given)
    before = len(traced)
    planned(state, args[1])
    assert len(traced) == before <= 2
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[0]) if leaf.size > 1)


def test_modules_that_are_returned_keep_what_a_step_changes_in_them():
    def step(model, optimizer, x):
        value = step_programs.nnx_trained(model, optimizer, x)
        return model, optimizer, value

    def losses(jitted):
        *modules, x = step_programs.nnx_modules()
        found = []
        for _ in range(3):
            *modules, value = jitted(*modules, x)
            found.append(float(value))
        return found

    planned = jaxremat.jit(step, budget="least", donate_argnums=(0, 1), verify="replay")
    np.testing.assert_allclose(losses(planned), losses(jax.jit(step, donate_argnums=(0, 1))), rtol=1e-4)


def test_change_of_a_module_that_would_be_lost_is_refused():
    with pytest.raises(jaxremat.EmissionError, match=r"kernel.*return the module"):
        jaxremat.jit(step_programs.nnx_trained, budget="least")(*step_programs.nnx_modules())


@pytest.mark.parametrize("given", [{"donate_argnames": "params"}, {"donate_argnums": 0}])
@pytest.mark.parametrize("by_name", [False, True])
def test_names_and_numbers_of_donated_arguments_follow_from_each_other(given, by_name):
    params, x = step_programs._weights(), step_programs._data()

    def step(params, x):
        value, grads = jax.value_and_grad(step_programs._loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    planned = jaxremat.jit(step, budget="least", verify="replay", **given)
    assert planned.plan(params, x).program.aliased.size_bytes == sum(w.nbytes for w in params)
    planned(params=params, x=x) if by_name else planned(params, x)
    assert all(w.is_deleted() for w in params)


def test_what_is_cleared_is_planned_again():
    planned = jaxremat.jit(lambda x: jnp.tanh(jnp.tanh(x)), budget="least", verify="replay")
    x = jnp.linspace(0, 1, 8)
    before = planned.plan(x)
    assert planned.plan(x) is before
    planned.clear_cache()
    assert planned.plan(x) is not before
    assert_same(planned(x), jnp.tanh(jnp.tanh(x)))


def test_static_argument_by_name_may_be_given_by_position():
    def step(x, double=False):
        return jnp.tanh(jnp.tanh(2 * x if double else x))

    planned = jaxremat.jit(step, budget="least", static_argnames="double", verify="replay")
    x = jnp.linspace(0, 1, 8)
    assert_same(planned(x, True), step(2 * x))


@pytest.mark.parametrize("number", [1, -1])
def test_numbers_count_what_may_be_given_by_position(number):
    def step(x, double=False, *, scale=1.0, **more):
        return scale * jnp.tanh(jnp.tanh(2 * x if double else x))

    planned = jaxremat.jit(step, budget="least", static_argnums=number, verify="replay")
    x = jnp.linspace(0, 1, 8)
    assert_same(planned(x, True, scale=3.0), step(x, True, scale=3.0))


@pytest.mark.parametrize("verify", ["compile", "replay"])
def test_budget_below_arguments_and_results_is_refused_after_one_compilation_more(monkeypatch, verify):
    step, args, donated = step_programs.adam()
    monkeypatch.setattr("jaxremat.step.planner.ProgramPlanner.fit", None)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(args))
    with pytest.raises(jaxremat.BudgetError, match="arguments and results alone") as caught:
        jaxremat.jit(step, budget=size - 100, donate_argnums=donated, verify=verify).plan(*args)
    error = caught.value
    assert sum(occupant.bytes for occupant in error.occupants) == error.min_peak_bytes >= size
    monkeypatch.undo()
    reached = jaxremat.jit(step, budget=error.min_peak_bytes, donate_argnums=donated)
    assert reached.plan(*args).compiled.peak_bytes <= error.min_peak_bytes


def test_effects_inside_of_loops_happen_once_per_iteration():
    seen = []

    def step(weights, batches):
        def one(total, x):
            def loss(weights):
                h = step_programs._forward(weights, x)
                jax.debug.callback(lambda v: seen.append(float(v)), h[0, 0])
                return (step_programs._forward(weights, h) ** 2).mean()

            return jax.tree.map(jnp.add, total, jax.grad(loss)(weights)), None

        return jax.lax.scan(one, jax.tree.map(jnp.zeros_like, weights), batches)[0]

    args = step_programs._weights(6), jnp.stack([step_programs._data(256, seed=i) for i in range(3)])
    planned = jaxremat.jit(step, budget="least", verify="replay")
    assert planned.plan(*args).decision.bodies
    planned(*args)
    jax.effects_barrier()
    assert len(seen) == 3


@pytest.mark.parametrize("budget", [0.7, 0.5])
def test_compiled_step_keeps_to_its_budget(budget):
    step, args = step_programs.deep(16, 4096)
    written = peak_bytes(jax.jit(step, donate_argnums=0).lower(*args).compile())
    planned = jaxremat.jit(step, budget=budget, donate_argnums=0)
    assert peak_bytes(planned.lower(*args).compile()) <= budget * written
    plan = planned.plan(*args)
    assert plan.compiled.peak_bytes <= plan.budget_bytes == int(budget * written)
    assert plan.baseline_peak_bytes == written


def test_step_that_fits_is_left_alone_to_the_letter():
    step, args = step_programs.deep(16, 256)
    planned = jaxremat.jit(step, budget="1GiB", donate_argnums=0)
    assert planned.plan(*args).is_plain
    assert str(planned.trace(*args).jaxpr) == str(jax.jit(step, donate_argnums=0).trace(*args).jaxpr)


def test_peak_counts_a_donated_buffer_once():
    step, args = step_programs.deep(16, 256)
    donated = jaxremat.jit(step, budget=1.0, donate_argnums=0).plan(*args)
    kept = jaxremat.jit(step, budget=1.0).plan(*args)
    size = sum(4 * 64 * 64 for _ in args[0])
    assert kept.baseline_peak_bytes - donated.baseline_peak_bytes == pytest.approx(size, rel=0.1)
    assert any("params is not donated" in warning for warning in kept.warnings)
    assert not donated.warnings


def test_planned_step_under_other_transformations():
    step, args = step_programs.deep(16, 32)
    arrays = jax.tree.map(lambda s: jnp.full(s.shape, 0.1, s.dtype), args)
    planned = jaxremat.jit(step, budget="least", verify="replay")
    assert_same(jax.jit(planned)(*arrays), step(*arrays))
    params, x = arrays
    several = jnp.stack([x, 2 * x])
    assert_same(jax.vmap(planned, (None, 0))(params, several), jax.vmap(step, (None, 0))(params, several))
    assert_same(
        jax.grad(lambda p: planned(p, x)[1])(params), jax.grad(lambda p: step(p, x)[1])(params)
    )  # a gradient of a step with a gradient inside
    assert "optimization_barrier" in str(jax.make_jaxpr(planned)(*arrays))


def test_planned_step_averages_along_an_axis_of_a_vmap_around_it():
    def step(params, x):
        grads = jax.grad(lambda params: jnp.mean(step_programs._forward(params, x) ** 2))(params)
        mean = jax.lax.pmean(grads, "copies")
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, mean)

    params, x = [jnp.full((8, 8), 0.1)] * 6, jnp.ones((2, 64, 8))
    over_copies = lambda step: jax.vmap(step, (None, 0), axis_name="copies")(params, x)
    assert_same(over_copies(jaxremat.jit(step, budget=0.7)), over_copies(step))


def test_decorator_methods_keywords_and_static_arguments():
    @jaxremat.jit(budget="least", static_argnames="double", verify="replay")
    def step(x, *, double=False):
        return step_programs._forward([jnp.eye(4)] * 3, 2 * x if double else x)

    x = jnp.ones((4, 4))
    assert_same(step(x, double=True), step(2 * x))
    assert step.__name__ == "step"

    class Trainer:
        @jaxremat.jit(budget="least", static_argnums=0, verify="replay")
        def step(self, x):
            return jnp.sin(x)

    assert_same(Trainer().step(x), jnp.sin(x))


def test_step_closes_over_tracers_of_an_outer_trace():
    def outer(scale, x):
        planned = jaxremat.jit(lambda x: (jnp.tanh(jnp.tanh(x) * scale)).sum(), budget="least")
        return jax.grad(planned)(x)

    x = jnp.linspace(0, 1, 8)
    expected = jax.grad(lambda x: jnp.tanh(jnp.tanh(x) * 3.0).sum())(x)
    np.testing.assert_allclose(jax.jit(outer)(3.0, x), expected, rtol=1e-5)


def test_effects_happen_once_and_in_order():
    seen = []

    def note(v):
        seen.append(int(v))

    def step(params, x):
        jax.debug.callback(note, jnp.int32(1), ordered=True)
        value, grads = jax.value_and_grad(step_programs._loss)(params, x)
        jax.debug.callback(note, jnp.int32(2), ordered=True)
        return jax.tree.map(lambda p, g: p - g, params, grads), value

    params, x = step_programs._weights(6), step_programs._data()
    jaxremat.jit(step, budget="least", verify="replay")(params, x)
    jax.effects_barrier()
    assert seen == [1, 2]


def test_plan_hangs_on_no_name_stack(monkeypatch):
    """The same schedule where every debugging name is gone."""
    from jaxremat.base import compat

    step, args = step_programs.deep(16, 256)
    named = jaxremat.jit(step, budget="least", verify="replay").plan(*args)
    monkeypatch.setattr(compat, "name_stack", lambda eqn: "")
    bare = jaxremat.jit(step, budget="least", verify="replay").plan(*args)
    assert bare.decision == named.decision


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "12 parsecs"}, "12 parsecs"),
        ({"budget": "70%"}, "0.7 is that share"),
        ({"budget": "devise"}, "Did you mean 'device'"),
        ({"budget": 0.5, "allow": "chunks"}, "Did you mean 'chunk'"),
        ({"budget": 0.5, "solver": "mincutt"}, "Did you mean 'mincut'"),
        ({"budget": 0.5, "donate_argnames": "parms"}, "Did you mean 'params'"),
        ({"budget": 0.5, "donate_argnums": 5}, "by position the function takes params, x"),
        ({"budget": 0.5, "static_argnums": 2}, "by position the function takes params, x"),
        ({"budget": 0.5, "static_argnames": 2}, "static_argnames=2 must be names"),
        ({"budget": 0.5, "static_argnums": 0, "donate_argnums": 0}, "both static and donated"),
        ({"budget": 0.5, "verify": "hope"}, "compile, replay"),
        ({"budget": 0.5, "allow": "magic"}, "'magic' is unknown"),
        ({"budget": 0.5, "allow": "offload"}, "no link"),
        ({"budget": 0.5, "solver": "rotor"}, "auto"),
    ],
)
def test_bad_options_are_refused_with_the_remedy(options, words):
    def step(params, x, *, scale=1.0):
        return scale * (params + x)

    with pytest.raises(jaxremat.ArgumentError, match=words):
        jaxremat.jit(step, **options)(jnp.ones(3), jnp.ones(3))


@pytest.mark.parametrize("solver", ["fastsa", "chen", "mincut"])
def test_other_solvers_plan_steps_too(solver):
    step, args = step_programs.deep(16, 256)
    planned = jaxremat.jit(step, budget=0.7, donate_argnums=0, solver=solver, seed=3, verify="replay")
    plan = planned.plan(*args)
    assert plan.peak_bytes <= plan.budget_bytes and plan.solver == plan.summary()["solver"] == solver
    again = jaxremat.jit(step, budget=0.7, donate_argnums=0, solver=solver, seed=3, verify="replay").plan(*args)
    assert again.decision == plan.decision
    arrays = jax.tree.map(lambda s: jnp.full(s.shape, 0.1, s.dtype), args)
    expected = step(*arrays)
    assert_same(planned(*arrays), expected)


def test_unhashable_static_argument_is_named():
    def step(x, shape):
        return x.reshape(shape)

    with pytest.raises(jaxremat.ArgumentError, match="'shape' is a list"):
        jaxremat.jit(step, budget=0.5, static_argnums=1).lower(jnp.ones(4), [2, 2])


def test_refusal_says_who_holds_what():
    step, args, donated = step_programs.adam()
    with pytest.raises(jaxremat.BudgetError, match="optimizer state") as caught:
        jaxremat.jit(step, budget=10_000, donate_argnums=donated).lower(*args)
    text = str(caught.value)
    assert "state/opt" in text and "state/params" in text
    assert caught.value.min_peak_bytes > caught.value.budget_bytes == 10_000


def test_device_budget_is_the_pool_less_a_margin():
    step, args = step_programs.deep(16, 8)
    plan = jaxremat.jit(step, budget="device", target="h200", verify="replay").plan(*args)
    assert plan.budget_bytes == usable_bytes(resolve_target("h200"))


def equinox_step(model, x, activation=jnp.tanh):
    def loss(model):
        return (activation(jax.vmap(model)(x)) ** 2).mean()

    value, grads = eqx.filter_value_and_grad(loss)(model)
    model = eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads))
    return model, {"loss": value, "name": "mlp", "none": None}


class Tagged(eqx.Module):
    """A module with a string and a function among its leaves."""

    layers: list
    name: str
    act: Callable

    def __call__(self, x):
        for w in self.layers:
            x = x + self.act(x @ w)
        return x


@pytest.mark.parametrize("budget", ["least", 1.0])
@pytest.mark.parametrize(("keyword", "verify"), [(False, "compile"), (False, "replay"), (True, "replay")])
def test_leaves_that_are_no_arrays_are_static_and_come_back(budget, keyword, verify):
    model = eqx.nn.MLP(16, 16, 16, 3, activation=jax.nn.gelu, key=jax.random.key(0))
    planned = jaxremat.jit(equinox_step, budget=budget, donate_argnums=0, verify=verify)
    x = step_programs._data()
    more = {"activation": jnp.sin} if keyword else {}
    expected, values = equinox_step(model, x, **more)
    given = jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, model)
    new, mine = planned(given, x, **more)
    assert new.activation is jax.nn.gelu and mine["name"] == "mlp" and mine["none"] is None
    assert_same(eqx.filter((new, mine), eqx.is_array), eqx.filter((expected, values), eqx.is_array))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(eqx.filter(given, eqx.is_array)))
    assert planned.eval_shape(model, x)[0].activation is jax.nn.gelu
    assert "optimization_barrier" in str(planned.trace(model, x, **more).jaxpr) or budget == 1.0
    new, _ = planned(new, x, **more)
    assert new.activation is jax.nn.gelu


class Regular(eqx.Module):
    """Layers with a flag and numbers that say what they do, as `equinox.nn.Dropout` and `BatchNorm` have them."""

    weights: list
    rate: float
    depth: int
    dropout: eqx.nn.Dropout

    def __call__(self, x, key):
        for w in self.weights[: self.depth]:
            x = x + self.rate * jnp.tanh(self.dropout(x @ w, key=key))
        return x


def test_numbers_and_flags_of_an_equinox_module_stay_what_they_are():
    def step(model, x, key):
        loss = lambda model: (model(x, key) ** 2).mean()
        value, grads = eqx.filter_value_and_grad(loss)(model)
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads)), value

    weights = [0.1 * jax.random.normal(key, (16, 16)) for key in jax.random.split(jax.random.key(0), 6)]
    x, key = step_programs._data(), jax.random.key(1)
    model = Regular(weights, 0.5, 6, eqx.nn.Dropout(0.1))
    planned = jaxremat.jit(step, budget="least")
    mine, expected = model, model
    for _ in range(2):
        mine, value = planned(mine, x, key)
        expected, plain = eqx.filter_jit(step)(expected, x, key)
        assert_same(eqx.filter((mine, value), eqx.is_array), eqx.filter((expected, plain), eqx.is_array))
    assert (mine.rate, mine.depth, mine.dropout.inference) == (0.5, 6, False)
    compiled = planned.compilations
    planned(dataclasses.replace(mine, rate=float("0.5")), x, key)
    assert planned.compilations == compiled
    _, value = planned(dataclasses.replace(mine, rate=0.0), x, key)
    assert value == jnp.mean(x**2)


def test_static_leaves_tell_calls_apart():
    traced = []

    def step(model, x):
        traced.append(model.name)
        return eqx.filter_value_and_grad(lambda model: (model(x) ** 2).mean())(model)[0]

    planned = jaxremat.jit(step, budget="least", verify="replay")
    x = step_programs._data()
    model = lambda act, name: Tagged(step_programs._weights(), name, act)
    for act, name in [(jnp.tanh, "a"), (jnp.sin, "a"), (jnp.tanh, "b")]:
        np.testing.assert_allclose(planned(model(act, name), x), step(model(act, name), x), rtol=1e-5)
    before = len(traced)
    planned(model(jnp.tanh, "a"), x)
    assert len(traced) == before


def test_error_of_a_step_is_the_steps_own():
    def step(x):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        jaxremat.jit(step, budget=1.0)(jnp.ones(3))
