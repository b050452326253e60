"""What is attention in a jaxpr: by the formula, whatever axes and transpositions lie between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.attention.pattern import AttentionFinder
from jaxremat.trace import jaxpr as jaxprs

BATCH, QUERIES, KEYS, DEPTH = 2, 12, 8, 4
rng = np.random.default_rng(0)
Q, K, V = (jnp.asarray(rng.normal(size=(BATCH, n, DEPTH)), jnp.float32) for n in (QUERIES, KEYS, KEYS))


def softmax(scores, axis=-1):
    shifted = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis, keepdims=True)))
    return shifted / shifted.sum(axis, keepdims=True)


def divided(entries):
    return entries / entries.sum(-1, keepdims=True)


def found(fun, entries=16, **sizes):
    """(findings, the program)."""
    jaxpr = jaxprs.inline_calls(jax.make_jaxpr(fun)(Q, K, V))
    return AttentionFinder(entries, **sizes)(jaxpr), jaxpr


FORMS = {
    "by rows": lambda q, k, v: softmax(q @ k.mT) @ v,
    "by columns": lambda q, k, v: jnp.einsum("bkq,bkd->bqd", softmax(k @ q.mT, 1), v),
    "mixed on the right": lambda q, k, v: jnp.einsum("bkd,bqk->bdq", v, softmax(q @ k.mT)),
    "keys first": lambda q, k, v: jnp.einsum("bkd,bkq->bqd", v, softmax(q @ k.mT).mT),
    "not shifted": lambda q, k, v: divided(jnp.exp(q @ k.mT)) @ v,
    "narrowed": lambda q, k, v: softmax(q @ k.mT).astype(jnp.bfloat16).astype(jnp.float32) @ v,
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_found_and_computed_in_tiles(name):
    found_, jaxpr = found(FORMS[name])
    (finding,) = found_
    assert finding.replaced and np.prod(finding.shape) == BATCH * QUERIES * KEYS
    given = dict(zip(jaxpr.invars, (Q, K, V)))
    values = run_up_to(jaxpr, given, finding.reads)
    (ours,) = finding.emit([values[v] for v in finding.reads])
    (theirs,) = jaxprs.evaluate(jaxpr, [Q, K, V])
    tolerance = 2.0**-8 * float(jnp.abs(V).max()) if name == "narrowed" else 1e-5  # of weights that sum to one
    np.testing.assert_allclose(ours, theirs, atol=tolerance)


def run_up_to(jaxpr, env, wanted):
    """The values of some variables."""
    for eqn in jaxpr.eqns:
        made = eqn.primitive.bind(*(jaxprs.value_of(env, atom) for atom in eqn.invars), **eqn.params)
        env.update(zip(eqn.outvars, made if eqn.primitive.multiple_results else [made]))
    return {v: env[v] for v in wanted}


@pytest.mark.parametrize(
    "fun",
    [
        lambda q, k, v: jnp.exp(q @ k.mT) @ v,
        lambda q, k, v: softmax(q @ k.mT, 1) @ v,
        lambda q, k, v: divided(q @ k.mT) @ v,
        lambda q, k, v: jax.nn.sigmoid(q @ k.mT) @ v,
    ],
    ids=["not divided", "over queries", "no exponential", "logistic"],
)
def test_other_weights_are_no_attention(fun):
    assert found(fun)[0] == []


@pytest.mark.parametrize(
    ("fun", "entries", "reason"),
    [
        (FORMS["by rows"], 10**6, "the scores fit in one tile"),
        (lambda q, k, v: softmax(jnp.sort(q @ k.mT)) @ v, 16, "not a product that tiles can be cut from"),
        (lambda q, k, v: ((s := q @ k.mT), softmax(s) @ v), 16, "also read as a result of the function"),
        (lambda q, k, v: jnp.sum(s := q @ k.mT) * (softmax(s) @ v), 16, "also read by reduce_sum at"),
    ],
    ids=["small", "sorted", "returned", "summed"],
)
def test_what_is_left_says_why(fun, entries, reason):
    (finding,) = found(fun, entries)[0]
    assert not finding.replaced and reason in finding.reason
