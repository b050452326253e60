"""Static arguments are named as `jax.jit` names them, and given by position or keyword."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_programs import assert_same, layers_with_options

import jaxremat

W = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)) / 4, jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=(256, 16)), jnp.float32)


@pytest.mark.parametrize("static", [{"static_argnums": 2}, {"static_argnums": -4}, {"static_argnames": "depth"}])
@pytest.mark.parametrize("by_keyword", [True, False])
def test_static_arguments_by_number_and_name_given_by_position_and_keyword(static, by_keyword):
    ours = jaxremat.remat(layers_with_options, budget=1.0, **static)
    expected = jax.grad(layers_with_options)(W, X, 2)
    assert_same(jax.grad(ours)(W, X, depth=2) if by_keyword else jax.grad(ours)(W, X, 2), expected)


@pytest.mark.parametrize(
    ("static", "told"),
    [
        ({"static_argnums": 6}, "static_argnums names 6"),
        ({"static_argnums": (0, -7)}, "static_argnums names -7"),
        ({"static_argnames": "dpeth"}, "static_argnames names 'dpeth'.*Did you mean 'depth'"),
        ({"static_argnames": ("depth", "finale")}, "static_argnames names 'finale'"),
        ({"static_argnums": "depth"}, "static_argnums='depth' has to be int"),
        ({"static_argnames": 2}, "static_argnames=2 has to be str"),
        ({"static_argnames": ("depth", 2)}, "has to be str, or several"),
    ],
)
def test_static_arguments_that_the_function_does_not_have(static, told):
    for decorator in (jaxremat.remat, pytest.importorskip("jaxremat.nnx").remat):
        with pytest.raises(jaxremat.ArgumentError, match=told):
            decorator(layers_with_options, budget=1.0, **static)


def test_static_arguments_of_a_linen_module():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train, *, scale=1.0):
            return scale * nn.Dropout(0.1, deterministic=not train)(nn.Dense(8)(x))

    variables = Block().init(jax.random.key(0), X, False)
    run = functools.partial(Block.apply, variables=variables, rngs={"dropout": jax.random.key(1)})
    for static in ({"static_argnums": 2}, {"static_argnums": (-1,)}, {"static_argnames": ("train", "scale")}):
        ours = jaxremat.linen.remat(Block, budget=1.0, **static)()
        for args, kwargs in (((X, True), {}), ((X,), {"train": True, "scale": 2.0})):
            expected = Block().apply(variables, *args, rngs=run.keywords["rngs"], **kwargs)
            assert_same(ours.apply(variables, *args, rngs=run.keywords["rngs"], **kwargs), expected)
    with pytest.raises(jaxremat.ArgumentError, match="'trian'"):
        jaxremat.linen.remat(Block, budget=1.0, static_argnames="trian")
