"""Planned linen modules: the same parameters, streams, state and gradients as without a plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_identical, assert_same, count, numbers_like, value_and_gradient

import jaxremat

nn = pytest.importorskip("flax.linen")
X = jnp.asarray(np.random.default_rng(0).normal(size=(256, 8)), jnp.float32)
KEY = jax.random.key(0)
planned = functools.partial(jaxremat.linen.remat, budget=0.75)


class Tower(nn.Module):
    depth: int = 6

    @nn.compact
    def __call__(self, x, power: int = 1):
        for _ in range(self.depth):
            x = jnp.sin(power * nn.Dense(8)(x))
        return x

    def upside_down(self, x):
        return -self(x)


class Stateful(nn.Module):
    """Two random streams, batch statistics, sown values and a perturbation."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        for _ in range(3):
            x = nn.BatchNorm(use_running_average=not train)(jnp.sin(nn.Dense(8)(x)))
            x = nn.Dropout(0.3, deterministic=not train)(x)
            if train:
                x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        self.sow("intermediates", "mean", x.mean())
        self.sow("losses", "norm", (x**2).mean(), init_fn=lambda: 0.0, reduce_fn=lambda a, b: a + b)
        return self.perturb("last", x)


PlannedTower = planned(Tower, static_argnums=(2,))
PlannedStateful = planned(Stateful, static_argnums=(2,), static_argnames="train")
STREAMS = {"dropout": jax.random.key(1), "noise": jax.random.key(2)}
PARAMS = numbers_like(jax.eval_shape(Tower().init, KEY, X))
VARIABLES = jax.tree.map(abs, numbers_like(jax.eval_shape(Stateful().init, {"params": KEY, **STREAMS}, X)))


def squares(model, *args, **kwargs):
    """The loss of a model, as a function of its variables."""
    return lambda variables: jnp.sum(model.apply(variables, *args, **kwargs) ** 2)


def assert_same_gradient(ours, theirs, variables, *args, **kwargs):
    """Returns whether ours recomputes."""
    expected, _ = value_and_gradient(squares(theirs, *args, **kwargs), variables)
    result, is_planned = value_and_gradient(squares(ours, *args, **kwargs), variables)
    assert_same(result, expected)
    return is_planned


