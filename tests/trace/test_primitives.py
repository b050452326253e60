"""The tables of primitives: which families may overlap, and that each name is one of JAX's."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import primitives as jax_primitives

from jaxremat.base import compat
from jaxremat.trace import primitives

FAMILIES = {name: found for name, found in vars(primitives).items() if isinstance(found, frozenset)}
ELEMENTWISE_PARTS = ("EXACT", "COMMUTATIVE", "IN_LIBRARY")
HLO_KINDS = {"broadcast", "bitcast"}  # what two primitives become, under one name


APART = list(itertools.combinations(("CHEAP", "EXPENSIVE", "MOVING", "REDUCTIONS", "CUMULATIVE"), 2))


@pytest.mark.parametrize(("one", "other"), APART)
def test_no_primitive_is_of_two_families(one, other):
    assert not FAMILIES[one] & FAMILIES[other]


@pytest.mark.parametrize("name", ELEMENTWISE_PARTS)
def test_what_is_told_of_element_wise_ones_is_told_of_those_alone(name):
    assert FAMILIES[name] <= primitives.ELEMENTWISE


def test_exact_ones_are_those_that_round_nothing():
    assert not primitives.EXACT & primitives.EXPENSIVE
    assert primitives.EXACT.isdisjoint({"add", "mul", "sub", "integer_pow", "square"})


def named(fun, *args):
    return {compat.primitive_name(eqn) for eqn in jax.make_jaxpr(fun)(*args).eqns}


def test_checkpoints_and_calls_are_known_by_the_names_that_jax_gives(remat3):
    assert named(jax.checkpoint(jnp.sin), 1.0) <= set(primitives.CHECKPOINTS)
    assert named(jax.jit(lambda x: jnp.sin(x) + 1), 1.0) <= set(primitives.CALLS)
    assert named(jax.nn.relu, 1.0) <= set(primitives.OWN_RULES) | set(primitives.CALLS)


@pytest.mark.parametrize("family", ["CHEAP", "EXPENSIVE", "REDUCTIONS", "CUMULATIVE"])
def test_names_are_those_of_primitives(family):
    known = {p.name for p in vars(jax_primitives).values() if hasattr(p, "name")}
    known |= {name for name in FAMILIES[family] if hasattr(jax.lax, name)}
    assert FAMILIES[family] - known - HLO_KINDS <= {
        *("add_any", "eq_to", "le_to", "lt_to", "one_minus_square", "copy", "population_count", "digamma", "lgamma"),
    }
