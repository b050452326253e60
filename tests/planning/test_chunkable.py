"""What can run in chunks is found in programs as people write them, and computes the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxremat.chunk.choice import Chunked
from jaxremat.planning.chunkable import find_regions, rewritten
from jaxremat.trace.jaxpr import evaluate, subjaxprs
from jaxremat.trace.primal import read_primal

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 509, 16, 640  # 509 is prime: the last chunk overlaps the one before
ENTRIES = 2**15


def mlp(params, x):
    return jax.nn.gelu(x @ params["up"] + params["bias"]) @ params["down"]


def gated(params, x):
    return (jax.nn.silu(x @ params["up"]) * (x @ params["gate"])).astype(x.dtype) @ params["down"]


def attend(x):
    weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x) / 4)
    return jnp.einsum("bqk,bkd->bqd", weights, x)


def head(params, x, labels):
    logits = (x @ params["head"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels[:, 1:])


def with_mlp(params, x, labels):
    return (x + mlp(params, jnp.sin(x))).mean()


def with_gated_mlp(params, x, labels):
    return (x + gated(params, jnp.sin(x))).mean()


def with_relu(params, x, labels):
    return (x + jax.nn.relu(jnp.round(x @ params["up"])) @ params["down"]).mean()


def with_columns_of_tokens(params, x, labels):
    columns = x.reshape(-1, WIDTH).T
    return (params["down"].T.astype(jnp.float32) @ jnp.tanh(params["up"].T @ columns)).mean()


def with_norm_before(params, x, labels):
    return (x + mlp(params, nn.LayerNorm(use_scale=False, use_bias=False).apply({}, x))).mean()


def with_masked_head(params, x, labels):
    return jnp.where(labels[:, 1:] > 9, head(params, jnp.sin(x), labels), 0).sum() / BATCH / LENGTH


def with_everything(params, x, labels):
    x = x + attend(x)
    return head(params, x + mlp(params, x), labels).mean()


def with_scanned_layers(params, x, labels):
    step = lambda x, _: (jnp.sin(x + mlp(params, x + attend(x))), None)
    return head(params, jax.lax.scan(step, x, None, length=2)[0], labels).mean()


def with_checkpointed_layers(params, x, labels):
    step = jax.checkpoint(lambda x, _: (jnp.sin(x + mlp(params, x)), None), prevent_cse=False)
    return jax.lax.scan(step, x, None, length=2)[0].mean()


ATTENTION, HEAD, MLP = "softmax attention", "loss head", "token-wise MLP"
PROGRAMS = {
    with_mlp: [MLP],
    with_gated_mlp: [MLP],
    with_relu: [MLP],
    with_columns_of_tokens: [MLP],
    with_norm_before: [MLP],
    with_masked_head: [HEAD],
    with_everything: [HEAD, ATTENTION, MLP],
    with_scanned_layers: [HEAD, ATTENTION, MLP],
    with_checkpointed_layers: [MLP],
}


def arguments(dtype=jnp.float32):
    keys = iter(jax.random.split(jax.random.key(0), 9))
    normal = lambda *shape: (jax.random.normal(next(keys), shape) / 4).astype(dtype)
    params = {
        "up": normal(WIDTH, 4 * WIDTH),
        "gate": normal(WIDTH, 4 * WIDTH),
        "bias": normal(4 * WIDTH),
        "down": normal(4 * WIDTH, WIDTH),
        "head": normal(WIDTH, VOCABULARY),
    }
    labels = jax.random.randint(next(keys), (BATCH, LENGTH), 0, VOCABULARY)
    return params, normal(BATCH, LENGTH, WIDTH), labels


def in_chunks(fun, args, entries=ENTRIES):
    """(the program, the same with everything in chunks) as functions, and what was found."""
    primal = read_primal(fun, args, (0, 1), False)
    regions = find_regions(primal, entries)
    chunked = rewritten(primal, [region.chunked(entries) for region in regions])
    run = lambda primal: lambda *args: evaluate(primal.jaxpr, jax.tree.leaves(args))[0]
    return run(primal), run(chunked), regions


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda f: f.__name__)
def test_found_and_the_same(fun):
    args = arguments()
    plain, chunked, regions = in_chunks(fun, args)
    assert sorted(region.kind for region in regions) == sorted(PROGRAMS[fun])
    both = (jax.jit(jax.value_and_grad(f, (0, 1)))(*args) for f in (plain, chunked))
    for wanted, got in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("fun", PROGRAMS, ids=lambda f: f.__name__)
def test_large_values_are_gone(fun):
    args = arguments()
    plain, chunked, regions = in_chunks(fun, args)
    large = {region.shape for region in regions}
    assert large <= shapes_in(jax.make_jaxpr(plain)(*args))
    assert not large & shapes_in(jax.make_jaxpr(chunked)(*args))


def test_gradients_of_narrow_weights_are_summed_in_float32():
    args = arguments(jnp.bfloat16)
    loss = lambda params, x, labels: head(params, x, labels).mean()
    plain, chunked, _ = in_chunks(loss, args, entries=VOCABULARY)
    exact = jax.grad(loss)(*jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, args))
    error = lambda f: float(jnp.abs(jax.jit(jax.grad(f))(*args)["head"].astype(jnp.float32) - exact["head"]).max())
    assert error(chunked) <= 1.5 * error(plain)


def test_a_derivative_of_its_own_is_kept_at_every_order():
    args = arguments()
    plain, chunked, _ = in_chunks(with_relu, args)
    second = lambda f: jax.jit(jax.grad(lambda p: (jax.grad(f, 1)(p, *args[1:]) ** 2).sum()))(args[0])["down"]
    np.testing.assert_allclose(second(chunked), second(plain), rtol=1e-4, atol=1e-6)


def dropped_out(params, x, key):
    hidden = jax.nn.gelu(x @ params["up"])
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)
    return (jnp.where(kept, hidden, 0) @ params["down"]).mean()


def returned(params, x, labels):
    hidden = jax.nn.gelu(x @ params["up"])
    return (hidden @ params["down"]).mean() + hidden.max()


@pytest.mark.parametrize("fun", [dropped_out, returned], ids=lambda f: f.__name__)
def test_hidden_values_that_others_make_or_read_stay(fun):
    params, x, labels = arguments()
    third = jax.random.key(0) if fun is dropped_out else labels
    assert find_regions(read_primal(fun, (params, x, third), 0, False), ENTRIES) == ()


def test_what_fits_in_a_tile_is_no_candidate():
    assert find_regions(read_primal(with_everything, arguments(), 0, False), 2**24) == ()


def test_only_what_is_chosen_is_changed():
    args = arguments()
    primal = read_primal(with_everything, args, 0, False)
    chosen = [region.chunked(ENTRIES) for region in find_regions(primal, ENTRIES) if region.kind == HEAD]
    left = {region.kind for region in find_regions(rewritten(primal, chosen), ENTRIES)}
    assert left == {ATTENTION, MLP}
    assert rewritten(primal, ()) is primal


def test_the_same_choice_makes_the_same_program():
    make = lambda: rewritten(read_primal(with_everything, arguments(), 0, False), [Chunked(HEAD, None, ENTRIES)])
    assert make().fingerprint == make().fingerprint


@pytest.mark.parametrize("shape", [None, (2, 3)])
def test_a_choice_survives_json(shape):
    chunk = Chunked(HEAD, shape, 64)
    assert Chunked.from_json(chunk.to_json() | {"shape": shape and list(shape)}) == chunk


def shapes_in(jaxpr):
    """The shapes of all values, those inside loops and calls included."""
    shapes = {getattr(v.aval, "shape", None) for eqn in jaxpr.eqns for v in eqn.outvars}
    return shapes.union(*(shapes_in(body) for eqn in jaxpr.eqns for body in subjaxprs(eqn)))
