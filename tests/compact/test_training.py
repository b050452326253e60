"""What users see: states, steps, optimizers, memory, refusals."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxremat.base.errors import ArgumentError
from jaxremat.compact import CompAct, default_select


def mlp(params, x):
    """Three layers; `gate` and `up` read the same input."""
    h = jnp.tanh(x @ params["gate"]) * (x @ params["up"])
    return jnp.mean((h @ params["down"] + params["bias"] - jnp.roll(x, 1, -1)) ** 2)


def mlp_arguments(width=16, hidden=24, batch=32, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    params = {name: (0.3 * jax.random.normal(k, shape)).astype(dtype) for k, (name, shape) in zip(keys, shapes.items())}
    return params | {"bias": jnp.zeros(width, dtype)}, jax.random.normal(keys[3], (batch, width), dtype)


def train(compact, state, x, steps):
    step = jax.jit(compact.step)
    for _ in range(steps):
        state, metrics = step(state, x)
    return state, metrics


def largest_difference(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def peak_bytes(fun, *args, donate):
    memory = jax.jit(fun, donate_argnums=donate).lower(*args).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return total - memory.alias_size_in_bytes


def test_the_compressed_and_the_full_parameters_learn():
    params, x = mlp_arguments()
    compact = CompAct(mlp, optax.adam(1e-2), rank=0.5, scale=0.5, refresh_every=20)
    state, metrics = train(compact, compact.init(params), x, 150)
    assert metrics["loss"] < 0.5 * mlp(params, x)
    assert mlp(state.params, x) < 0.5 * mlp(params, x)


def test_shapes_and_static_layout():
    params, x = mlp_arguments()
    compact = CompAct(mlp, optax.adam(1e-2), rank=4)
    state = compact.init(params, x)
    assert jax.tree.map(jnp.shape, compact.trainable(state)) == {
        "gate": (4, 24),
        "up": (4, 24),
        "down": (4, 16),
        "bias": (16,),
    }
    assert state.optimizer_state[0].mu["down"].shape == (4, 16)
    assert jax.tree.structure(jax.eval_shape(compact.init, params)) == jax.tree.structure(compact.init(params))


def test_common_inputs_share_one_projection():
    params, x = mlp_arguments()
    compact = CompAct(mlp, optax.sgd(1.0), rank=4)
    group = compact._compressed(compact.init(params), (x,))[1].group
    names = sorted(params)
    by_name = {names[leaf]: names[first] for leaf, first in group.items()}
    assert by_name["gate"] == by_name["up"] != by_name["down"]


def test_casts_of_one_input_share_one_projection():
    def loss(params, x):
        x = jnp.sin(x)
        products = [x.astype(jnp.bfloat16) @ params[n].astype(jnp.bfloat16) for n in ("q", "k", "v")]
        return sum(p.astype(jnp.float32).sum() for p in products)

    params, x = {n: jnp.ones((8, 6)) for n in ("q", "k", "v")}, jnp.ones((5, 8))
    compact = CompAct(loss, optax.sgd(1.0), rank=4)
    state = compact.init(params, x)
    assert len(set(compact._compressed(state, (x,))[1].group.values())) == 1
    kept = jax.tree.leaves(
        jax.eval_shape(lambda t: jax.vjp(lambda t: compact.loss(t, state, x), t)[1], compact.trainable(state))
    )
    assert sum(leaf.shape == (5, 4) and leaf.dtype == jnp.bfloat16 for leaf in kept) == 1


def test_projections_change_every_refresh_and_moments_stay():
    params, x = mlp_arguments()
    compact = CompAct(mlp, optax.adam(1e-2), rank=4, refresh_every=3)
    state = compact.init(params)
    gradient = jax.jit(lambda state: jax.grad(compact.loss)(compact.trainable(state), state, x))
    first, same, refreshed = (gradient(dataclasses.replace(state, step=jnp.asarray(i))) for i in (0, 2, 3))
    assert largest_difference(first, same) == 0
    assert largest_difference(first["up"], refreshed["up"]) > 1e-4
    before, _ = train(compact, state, x, 3)
    after, _ = train(compact, before, x, 1)
    expected = 0.9 * before.optimizer_state[0].mu["up"] + 0.1 * gradient(before)["up"]
    np.testing.assert_allclose(after.optimizer_state[0].mu["up"], expected, rtol=1e-4, atol=1e-7)


def test_deterministic_for_a_seed():
    params, x = mlp_arguments()

    def after(seed):
        compact = CompAct(mlp, optax.sgd(0.1), rank=4, seed=seed)
        return jax.jit(compact.step)(compact.init(params), x)[0].params

    first = after(0)
    assert largest_difference(first, after(0)) == 0
    assert largest_difference(first["up"], after(1)["up"]) > 1e-4


def test_decoupled_weight_decay_shrinks_the_full_weight():
    params, x = mlp_arguments()
    still = lambda params, x: 0.0 * mlp(params, x)
    compact = CompAct(still, optax.adamw(0.1, weight_decay=0.5), rank=4)
    state, _ = train(compact, compact.init(params), x, 1)
    np.testing.assert_allclose(state.params["up"], 0.95 * params["up"], rtol=1e-5)
    masked = optax.adamw(0.1, weight_decay=0.5, mask=lambda tree: {name: name != "up" for name in tree})
    compact = CompAct(still, masked, rank=4)
    state, _ = train(compact, compact.init(params), x, 1)
    np.testing.assert_allclose(state.params["up"], params["up"], rtol=1e-6)
    np.testing.assert_allclose(state.params["down"], 0.95 * params["down"], rtol=1e-5)


def test_an_l2_term_is_part_of_the_compressed_gradient():
    """Gradient + decay * W is compressed as one: with P orthonormal in expectation, the mean step is the plain one."""
    params, x = mlp_arguments()
    still = lambda params, x: 0.0 * mlp(params, x)
    optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0, momentum=0.9))

    def move(step):
        compact = CompAct(still, optimizer, rank=8, scale=1.0, refresh_every=1)
        return compact.step(dataclasses.replace(compact.init(params), step=step), x)[0].params["up"]

    mean = jax.jit(lambda: jax.vmap(move)(jnp.arange(1000)).mean(0))()
    np.testing.assert_allclose(mean, 0.5 * params["up"], atol=0.1 * float(jnp.abs(params["up"]).max()))


OPTIMIZERS = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "adamw with schedule": optax.adamw(optax.cosine_decay_schedule(1e-2, 40), weight_decay=1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "lion": optax.lion(3e-3),
    "lamb": optax.lamb(2e-2),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "partition": optax.partition(
        {"a": optax.adam(1e-2), "b": optax.sgd(0.1)}, lambda tree: {n: "b" if n == "bias" else "a" for n in tree}
    ),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2),
    "plateau": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer(name):
    params, x = mlp_arguments()
    compact = CompAct(mlp, OPTIMIZERS[name], rank=0.5, refresh_every=10)
    state, metrics = train(compact, compact.init(params), x, 30)
    assert metrics["loss"] < 0.97 * mlp(params, x)
    assert all(largest_difference(params[n], state.params[n]) > 1e-3 for n in ("gate", "up", "down"))


def test_clipping_sees_the_compressed_gradients():
    params, x = mlp_arguments()
    norm = 1e-3
    clipped = CompAct(mlp, optax.chain(optax.clip_by_global_norm(norm), optax.sgd(1.0)), rank=4, scale=1.0)
    state = clipped.init(params)
    grads = jax.grad(clipped.loss)(clipped.trainable(state), state, x)
    after = clipped.step(state, x)[0]
    np.testing.assert_allclose(
        after.params["bias"], params["bias"] - grads["bias"] * norm / optax.tree.norm(grads), rtol=1e-4
    )


def test_bfloat16_parameters():
    params, x = mlp_arguments(dtype=jnp.bfloat16)
    compact = CompAct(mlp, optax.adam(1e-2), rank=0.5)
    state, metrics = train(compact, compact.init(params), x, 60)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state.params))
    assert metrics["loss"] < 0.9 * mlp(params, x)


def test_auxiliary_outputs_may_read_the_weights():
    def loss(params, x):
        return mlp(params, x), {"norm": optax.tree.norm(params), "params": params}

    params, x = mlp_arguments()
    compact = CompAct(loss, optax.sgd(0.1), rank=4, has_aux=True)
    state = compact.init(params, x)
    after, metrics = jax.jit(compact.step)(state, x)
    np.testing.assert_allclose(metrics["aux"]["norm"], optax.tree.norm(params), rtol=1e-6)
    value, aux = compact.loss(compact.trainable(state), state, x)
    np.testing.assert_allclose(value, metrics["loss"], rtol=1e-6)
    assert largest_difference(aux["params"], params) == 0
    assert largest_difference(after.params["up"], params["up"]) > 0


def test_orbax_round_trip(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params, x = mlp_arguments()
    compact = CompAct(mlp, optax.adam(1e-2), rank=4)
    step = jax.jit(compact.step)
    state, _ = step(compact.init(params), x)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(compact.init, params))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert largest_difference(restored, state) == 0
    assert largest_difference(step(restored, x)[0], step(state, x)[0]) == 0


SHARDED = """
import jax, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from test_training import mlp, mlp_arguments
from jaxremat.compact import CompAct

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
specs = {"gate": P("data", "model"), "up": P("data", "model"), "down": P("model", "data"), "bias": P("model")}
params, x = mlp_arguments()
sharded = {name: jax.device_put(p, NamedSharding(mesh, specs[name])) for name, p in params.items()}
compact = CompAct(mlp, optax.adam(1e-2), rank=4)
step = jax.jit(compact.step)
state, alone = compact.init(sharded), compact.init(params)
for _ in range(2):
    state, _ = step(state, jax.device_put(x, NamedSharding(mesh, P("data"))))
    alone, _ = step(alone, x)
