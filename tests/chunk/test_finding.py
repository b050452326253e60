"""What finders return, and who reads and makes what."""

import jax
import jax.numpy as jnp

from jaxremat.chunk.rewriting.finding import Finding, Findings, producers_of, readers_of

JAXPR = jax.make_jaxpr(lambda x, y: (jnp.sin(x) * jnp.sin(x), y))(1.0, 2.0).jaxpr


def test_readers_count_results_as_nobody():
    x, y = JAXPR.invars
    readers = readers_of(JAXPR)
    assert [eqn.primitive.name for eqn in readers[x]] == ["sin", "sin"] and readers[y] == [None]
    (product,) = (eqn for eqn in JAXPR.eqns if eqn.primitive.name == "mul")
    assert readers[product.outvars[0]] == [None]


def test_every_result_has_its_equation():
    made = producers_of(JAXPR)
    assert set(made) == {v for eqn in JAXPR.eqns for v in eqn.outvars}
    assert all(v in made[v].outvars for v in made)


def test_what_is_left_says_why():
    replaced = Finding("softmax attention", "model.py:3", (2, 8), 2**20)
    left = Finding("loss head", "model.py:9", (4,), 2**19, reason="its logits are returned")
    assert replaced.replaced and not left.replaced
    assert str(Findings([replaced, left])).splitlines() == [
        "softmax attention [2, 8], 1.0 MiB, at model.py:3: replaced",
        "loss head [4], 0.5 MiB, at model.py:9: left: its logits are returned",
    ]
    assert str(Findings()) == "nothing found"
