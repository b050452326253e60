"""Planned NNX modules, methods and functions: the same state and gradients as without a plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, value_and_gradient

import jaxremat

nnx = pytest.importorskip("flax.nnx")
X = jnp.asarray(np.random.default_rng(0).normal(size=(256, 8)), jnp.float32)
planned = functools.partial(jaxremat.nnx.remat, budget=0.75)


class Tower(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(6)])

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.sin(layer(x))
        return x

    def scaled(self, x, power=1, flip=False):
        return self(x * (-power if flip else power))


class Stateful(Tower):
    """Batch statistics, dropout, and a variable that counts calls."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x, train=True):
        self.calls[...] += 1
        x = self.norm(super().__call__(x), use_running_average=not train)
        return self.dropout(x, deterministic=not train)


class Scanning(nnx.Module):
    def __init__(self, rngs):
        self.layers = several(functools.partial(nnx.Linear, 8, 8), 6)(rngs)

    def __call__(self, x):
        return through(lambda layer, x: jnp.sin(layer(x)), self.layers, x)


class Outer(nnx.Module):
    """One inner module, held twice."""

    def __init__(self, inner, rngs):
        self.first = self.second = inner(rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(self.second(self.first(x)))


PlannedTower = planned(Tower)
PlannedStateful = planned(Stateful, static_argnums=2)


def several(make, number):
    return nnx.split_rngs(splits=number)(nnx.vmap(lambda rngs: make(rngs=rngs), in_axes=(0,), out_axes=0))


def through(call, layers, x):
    return nnx.scan(lambda x, layer: call(layer, x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, layers)


def trained(model, call=lambda model, x: model(x)):
    """(value, gradient and state after one call; whether it recomputes)."""
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    def loss(parameters):
        merged = nnx.merge(graph, parameters, rest, copy=True)
        return jnp.sum(call(merged, X) ** 3), nnx.state(merged)

    return value_and_gradient(loss, parameters, has_aux=True)


def assert_same_training(ours, theirs, call=lambda model, x: model(x), ours_call=None):
    """Returns whether ours recomputes."""
    result, is_planned = trained(ours, ours_call or call)
    assert_leaves_same(result, trained(theirs, call)[0])
    return is_planned


def assert_leaves_same(ours, theirs):
    """As `assert_same`, of trees whose static parts name the class."""
    assert_same(jax.tree.leaves(ours), jax.tree.leaves(theirs))


@pytest.mark.parametrize(("ours", "theirs"), [(PlannedTower, Tower), (PlannedStateful, Stateful)])
def test_a_class_with_its_state(ours, theirs):
    assert (ours.__name__, ours.__qualname__) == (theirs.__name__, theirs.__qualname__)
    assert issubclass(ours, theirs)
    assert assert_same_training(ours(nnx.Rngs(0)), theirs(nnx.Rngs(0)))


def test_steps_under_the_transformations_of_nnx():
    def steps(cls):
        model = cls(nnx.Rngs(0))
        step = nnx.jit(nnx.value_and_grad(lambda model: jnp.sum(model(X) ** 3)))
        return [step(model) for _ in range(2)], nnx.state(model)

    assert_leaves_same(steps(PlannedStateful), steps(Stateful))


@pytest.mark.parametrize(("args", "keywords"), [((X, False), {}), ((X,), {"train": False}), ((X,), {})])
def test_static_arguments_by_position_and_by_keyword(args, keywords):
    ours, theirs = PlannedStateful(nnx.Rngs(0)), Stateful(nnx.Rngs(0))
    assert_same(ours(*args, **keywords), theirs(*args, **keywords))
    assert_leaves_same(nnx.state(ours), nnx.state(theirs))


@pytest.mark.parametrize("static", [{"static_argnums": (2, 3)}, {"static_argnums": -1, "static_argnames": "power"}])
def test_an_unbound_method_and_a_method_of_a_class(static):
    scaled, cls = planned(Tower.scaled, **static), planned(Tower, methods=("scaled",), **static)
    call = lambda model, x: model.scaled(x, 2, flip=True)
    plain = Tower(nnx.Rngs(0))
    assert assert_same_training(plain, plain, call, lambda model, x: scaled(model, x, 2, flip=True))
    assert assert_same_training(cls(nnx.Rngs(0)), plain, call)
    assert not assert_same_training(cls(nnx.Rngs(0)), plain)


def test_a_decorated_method():
    class Decorated(Tower):
        @jaxremat.nnx.remat(budget=0.75)
        def __call__(self, x):
            return Tower.__call__(self, x)

    assert assert_same_training(Decorated(nnx.Rngs(0)), Tower(nnx.Rngs(0)))


def test_a_bound_method_is_refused():
    with pytest.raises(jaxremat.ArgumentError, match=r"Tower\.scaled"):
        planned(Tower(nnx.Rngs(0)).scaled)


def test_a_function_of_several_modules_or_of_one_twice():
    def both(first, second, x):
        return second(first(x))

    pair = nnx.List([Stateful(nnx.Rngs(0)), Stateful(nnx.Rngs(1))])
    assert assert_same_training(pair, pair, lambda pair, x: both(*pair, x), lambda pair, x: planned(both)(*pair, x))
    one = Tower(nnx.Rngs(0))
    assert assert_same_training(one, one, lambda m, x: both(m, m, x), lambda m, x: planned(both)(m, m, x))


@pytest.mark.parametrize(
    "make",
    [
        lambda remat, rngs: Outer(remat(Tower), rngs),
        lambda remat, rngs: remat(Outer)(Tower, rngs),
        lambda remat, rngs: remat(Scanning)(rngs),
    ],
    ids=["shared inside", "planned around shared", "scanning"],
)
def test_in_larger_models(make):
    ours, theirs = make(planned, nnx.Rngs(0)), make(lambda cls: cls, nnx.Rngs(0))
    assert assert_same_training(ours, theirs)


@pytest.mark.parametrize("over", ["scan", "vmap"])
def test_over_a_stack_of_modules(over):
    def call(layers, x):
        if over == "scan":
            return through(lambda layer, x: layer(x), layers, x)
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(layers, x)

    ours, theirs = (several(cls, 3)(nnx.Rngs(0)) for cls in (PlannedStateful, Stateful))
    assert assert_same_training(ours, theirs, call)


def test_new_variables_come_out():
    class Sowing(Tower):
        def __call__(self, x):
            self.last = nnx.Intermediate(super().__call__(x))
            return self.last[...]

    def seen(cls):
        model = cls(nnx.Rngs(0))
        grads = nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model)
        return grads, nnx.pop(model, nnx.Intermediate), nnx.state(model)

    assert_leaves_same(seen(planned(Sowing)), seen(Sowing))


def test_gradient_of_a_gradient_and_vmap_of_one():
    def second(cls):
        graph, state = nnx.split(cls(nnx.Rngs(0)))
        gradient = jax.grad(lambda state, x: jnp.sum(nnx.merge(graph, state)(x) ** 2))
        penalty = lambda state: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(state, X)))
        each = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(state, X.reshape(4, 64, 8))
        return value_and_gradient(penalty, state)[0], each

    assert_leaves_same(second(PlannedTower), second(Tower))


@pytest.mark.parametrize("graph", [True, False])
def test_modules_as_trees(graph):
    """Flax's modes in which modules are plain trees, or their structure never changes."""
    with nnx.set_graph_mode(graph), nnx.set_graph_updates(False):
        assert assert_same_training(PlannedStateful(nnx.Rngs(0)), Stateful(nnx.Rngs(0)))


def test_segments_work_in_forward_mode():
    def along(cls):
        graph, state = nnx.split(cls(nnx.Rngs(0)))
        return jax.jvp(lambda state: nnx.merge(graph, state)(X), (state,), (state,))

    assert_same(along(planned(Tower, emit="segments")), along(Tower))