moments = {"gate": P(None, "model"), "up": P(None, "model"), "down": P(None, "data"), "bias": P("model")}
for name in params:
    assert state.params[name].sharding.spec == specs[name], state.params[name].sharding
    assert state.optimizer_state[0].mu[name].sharding.spec == moments[name]
    np.testing.assert_allclose(state.params[name], alone.params[name], atol=1e-5)
"""


def test_shardings_stay():
    """Four devices in a process of their own: parameters keep their shardings, moments lose the input axis."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "helpers"), str(here.parents[1])])
    environment = os.environ | flags | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_projections_are_not_kept():
    """Eight square layers on a tiny batch: all projections together are 8 * 512 * 256 * 4 B = 4 MiB, one is 0.5 MiB."""

    def loss(params, x):
        for w in params.values():
            x = jnp.tanh(x @ w)
        return x.sum()

    params = {f"layer_{i}": jax.ShapeDtypeStruct((512, 512), jnp.float32) for i in range(8)}
    x = jax.ShapeDtypeStruct((4, 512), jnp.float32)
    compact = CompAct(loss, optax.sgd(0.1), rank=0.5)
    state = jax.eval_shape(compact.init, params)
    parameters, gradients = 8 * 512 * 512 * 4, 8 * 256 * 512 * 4
    peak = peak_bytes(compact.step, state, x, donate=0)
    assert peak <= parameters + gradients + 6 * 512 * 512 * 4, f"{peak / 2**20:.1f} MiB"


