"""Masks of positions: what depends on indices alone, and is spread over batches and heads."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxremat.trace.masks import NO_MASKS, masks_among, pair_masks_among

SCORES = jax.ShapeDtypeStruct((2, 3, 8, 8), jnp.float32)


def jaxpr_of(fun, *args):
    return jax.make_jaxpr(fun)(*args).jaxpr


def pairs(fun, *args):
    jaxpr = jaxpr_of(fun, *args)
    return pair_masks_among(jaxpr.eqns, jaxpr.outvars)


def causal(scores):
    positions = jnp.arange(scores.shape[-1])
    return jnp.where(positions[:, None] >= positions, scores, -1e9)


def test_a_mask_is_what_others_only_spread():
    found = pairs(causal, SCORES)
    (mask,) = found.in_order
    assert mask.aval.shape == (8, 8) and mask.aval.dtype == bool
    assert [eqn.primitive.name for eqn in found.eqns][-1] == "ge"
    assert mask in found.eqns[-1].outvars


def test_of_several_that_follow_from_each_other_the_last_is_the_mask():
    window = lambda x: jnp.where(jnp.tri(8, dtype=bool) & ~jnp.tri(8, k=-3, dtype=bool), x, -1e9)
    found = pairs(window, SCORES)
    assert len(found.eqns) > 3 and [eqn.primitive.name for eqn in found.eqns][-1] == "and"
    assert list(found.in_order) == found.eqns[-1].outvars


def test_what_makes_it_reads_indices_alone():
    found = pairs(causal, SCORES)
    made = {v for eqn in (*found.numbers, *found.eqns) for v in eqn.outvars}
    assert all(made.issuperset(v for v in eqn.invars if hasattr(v, "count")) for eqn in found.eqns)


def test_a_mask_that_is_read_as_large_as_it_is_stays_where_it_is():
    assert not pairs(causal, jax.ShapeDtypeStruct((8, 8), jnp.float32)).made
    returned = lambda x: (lambda mask: (jnp.where(mask, x, -1e9), mask))(jnp.arange(8)[:, None] >= jnp.arange(8))
    assert not pairs(returned, SCORES).made


def test_a_mask_over_one_axis_is_none_of_pairs():
    padding = lambda x: jnp.where(jnp.arange(8) * 2 < 5, x, -1e9)
    jaxpr = jaxpr_of(padding, SCORES)
    assert masks_among(jaxpr.eqns, jaxpr.outvars).made and not pairs(padding, SCORES).made


def test_numbers_made_of_indices_are_no_masks():
    along = lambda axis: lax.broadcasted_iota(jnp.float32, (8, 8), axis)
    distances = lambda x: x - jnp.abs(along(0) - along(1))
    jaxpr = jaxpr_of(distances, SCORES)
    assert masks_among(jaxpr.eqns, jaxpr.outvars).made and not pairs(distances, SCORES).made


def test_what_depends_on_an_input_is_no_mask():
    lengths = lambda x, n: jnp.where(jnp.arange(8)[:, None] >= jnp.arange(8) + n, x, -1e9)
    assert not pairs(lengths, SCORES, jax.ShapeDtypeStruct((), jnp.int32)).made


def test_there_are_none_where_nothing_is_counted():
    assert not NO_MASKS.eqns and not NO_MASKS.in_order
    assert pairs(lambda x: jnp.sin(x), SCORES).eqns == ()