def variables_of(ours, theirs, *args, collections=("params",)):
    """Variables for both models, whose trees have to be the same."""
    shapes = [jax.eval_shape(model.init, {"params": KEY, **STREAMS}, *args) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    return numbers_like({name: shapes[0][name] for name in collections})


@pytest.mark.parametrize(("plain", "ours"), [(Tower, PlannedTower), (Stateful, PlannedStateful)])
def test_parameters_are_the_same_to_the_bit(plain, ours):
    keys = {"params": KEY, **STREAMS}
    assert_identical(ours().init(keys, X), plain().init(keys, X))
    assert (ours.__name__, ours.__qualname__, ours.__doc__) == (plain.__name__, plain.__qualname__, plain.__doc__)


@pytest.mark.parametrize("mutable", [["batch_stats", "intermediates"], True])
def test_streams_statistics_sown_values_and_perturbations(mutable):
    wrt = {k: VARIABLES[k] for k in ("params", "perturbations")}

    def loss(model, wrt):
        y, new = model.apply({**VARIABLES, **wrt}, X, rngs=STREAMS, mutable=mutable)
        return jnp.sum(y**3) + sum(jax.tree.leaves(new.get("losses", {}))), (y, new)

    expected, _ = value_and_gradient(functools.partial(loss, Stateful()), wrt, has_aux=True)
    result, is_planned = value_and_gradient(functools.partial(loss, PlannedStateful()), wrt, has_aux=True)
    assert_same(result, expected)
    assert is_planned


def test_evaluation_mode_by_position_and_by_keyword():
    expected = Stateful().apply(VARIABLES, X, False)
    assert_same(PlannedStateful().apply(VARIABLES, X, False), expected)
    assert_same(PlannedStateful().apply(VARIABLES, X, train=False), expected)


def test_what_is_not_lifted_is_not_there():
    for remat in (nn.remat, planned):
        with pytest.raises(Exception, match='needs PRNG for "dropout"'):
            remat(Stateful, rngs="noise")().apply(VARIABLES, X, rngs=STREAMS, mutable=True)


def test_intermediates_are_captured():
    capture = lambda model: model.apply(PARAMS, X, capture_intermediates=True)
    assert_same(capture(PlannedTower()), capture(Tower()))


@pytest.mark.parametrize("power", [1, 2])
def test_static_arguments(power):
    assert_same_gradient(PlannedTower(), Tower(), PARAMS, X, power)


def test_recomputes_and_plans_once_for_all_instances(caplog):
    ours = planned(Tower)
    with caplog.at_level("INFO", logger="jaxremat"):
        for _ in range(2):
            assert count(squares(ours(), X), PARAMS, primitive="sin") > Tower.depth
    assert sum(r.getMessage().startswith("Tower: planned") for r in caplog.records) == 1


class Coder(nn.Module):
    def setup(self):
        self.down = [nn.Dense(8) for _ in range(6)]
        self.up = [nn.Dense(8) for _ in range(6)]

    def encode(self, x):
        for layer in self.down:
            x = jnp.sin(layer(x))
        return x

    def decode(self, x, power=1):
        for layer in self.up:
            x = jnp.sin(power * layer(x))
        return x

    def __call__(self, x):
        return self.decode(self.encode(x))


@pytest.mark.parametrize(
    ("methods", "found"),
    [
        (None, {"__call__"}),
        (("encode",), {"encode"}),
        ({"encode": {}, "decode": {"static_argnums": 2}}, {"encode", "decode"}),
    ],
)
def test_only_named_methods_are_planned(methods, found):
    ours = planned(Coder, methods=methods)
    variables = variables_of(ours(), Coder(), X)
    for method in ("__call__", "encode", "decode"):
        args = (X, 2) if method == "decode" and methods and "decode" in methods else (X,)
        is_planned = assert_same_gradient(ours(), Coder(), variables, *args, method=method)
        assert is_planned == (method in found or (method == "__call__" and "encode" in found))


def test_a_decorated_method():
    class Decorated(Tower):
        @jaxremat.linen.remat(budget=0.75)
        @nn.compact
        def __call__(self, x):
            return Tower.__call__.__wrapped__(self, x)

    class Plain(Tower):
        @nn.compact
        def __call__(self, x):
            return Tower.__call__.__wrapped__(self, x)

    assert assert_same_gradient(Decorated(), Plain(), variables_of(Decorated(), Plain(), X), X)


class Nested(nn.Module):
    tower: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(self.tower()(self.tower()(x)))


class Shared(nn.Module):
    tower: type

    def setup(self):
        self.inner = self.tower()

    def __call__(self, x):
        return self.inner(self.inner(x))


class Given(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.inner(nn.Dense(8)(self.inner(x)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Nested(PlannedTower), Nested(Tower)),
        (Shared(PlannedTower), Shared(Tower)),
        (Given(PlannedTower()), Given(Tower())),
        (planned(Given)(Tower()), Given(Tower())),
        (nn.remat(PlannedTower)(), Tower()),
        (planned(nn.remat(Tower))(), Tower()),
        (planned(functools.partial(Tower, depth=6))(), Tower()),
    ],
    ids=["nested", "shared", "given", "planned around a given one", "in a remat", "around a remat", "partial"],
)
def test_in_larger_models(ours, theirs):
    assert assert_same_gradient(ours, theirs, variables_of(ours, theirs, X), X)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        for _ in range(3):
            x = nn.Dropout(0.1, deterministic=False)(jnp.sin(nn.Dense(8)(x)))
        self.sow("intermediates", "mean", x.mean())
        return x, None


def scanned(layer):
    axes, split = {"params": 0, "intermediates": 0}, {"params": True, "dropout": True}
    return nn.scan(layer, variable_axes=axes, split_rngs=split, length=3)


class Scanning(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return scanned(Layer)()(x, None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(scanned(planned(Layer)), scanned(Layer)), (planned(Scanning), Scanning)],
    ids=["scanned over", "scanning"],
)
def test_planned_blocks_are_scanned_and_scan(ours, theirs):
    def loss(model, variables):
        (y, _), new = model().apply(variables, X, None, rngs=STREAMS, mutable="intermediates")
        return jnp.sum(y**2), new

    variables = variables_of(ours(), theirs(), X, None)
    expected, _ = value_and_gradient(functools.partial(loss, theirs), variables, has_aux=True)
    result, is_planned = value_and_gradient(functools.partial(loss, ours), variables, has_aux=True)
    assert_same(result, expected)
    assert is_planned


def test_vmap_of_the_module_and_of_the_function():
    parts = X.reshape(4, 64, 8)
    mapped = lambda tower: nn.vmap(tower, variable_axes={"params": 0}, split_rngs={"params": True})()
    variables = variables_of(mapped(PlannedTower), mapped(Tower), parts)
    assert assert_same_gradient(mapped(PlannedTower), mapped(Tower), variables, parts)
    each = lambda model: lambda v: jnp.sum(jax.vmap(lambda x: squares(model, x)(v))(parts) ** 2)
    expected, _ = value_and_gradient(each(Tower()), PARAMS)
    result, is_planned = value_and_gradient(each(PlannedTower()), PARAMS)
    assert_same(result, expected)
    assert is_planned


def test_gradient_of_a_gradient():
    def penalty(model):
        gradient = jax.grad(squares(model, X))
        return lambda variables: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(variables)))

    expected, _ = value_and_gradient(penalty(Tower()), PARAMS)
    result, is_planned = value_and_gradient(penalty(PlannedTower()), PARAMS)
    assert_same(result, expected)
    assert not is_planned  # written out: a plan of the first order would be kept for the second


def test_segments_work_in_forward_mode():
    along = lambda model: jax.jvp(lambda v: model.apply(v, X), (PARAMS,), (PARAMS,))
    assert_same(along(jaxremat.linen.remat(Tower, budget=0.8, emit="segments")()), along(Tower()))


def test_a_device_can_be_named(caplog):
    with caplog.at_level("INFO", logger="jaxremat"):
        jax.eval_shape(jax.grad(squares(planned(Tower, target="cpu")(), X)), PARAMS)
    assert "on cpu" in caplog.text