@pytest.mark.parametrize("scanned", [False, True])
def test_memory_of_a_step_falls(scanned):
    """Rows of 4096 x 256 floats are 4 MiB; each of 6 layers keeps two of them for its products, and two cosines."""
    layers, width, rows = 6, 256, 4096

    def layer(x, w):
        return x + jnp.sin(jnp.sin(x) @ w["up"]) @ w["down"], None

    def loss(params, x):
        if scanned:
            return jnp.mean(lax.scan(layer, x, params)[0] ** 2)
        for i in range(layers):
            x, _ = layer(x, jax.tree.map(lambda w, i=i: w[i], params))
        return jnp.mean(x**2)

    params = {n: jax.ShapeDtypeStruct((layers, width, width), jnp.float32) for n in ("up", "down")}
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    optimizer = optax.adam(1e-3)

    def plain(params, state, x):
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    compact = CompAct(loss, optimizer, rank=0.125, select=lambda path, leaf: True)
    full = peak_bytes(plain, params, jax.eval_shape(optimizer.init, params), x, donate=(0, 1))
    ours = peak_bytes(compact.step, jax.eval_shape(compact.init, params), x, donate=0)
    assert ours <= 0.8 * full, f"{full / 2**20:.0f} -> {ours / 2**20:.0f} MiB"


