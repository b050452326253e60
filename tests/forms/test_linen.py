"""Planned linen modules: the same parameters, streams, state and gradients as without a plan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_identical, assert_same, count, is_planned

import jaxremat

nn = pytest.importorskip("flax.linen")
X = jnp.asarray(np.random.default_rng(0).normal(size=(256, 8)), jnp.float32)
KEY = jax.random.key(0)
planned = functools.partial(jaxremat.linen.remat, budget=0.6)


class Tower(nn.Module):
    depth: int = 5

    @nn.compact
    def __call__(self, x, power: int = 1):
        for _ in range(self.depth):
            x = jnp.sin(nn.Dense(8)(x)) ** power
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
PARAMS = Tower().init(KEY, X)
VARIABLES = Stateful().init({"params": KEY, **STREAMS}, X)


def squares(model, *args, **kwargs):
    """The loss of a model, as a function of its variables."""
    return lambda variables: jnp.sum(model.apply(variables, *args, **kwargs) ** 2)


def assert_same_gradient(ours, theirs, variables, *args, **kwargs):
    ours, theirs = squares(ours, *args, **kwargs), squares(theirs, *args, **kwargs)
    assert_same(jax.jit(jax.value_and_grad(ours))(variables), jax.jit(jax.value_and_grad(theirs))(variables))
    return ours


@pytest.mark.parametrize(("plain", "ours"), [(Tower, PlannedTower), (Stateful, PlannedStateful)])
def test_parameters_are_the_same_to_the_bit(plain, ours):
    keys = {"params": KEY, **STREAMS}
    assert_identical(ours().init(keys, X), plain().init(keys, X))
    assert (ours.__name__, ours.__qualname__, ours.__doc__) == (plain.__name__, plain.__qualname__, plain.__doc__)


def training_loss(model, rest, mutable):
    def loss(variables):
        y, new = model.apply({**rest, **variables}, X, rngs=STREAMS, mutable=mutable)
        return jnp.sum(y**3) + sum(jax.tree.leaves(new.get("losses", {}))), (y, new)

    return loss


@pytest.mark.parametrize("mutable", [["batch_stats", "intermediates"], True])
def test_streams_statistics_sown_values_and_perturbations(mutable):
    wrt = {k: VARIABLES[k] for k in ("params", "perturbations")}
    rest = {"batch_stats": VARIABLES["batch_stats"]}
    ours, theirs = (training_loss(model, rest, mutable) for model in (PlannedStateful(), Stateful()))
    (value, (y, new)), grads = jax.value_and_grad(ours, has_aux=True)(wrt)
    assert_same((value, new, grads), jax.tree_util.Partial(_flat, theirs)(wrt))
    assert_same(y, theirs(wrt)[1][0])
    assert is_planned(lambda wrt: ours(wrt)[0], wrt)


def _flat(loss, wrt):
    (value, (_, new)), grads = jax.value_and_grad(loss, has_aux=True)(wrt)
    return value, new, grads


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
            assert count(squares(ours(), X), PARAMS) > count(squares(Tower(), X), PARAMS)
    assert sum(r.getMessage().startswith("Tower: planned") for r in caplog.records) == 1


class Coder(nn.Module):
    def setup(self):
        self.down = [nn.Dense(8) for _ in range(4)]
        self.up = [nn.Dense(8) for _ in range(4)]

    def encode(self, x):
        for layer in self.down:
            x = jnp.sin(layer(x))
        return x

    def decode(self, x, power=1):
        for layer in self.up:
            x = jnp.sin(layer(x)) ** power
        return x

    def __call__(self, x):
        return self.decode(self.encode(x))


@pytest.mark.parametrize(
    ("methods", "found"),
    [(None, {"__call__"}), (("encode",), {"encode"}), ({"encode": {}, "decode": {"static_argnums": 2}}, {"encode", "decode"})],
)  # fmt: skip
def test_methods(methods, found):
    ours, variables = planned(Coder, methods=methods), Coder().init(KEY, X)
    assert_identical(ours().init(KEY, X), variables)
    for method in ("__call__", "encode", "decode"):
        args = (X, 2) if method == "decode" and methods and "decode" in methods else (X,)
        loss = assert_same_gradient(ours(), Coder(), variables, *args, method=method)
        assert is_planned(loss, variables) == (method in found or (method == "__call__" and "encode" in found))


def test_a_decorated_method():
    class Decorated(Tower):
        @jaxremat.linen.remat(budget=0.6)
        @nn.compact
        def __call__(self, x):
            return Tower.__call__.__wrapped__(self, x)

    class Plain(Tower):
        @nn.compact
        def __call__(self, x):
            return Tower.__call__.__wrapped__(self, x)

    assert_identical(Decorated().init(KEY, X), Plain().init(KEY, X))
    assert is_planned(assert_same_gradient(Decorated(), Plain(), PARAMS, X), PARAMS)


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
        (planned(functools.partial(Tower, depth=5))(), Tower()),
    ],
    ids=["nested", "shared", "given", "planned around a given one", "in a remat", "around a remat", "partial"],
)
def test_in_larger_models(ours, theirs):
    variables = theirs.init(KEY, X)
    assert_identical(ours.init(KEY, X), variables)
    assert is_planned(assert_same_gradient(ours, theirs, variables, X), variables)


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
def test_scans(ours, theirs):
    keys = {"params": KEY, **STREAMS}
    params = theirs().init(keys, X, None)["params"]
    assert_identical(ours().init(keys, X, None)["params"], params)

    def loss(model, params):
        (y, _), new = model().apply({"params": params}, X, None, rngs=STREAMS, mutable="intermediates")
        return jnp.sum(y**2), new

    run = lambda model: jax.jit(jax.value_and_grad(functools.partial(loss, model), has_aux=True))(params)
    assert_same(run(ours), run(theirs))
    assert is_planned(lambda params: loss(ours, params)[0], params)


def test_vmap_of_the_module_and_of_the_function():
    parts = X.reshape(4, 64, 8)
    mapped = lambda tower: nn.vmap(tower, variable_axes={"params": 0}, split_rngs={"params": True})()
    variables = mapped(Tower).init(KEY, parts)
    assert_identical(mapped(PlannedTower).init(KEY, parts), variables)
    assert_same_gradient(mapped(PlannedTower), mapped(Tower), variables, parts)
    each = lambda model: jax.vmap(lambda x: jax.grad(squares(model, x))(PARAMS))(parts)
    assert_same(each(PlannedTower()), each(Tower()))


def test_gradient_of_a_gradient():
    def penalty(model):
        gradient = jax.grad(squares(model, X))
        return jax.jit(jax.grad(lambda v: sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient(v)))))(PARAMS)

    assert_same(penalty(PlannedTower()), penalty(Tower()))


def test_segments_work_in_forward_mode():
    along = lambda model: jax.jvp(lambda v: model.apply(v, X), (PARAMS,), (PARAMS,))
    assert_same(along(jaxremat.linen.remat(Tower, budget=0.8, emit="segments")()), along(Tower()))


def test_a_device_can_be_named(caplog):
    with caplog.at_level("INFO", logger="jaxremat"):
        jax.eval_shape(jax.grad(squares(planned(Tower, target="cpu")(), X)), PARAMS)
    assert "on cpu" in caplog.text
