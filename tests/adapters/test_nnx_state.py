"""What a function under `jaxremat.remat` changes in modules is changed: batch statistics and random counts go on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_programs import assert_same

import jaxremat

X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)) + 1, jnp.float32)
planned = functools.partial(jaxremat.remat, budget=0.9)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(8, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(jnp.tanh(self.linear(x))))

    def loss(self, x):
        return jnp.mean(self(x) ** 2)


def loss(model, x):
    return jnp.mean(model(x) ** 2)


def training(make, step):
    """Losses of three steps, and the state after them."""
    model = make()
    return [step(model) for _ in range(3)], jax.tree.leaves(nnx.state(model))


def model_of():
    return Model(nnx.Rngs(0))


def in_a_list():
    return nnx.List([Model(nnx.Rngs(0)), Model(nnx.Rngs(1))])


STEPS = {
    "eager": (model_of, lambda wrap: lambda m: nnx.value_and_grad(wrap(loss))(m, X)[0]),
    "in jit": (model_of, lambda wrap: nnx.jit(lambda m: nnx.value_and_grad(wrap(loss))(m, X)[0])),
    "called without a gradient": (model_of, lambda wrap: lambda m: wrap(loss)(m, X)),
    "in a dictionary": (
        model_of,
        lambda wrap: lambda m: nnx.value_and_grad(lambda m: wrap(lambda d: loss(*d["in"]))({"in": [m, X]}))(m)[0],
    ),
    "by keyword": (model_of, lambda wrap: lambda m: nnx.value_and_grad(lambda m: wrap(loss)(x=X, model=m))(m)[0]),
    "several": (
        in_a_list,
        lambda wrap: lambda ms: nnx.value_and_grad(lambda ms: wrap(lambda a, b: loss(a, X) + loss(b, X))(*ms))(ms)[0],
    ),
    "a bound method": (model_of, lambda wrap: lambda m: nnx.value_and_grad(lambda m: wrap(m.loss)(X))(m)[0]),
    "an unbound method": (model_of, lambda wrap: lambda m: nnx.value_and_grad(lambda m: wrap(Model.loss)(m, X))(m)[0]),
    "a module that is called": (model_of, lambda wrap: lambda m: nnx.value_and_grad(lambda m: wrap(m)(X).sum())(m)[0]),
    "the same module twice": (model_of, lambda wrap: lambda m: wrap(lambda a, b: loss(a, X) + loss(b, X))(m, m)),
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_state_goes_on(case):
    make, step = STEPS[case]
    expected, ours = training(make, step(lambda f: f)), training(make, step(planned))
    assert_same(ours, expected)
    assert len({float(value) for value in ours[0]}) == 3  # other masks at each step


def test_auxiliary_results_beside_state():
    def with_aux(model, x):
        y = model(x)
        return jnp.mean(y**2), {"mean": y.mean(), "name": "run"}

    def step(wrap):
        return lambda m: nnx.value_and_grad(wrap(with_aux), has_aux=True)(m, X)[0][0]

    decorated = functools.partial(planned, has_aux=True)
    assert_same(training(model_of, step(decorated)), training(model_of, step(lambda f: f)))


@pytest.mark.parametrize("over", ["scan", "vmap"])
def test_inside_the_loops_of_nnx(over):
    @nnx.vmap(in_axes=0)
    def several(keys):
        return Model(nnx.Rngs(keys))

    def step(wrap):
        def whole(models):
            call = wrap(lambda model, x: model(x))
            if over == "vmap":
                return jnp.sum(nnx.vmap(call, in_axes=(0, None))(models, X) ** 2)
            through = nnx.scan(lambda model, x: call(model, x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return jnp.sum(through(models, X) ** 2)

        return lambda models: nnx.value_and_grad(whole)(models)[0]

    make = lambda: several(jax.random.split(jax.random.key(0), 3))
    assert_same(training(make, step(planned)), training(make, step(lambda f: f)))


def test_optimizers_and_metrics_are_carried_too():
    def step(wrap):
        def update(model, metric, x):
            value = loss(model, x)
            metric.update(values=value)
            return value

        def run(pair):
            model, metric = pair
            nnx.value_and_grad(lambda model, metric: wrap(update)(model, metric, X))(model, metric)
            return metric.compute()

        return run

    make = lambda: nnx.List([Model(nnx.Rngs(0)), nnx.metrics.Average()])
    assert_same(training(make, step(planned)), training(make, step(lambda f: f)))


@pytest.mark.parametrize(
    "closing",
    [
        lambda m: lambda x: loss(m, x),
        lambda m: functools.partial(lambda held, x: loss(held["m"], x), {"m": m}),
        lambda m: lambda x: sum(loss(held, x) for held in (m,)),
    ],
)
def test_a_module_that_is_closed_over_and_changed_is_refused_by_name(closing):
    with pytest.raises(jaxremat.EmissionError, match=r"jaxremat\.nnx\.remat"):
        planned(closing(Model(nnx.Rngs(0))))(X)


@pytest.mark.parametrize("where", [lambda m: m, lambda m: {"deep": [m]}])
def test_a_plan_of_a_module_that_is_changed_is_refused_by_name(where):
    call = lambda held, x: loss(jax.tree.leaves(held, is_leaf=lambda m: isinstance(m, Model))[0], x)
    with pytest.raises(jaxremat.EmissionError, match=r"jaxremat\.nnx\.remat"):
        jaxremat.plan(call, where(Model(nnx.Rngs(0))), X, budget=1.0, verify="replay")


def test_a_plan_of_a_module_that_is_only_read():
    linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    read = lambda linear, x: jnp.sum(jnp.sin(linear(x)))
    plan = jaxremat.plan(read, linear, X, budget=1.0, verify="replay")
    assert_same(*(jax.tree.leaves(nnx.grad(f)(linear, X)) for f in (plan.apply(read), read)))


def test_a_module_that_is_closed_over_and_only_read():
    linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    read = lambda x: jnp.sum(jnp.sin(linear(x)))
    assert_same(jax.grad(planned(read))(X), jax.grad(read)(X))


def test_refs_are_not_lost():
    def count(w, ref):
        ref[...] += 1
        return jnp.sum(jnp.sin(jnp.sin(X @ w)))

    w, ref = jnp.eye(8), jax.new_ref(jnp.float32(0))
    for _ in range(2):
        assert_same(jax.grad(planned(count))(w, ref), jax.grad(lambda w: jnp.sum(jnp.sin(jnp.sin(X @ w))))(w))
    jax.grad(planned(lambda w: count(w, ref)))(w)
    assert ref[...] == 3
    with pytest.raises(jaxremat.ArgumentError, match=r"jax\.Ref"):
        jaxremat.plan(lambda w: count(w, ref), w, budget=0.9)


def test_refs_of_the_function_itself_are_its_own_affair():
    def inside(w):
        ref = jax.new_ref(jnp.zeros(()))
        ref[...] += jnp.sin(w).sum()
        return jnp.sin(ref[...]) ** 2

    assert_same(jax.grad(planned(inside))(jnp.ones(3)), jax.grad(inside)(jnp.ones(3)))