REFUSED = {
    "embedding": (lambda w, x: w[jnp.int32(x[0, :3])], r"gather"),
    "tied": (lambda w, x: x @ w @ w.T + w[jnp.int32(x[0, :3])].sum(), r"gather|contracts its axes"),
    "both layouts": (lambda w, x: (x @ w) @ w.T, r"\(0,\).*\(1,\)"),
    "convolution": (
        lambda w, x: lax.conv(x[None, None], w[None, None, :3, :3], (1, 1), "SAME"),
        r"conv_general_dilated",
    ),
    "norm": (lambda w, x: x @ (w / jnp.linalg.norm(w)), r"consumed|constant"),
    "both operands": (lambda w, x: x @ (w @ w), r"both operands"),
    "part of the input": (lambda w, x: x[:, :4] @ w[:4] + x[:, 4:] @ w[4:], r"part of its input|cuts its input"),
    "concatenated": (lambda w, x: x @ jnp.concatenate([w, w], 1), r"concatenate"),
    "masked": (lambda w, x: x @ jnp.where(x[0, 0] > 0, w, 0.0), r"select_n"),
    "while": (lambda w, x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1], r"while"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_parameter_consumer_and_remedy(name):
    apply, consumer = REFUSED[name]
    loss = lambda params, x: jnp.sum(apply(params["w"], x) ** 2)
    params, x = {"w": jnp.ones((8, 8))}, jnp.ones((5, 8))
    compact = CompAct(loss, optax.sgd(0.1), rank=4, select=lambda path, leaf: True)
    for attempt in (lambda: compact.init(params, x), lambda: compact.step(compact.init(params), x)):
        with pytest.raises(ArgumentError) as caught:
            attempt()
        assert re.search(consumer, str(caught.value)), caught.value
        assert str(caught.value).count("w: ") and "select" in str(caught.value)


def test_default_selection_drops_what_cannot_be_compressed():
    def loss(params, tokens):
        x = params["tokens"][tokens]
        return jnp.sum((jnp.tanh(x @ params["up"]) @ params["o_proj"]) @ params["tokens"].T)

    params = {"tokens": jnp.ones((11, 8)), "up": jnp.ones((8, 8)), "o_proj": jnp.ones((8, 8))}
    tokens = jnp.arange(5)
    compact = CompAct(loss, optax.sgd(0.1), rank=4)
    assert [c.path for c in compact.init(params, tokens).compressions] == ["up"]
    with pytest.raises(ArgumentError, match=r"tokens: .*gather.*select|select.*tokens: .*gather"):
        compact.step(compact.init(params), tokens)


def test_default_selection_by_name():
    matrix = jnp.ones((4, 4))
    chosen = ["params/block_0/query/kernel", "layers/mlp/w1", "h/0/mlp/c_fc/w", "model/up_proj/kernel", "w_down"]
    left = [
        "params/Embed_0/embedding",
        "wte",
        "block/attention/out/kernel",
        "lm_head/kernel",
        "o_proj/kernel",
        "pos_embed",
    ]
    assert all(default_select(path, matrix) for path in chosen)
    assert not any(default_select(path, matrix) for path in left)
    assert not default_select("block/query/bias", jnp.ones(4))


def test_a_wrong_guess_of_the_layout_says_how_to_do_better():
    loss = lambda params, x: jnp.sum((x @ params["w"].T) ** 2)
    params, x = {"w": jnp.ones((6, 8))}, jnp.ones((5, 8))
    compact = CompAct(loss, optax.sgd(0.1), rank=2)
    with pytest.raises(ArgumentError, match=r"w \(6, 8\).*\(0,\).*\(1,\).*init\(params, \*batch\)"):
        compact.step(compact.init(params), x)
    compact.step(compact.init(params, x), x)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": -0.5}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"rank": True}, "rank"),
        ({"rank": 4, "refresh_every": 0}, "refresh_every"),
        ({"rank": 4, "refresh_every": 2.5}, "refresh_every"),
        ({"rank": 4, "scale": 0}, "scale"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ArgumentError, match=word):
        CompAct(mlp, optax.sgd(0.1), **options)


def test_bad_selections():
    params, x = mlp_arguments()
    with pytest.raises(ArgumentError, match="selected"):
        CompAct(mlp, optax.sgd(0.1), rank=4, select=lambda path, leaf: False).init(params)
    with pytest.raises(ArgumentError, match=r"bias is float32\(16,\)"):
        CompAct(mlp, optax.sgd(0.1), rank=4, select=lambda path, leaf: True).init(params)
    with pytest.raises(ArgumentError, match=r"rank=99 .* width 16 of gate"):
        CompAct(mlp, optax.sgd(0.1), rank=99, select=lambda path, leaf: path == "gate").init(params, x)


def test_one_projection_per_input_inside_a_scan():
    """Per layer a scan keeps one projection for query, key and value, and one for `down`."""

    def block(x, w):
        h = jnp.sin(x)
        mixed = jax.nn.softmax((h @ w["query"]) * (h @ w["key"])) * (h @ w["value"])
        return x + jnp.tanh(mixed) @ w["down"], None

    loss = lambda params, x: jnp.sum(lax.scan(block, x, params)[0] ** 2)
    params = {n: jnp.ones((2, 8, 8)) / 8 for n in ("query", "key", "value", "down")}
    x = jnp.ones((5, 8))
    compact = CompAct(loss, optax.sgd(0.1), rank=3)
    state = compact.init(params, x)
    kept = jax.eval_shape(lambda t: jax.vjp(lambda t: compact.loss(t, state, x), t)[1], compact.trainable(state))
    assert sum(leaf.shape == (2, 5, 3) for leaf in jax.tree.leaves(kept)) == 2
