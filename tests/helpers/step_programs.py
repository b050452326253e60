"""Small whole steps of many kinds, written as people write them: (step, concrete arguments, donated arguments)."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training import train_state

WIDTH, DEPTH, BATCH = 16, 4, 64


def _weights(number=DEPTH, width=WIDTH, seed=0):
    keys = jax.random.split(jax.random.key(seed), number)
    return [0.3 * jax.random.normal(key, (width, width)) for key in keys]


def _data(batch=BATCH, width=WIDTH, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, width))


def _forward(weights, x):
    for w in weights:
        x = x + jnp.tanh(x @ w)
    return x


def _loss(weights, x):
    return (_forward(weights, x) ** 2).mean()


def _updated(optimizer, grads, state):
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    return {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt}


def _state(params, optimizer):
    return {"params": params, "opt": optimizer.init(params)}


def deep(layers, batch):
    """Plain gradient descent on layers whose activations are most of the peak: the step, and its abstract arguments."""
    params = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * layers

    def step(params, x):
        value, grads = jax.value_and_grad(_loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step, (params, jax.ShapeDtypeStruct((batch, 64), jnp.float32))


def adam():
    """Adam with a clipped gradient: all gradients live before the first update."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def step(state, x):
        value, grads = jax.value_and_grad(_loss)(state["params"], x)
        return _updated(optimizer, grads, state), value

    return step, (_state(_weights(), optimizer), _data()), 0


def auxiliary():
    """has_aux, a dropout key that is split, an average of the parameters."""
    optimizer = optax.sgd(1e-2, momentum=0.9)

    def step(state, x):
        key, now = jax.random.split(state["key"])

        def loss(params):
            dropped = jnp.where(jax.random.bernoulli(now, 0.8, x.shape), x, 0.0)
            out = _forward(params, dropped)
            return (out**2).mean(), out.mean(0)

        (value, mean), grads = jax.value_and_grad(loss, has_aux=True)(state["params"])
        new = _updated(optimizer, grads, state)
        average = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, state["ema"], new["params"])
        return {**new, "key": key, "ema": average}, (value, mean)

    state = {**_state(_weights(), optimizer), "key": jax.random.key(3), "ema": _weights(seed=5)}
    return step, (state, _data()), 0


def scanned():
    """A scan over layers."""
    optimizer = optax.adam(1e-2)

    def loss(params, x):
        out, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(jnp.sin(h) @ w), None), x, params)
        return (out**2).mean()

    def step(state, x):
        value, grads = jax.value_and_grad(loss)(state["params"], x)
        return _updated(optimizer, grads, state), value

    return step, (_state(jnp.stack(_weights(8)), optimizer), _data()), 0


def accumulated():
    """Gradients summed over micro-batches by a scan."""
    optimizer = optax.adam(1e-2)

    def step(state, x):
        def one(total, x):
            value, grads = jax.value_and_grad(_loss)(state["params"], x)
            return jax.tree.map(jnp.add, total, grads), value

        grads, values = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, state["params"]), x)
        return _updated(optimizer, grads, state), values.mean()

    return step, (_state(_weights(), optimizer), jnp.stack([_data(seed=i) for i in range(3)])), 0


def epochs():
    """Gradient steps in a scan of a scan."""
    optimizer = optax.sgd(1e-2)

    def step(state, x, key):
        def minibatch(state, chosen):
            value, grads = jax.value_and_grad(_loss)(state["params"], x[chosen])
            return _updated(optimizer, grads, state), value

        def epoch(state, key):
            return jax.lax.scan(minibatch, state, jax.random.permutation(key, x.shape[0]).reshape(2, -1))

        return jax.lax.scan(epoch, state, jax.random.split(key, 2))

    return step, (_state(_weights(), optimizer), _data(), jax.random.key(0)), 0


def two_players():
    """Two gradients one after the other, the first with a gradient inside (a penalty)."""
    optimizer = optax.sgd(1e-2)

    def step(state, x):
        params = state["params"]
        fake = _forward(params["maker"], x)

        def critic_loss(critic):
            slope = jax.grad(lambda x: _forward(critic, x).sum())(x + fake)
            return _forward(critic, fake).mean() + ((jnp.linalg.norm(slope, axis=-1) - 1) ** 2).mean()

        first, g_critic = jax.value_and_grad(critic_loss)(params["critic"])
        second, g_maker = jax.value_and_grad(lambda p: _forward(params["critic"], _forward(p, x)).mean())(
            params["maker"]
        )
        return _updated(optimizer, {"critic": g_critic, "maker": g_maker}, state), (first, second)

    return step, (_state({"critic": _weights(), "maker": _weights(seed=2)}, optimizer), _data()), 0


def meta():
    """A gradient through two steps of an inner gradient."""
    optimizer = optax.sgd(1e-2)

    def adapted(params, x):
        for _ in range(2):
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(_loss)(params, x))
        return params

    def step(state, x, y):
        value, grads = jax.value_and_grad(lambda p: _loss(adapted(p, x), y))(state["params"])
        return _updated(optimizer, grads, state), value

    return step, (_state(_weights(2), optimizer), _data(), _data(seed=7)), 0


