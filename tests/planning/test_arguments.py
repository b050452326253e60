"""Arrays are traced, everything else is static: in arguments, modules, keywords, results, of plans and decorators."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, layers_with_options

import jaxremat

W = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)) / 4, jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(256, 16)), jnp.float32)


def plan_and_decorator(fun, /, *args, **kwargs):
    """The function by a plan for a call, and decorated."""
    plan = jaxremat.plan(fun, *args, budget=1.0, verify="replay", **kwargs)
    return plan.apply(fun), jaxremat.remat(fun, budget=1.0)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((4,), {}),
        ((2, "cos"), {"scale": 0.5}),
        ((), {"depth": 2, "act": jax.nn.relu}),
        ((3, "sin", jnp.float32(2)), {"act": None}),
        ((), {"scale": jnp.float32(3)}),
        ((True, "exp", 1), {}),
    ],
)
def test_counts_names_functions_and_keywords(args, kwargs):
    expected = jax.grad(layers_with_options)(W, X, *args, **kwargs)
    for ours in plan_and_decorator(layers_with_options, W, X, *args, **kwargs):
        assert_same(jax.grad(ours)(W, X, *args, **kwargs), expected)


def test_python_numbers_are_traced_where_the_function_lets_them():
    plan = jaxremat.plan(lambda w, x, rate, steps: layers_with_options(w, x) * rate + steps, W, X, 0.1, 3, budget=1.0)
    assert plan.decision.signature[2:] == ("2 float32[]", "3 int32[]")
    ours = jax.jit(jax.grad(plan.apply(lambda w, x, rate, steps: layers_with_options(w, x) * rate + steps)))
    assert_same(ours(W, X, 0.5, 7), jax.grad(lambda w: layers_with_options(w, X) * 0.5)(W))


def test_a_gradient_with_respect_to_a_python_number_has_its_weak_type():
    fun = lambda w, x, rate: layers_with_options(w, x * rate, 6)
    ours = jaxremat.remat(fun, budget="least")
    gradients, expected = jax.grad(ours, (0, 2))(W, X, 2.0), jax.grad(fun, (0, 2))(W, X, 2.0)
    assert_same(gradients, expected)
    assert gradients[1].weak_type and expected[1].weak_type


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    w: jax.Array
    depth: int
    name: str
    rate: float = 0.0
    act: object = jnp.sin
    nothing: None = None


def of_model(model, x):
    y = layers_with_options(model.w, x, model.depth, act=model.act)
    return y if model.rate == 0.0 else y * model.rate


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_leaves_of_a_dataclass(rate):
    model = Model(W, 3, "tower", rate)
    expected = jax.grad(lambda w: of_model(dataclasses.replace(model, w=w), X))(W)
    plan, decorated = plan_and_decorator(of_model, model, X)
    for ours in (plan, decorated):
        assert_same(jax.grad(lambda w, f=ours: f(dataclasses.replace(model, w=w), X))(W), expected)


def test_leaves_of_an_equinox_module():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        mlp: eqx.nn.MLP
        drop: eqx.nn.Dropout
        steps: jax.Array
        width: int
        flag: bool = True

        def __call__(self, x):
            y = self.drop(self.mlp(x)) + jnp.zeros(self.width)
            return jnp.sum(y) if self.flag else jnp.sum(x)

    mlp = eqx.nn.MLP(16, 16, 16, 2, activation=jnp.sin, key=jax.random.key(0))
    model = Net(mlp, eqx.nn.Dropout(0.0), jnp.int32(0), 16)
    loss = lambda model, x: jax.vmap(model)(x).mean()
    expected = eqx.filter_value_and_grad(loss)(model, X)
    for ours in plan_and_decorator(loss, model, X):
        assert_same(eqx.filter_value_and_grad(ours)(model, X), expected)
        assert_same(eqx.filter_jit(eqx.filter_value_and_grad(ours))(model, X), expected)


def test_integers_beside_what_is_differentiated():
    loss = lambda params, x: layers_with_options(params["w"], x) + params["steps"]
    split = lambda f: jax.grad(lambda w: f({"w": w, "steps": jnp.int32(2)}, X))(W)
    for ours in plan_and_decorator(loss, {"w": W, "steps": jnp.int32(2)}, X):
        assert_same(split(ours), split(loss))


@pytest.mark.parametrize(
    "aux", [{"name": "run", "act": jax.nn.relu}, ("a", None, 3), [np.float32, {"deep": Model(W, 1, "m")}], 7, "text"]
)
def test_auxiliary_results_of_any_type(aux):
    loss = lambda w, x: (layers_with_options(w, x), {"given": aux, "mean": x.mean()})
    plan = jaxremat.plan(loss, W, X, budget=1.0, has_aux=True, verify="replay")
    for ours in (plan.apply(loss), jaxremat.remat(loss, budget=1.0, has_aux=True)):
        (_, told), gradient = jax.value_and_grad(ours, has_aux=True)(W, X)
        assert told["given"] == aux or isinstance(aux, list)
        assert jax.tree.structure(told) == jax.tree.structure(loss(W, X)[1])
        assert_same(gradient, jax.grad(layers_with_options)(W, X))


def test_an_argument_that_was_planned_as_static_and_comes_traced_is_told():
    plan = jaxremat.plan(layers_with_options, W, X, 2, budget=1.0, verify="replay")
    with pytest.raises(jaxremat.PlanMismatchError, match="static_argnums"):
        jax.jit(jax.grad(plan.apply(layers_with_options)))(W, X, 2)
    ours = jax.jit(jax.grad(plan.apply(layers_with_options)), static_argnums=2)(W, X, 2)
    assert_same(ours, jax.grad(layers_with_options)(W, X, 2))


def test_arguments_may_have_the_names_of_ours():
    def loss(w, x, placed=1.0, fun=None, args=1.0, kwargs=1.0, self=1.0, primal="tanh"):
        return placed * args * kwargs * self * jnp.sum(getattr(jnp, primal)(x @ w))

    named = {"placed": 2.0, "fun": "f", "args": 3.0, "kwargs": 4.0, "self": 5.0, "primal": "sin"}
    expected = jax.grad(loss)(W, X, **named)
    for ours in plan_and_decorator(loss, W, X, **named):
        assert_same(jax.grad(ours)(W, X, **named), expected)