def low_rank():
    """A frozen base, adapters of low rank, microbatches accumulated by `optax.MultiSteps`."""
    optimizer = optax.MultiSteps(optax.adam(1e-2), 2)

    def step(state, base, x):
        def loss(adapters):
            return _loss([w + a @ b for w, (a, b) in zip(base, adapters)], x)

        value, grads = jax.value_and_grad(loss)(state["params"])
        return _updated(optimizer, grads, state), value

    adapters = [(w[:, :2], w[:2]) for w in _weights(seed=4)]
    return step, (_state(adapters, optimizer), _weights(), _data()), 0


def linearized():
    """`jax.linearize` and `jax.vjp` written out, a loop in Python over two batches."""

    def step(params, x):
        total = jax.tree.map(jnp.zeros_like, params)
        for part in (x, 2 * x):
            value, pull = jax.vjp(lambda p, part=part: _loss(p, part), params)
            total = jax.tree.map(jnp.add, total, pull(jnp.ones_like(value))[0])
        _, push = jax.linearize(lambda p: _loss(p, x), params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, total), push(total)

    return step, (_weights(), _data()), 0


def evaluation():
    """No gradient at all."""

    def step(params, x):
        out = _forward(params, x)
        return {"loss": (out**2).mean(), "largest": jnp.abs(out).max()}

    return step, (_weights(), _data()), ()


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for _ in range(DEPTH):
            x = x + nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(WIDTH, use_bias=False)(x)))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        return x


class _State(train_state.TrainState):
    stats: Any


def linen_train_state():
    """Flax Linen: a TrainState with batch statistics, dropout by the count of the step, metrics in a dictionary."""
    net, x = _Net(), _data()
    variables = net.init(jax.random.key(0), x, train=False)
    state = _State.create(
        apply_fn=net.apply, params=variables["params"], tx=optax.adamw(1e-2), stats=variables["batch_stats"]
    )

    def step(state, x):
        rngs = {"dropout": jax.random.fold_in(jax.random.key(1), state.step)}

        def loss(params):
            variables = {"params": params, "batch_stats": state.stats}
            out, new = state.apply_fn(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
            return (out**2).mean(), new["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, stats=stats), {"loss": value, "norm": optax.tree.norm(grads)}

    return step, (state.replace(step=jnp.int32(0)), x), 0


class _Module(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH)])
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = x + jnp.tanh(layer(x))
        return self.drop(self.norm(x))


def nnx_trained(model, optimizer, x):
    """Changes the module and the optimizer in place."""
    value, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, grads)
    return value


def nnx_modules():
    model = _Module(nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param), _data()


def nnx_optimizer():
    """Flax NNX: module and optimizer split and merged, statistics and random counts in their state."""
    *modules, x = nnx_modules()
    definition, state = nnx.split(modules)

    def step(state, x):
        modules = nnx.merge(definition, state)
        value = nnx_trained(*modules, x)
        return nnx.state(modules), value

    return step, (state, x), 0


def equinox_model():
    """Equinox: what is no array is static, gradients by `eqx.filter_value_and_grad`."""
    model = eqx.nn.MLP(WIDTH, WIDTH, WIDTH, DEPTH, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)

    @eqx.filter_value_and_grad
    def graded(model, x):
        return (jax.vmap(model)(x) ** 2).mean()

    def step(params, x):
        value, grads = graded(eqx.combine(params, static), x)
        return eqx.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, eqx.filter(grads, eqx.is_array))), value

    return step, (params, _data()), 0


def loss_scaled():
    """Mixed precision: a scaled loss in bfloat16, an update behind `lax.cond` where gradients are finite."""
    optimizer = optax.adam(1e-2)

    def step(state, x):
        half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
        scaled = lambda params: _loss(half(params), half(x)).astype(jnp.float32) * state["scale"]
        value, grads = jax.value_and_grad(scaled)(state["params"])
        grads = jax.tree.map(lambda g: g / state["scale"], grads)
        finite = jnp.isfinite(optax.tree.norm(grads))
        new = jax.lax.cond(finite, lambda: _updated(optimizer, grads, state), lambda: state)
        return {**new, "scale": jnp.where(finite, state["scale"] * 2, state["scale"] / 2)}, value / state["scale"]

    return step, ({**_state(_weights(), optimizer), "scale": jnp.float32(64)}, _data()), 0


STEPS = {
    make.__name__: make
    for make in (
        adam, auxiliary, scanned, accumulated, epochs, two_players, meta, low_rank, linearized, evaluation,
        linen_train_state, nnx_optimizer, equinox_model, loss_scaled,
    )
}  # fmt: skip


def numbers(tree) -> list[np.ndarray]:
    """Leaves of a result as arrays of numbers, keys by their words."""
    words = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(words(leaf), np.float64) for leaf in jax.tree.leaves(tree)]


def copied(tree):
    """The same arrays in buffers of their own, so that donation does not take the originals."""
    return jax.tree.map(lambda x: x.copy(), tree)


def peak_bytes(compiled):
    """What a compiled step takes of its device: arguments, results and the rest, a donated buffer once."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
