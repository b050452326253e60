import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxremat.backends.devices import resolve_target
from jaxremat.step.pairs import Pairs, emit_pairs, find_pairs
from jaxremat.step.rewriting import inlined_throughout, rewritten
from jaxremat.trace import jaxpr as jaxprs


def gradient_program(reverse=False, length=8):
    """A gradient through a loop with a constant, a carry, slices and results, as a flat program."""

    def loss(weights, scale, x):
        def body(h, w):
            h = h + jnp.tanh(jnp.sin(h) @ w) * scale
            return h, h.sum()

        h, sums = jax.lax.scan(body, x, weights, reverse=reverse)
        return (h**2).mean() + (sums**2).sum()

    args = 0.1 * jnp.ones((length, 8, 8)), jnp.float32(0.5), jnp.linspace(0, 1, 32).reshape(4, 8)
    flat = jax.make_jaxpr(lambda *args: jax.tree.leaves(jax.value_and_grad(loss, (0, 1, 2))(*args)))(*args)
    return inlined_throughout(flat), args


def at_price(jaxpr, price):
    """The program with its pairs as decided at a price of a byte."""
    pairs = Pairs(find_pairs(jaxpr), resolve_target("cpu"))
    return rewritten(jaxpr, emit_pairs(jaxpr, pairs.found, pairs.decide(price), resolve_target("cpu").backend))


@pytest.mark.parametrize("reverse", [False, True])
def test_loop_and_its_gradient_are_a_pair(reverse):
    jaxpr, _ = gradient_program(reverse)
    (pair,) = find_pairs(jaxpr)
    names = [jaxpr.eqns[i].primitive.name for i in (pair.first, pair.second)]
    assert names == ["scan", "scan"] and pair.loop.reverse is reverse
    assert not all(pair.kept) and any(link is not None for link in pair.links)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("price", [1e-20, 1e-9, 1e-7, 1e-5, 1e3])
def test_pair_means_the_same_at_every_price(reverse, price):
    jaxpr, args = gradient_program(reverse)
    program = at_price(jaxpr, price)
    theirs, ours = (jax.jit(lambda *xs, p=p: jaxprs.evaluate(p, xs))(*args) for p in (jaxpr, program))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_high_price_stacks_less():
    jaxpr, _ = gradient_program(length=16)

    def stacked(price):
        program = at_price(jaxpr, price)
        scans = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
        return sum(map(jaxprs.size_bytes, scans[0].outvars))

    assert stacked(1e3) < 0.7 * stacked(1e-20)


def test_scan_whose_results_are_returned_keeps_them():
    def program(x):
        h, ys = jax.lax.scan(lambda h, _: (jnp.sin(h), h), x, None, length=4)
        return jax.lax.scan(lambda c, y: (c + y, None), h, ys, reverse=True)[0], ys

    jaxpr = inlined_throughout(jax.make_jaxpr(program)(jnp.ones(3)))
    assert find_pairs(jaxpr) == ()


def nested_program(length=6, inside=8):
    """A gradient through a loop whose body holds a loop."""

    def loss(weights, x):
        def layer(h, w):
            def part(c, _):
                return jnp.tanh(jnp.sin(c) @ w), c.sum()

            h, sums = jax.lax.scan(part, h, None, length=inside)
            return h + sums.mean(), None

        return (jax.lax.scan(layer, x, weights)[0] ** 2).mean()

    args = 0.1 * jnp.ones((length, 8, 8)), jnp.linspace(0, 1, 32).reshape(4, 8)
    return inlined_throughout(jax.make_jaxpr(jax.value_and_grad(loss))(*args)), args


@pytest.mark.parametrize("price", [1e-20, 1e-9, 1e-7, 1e3])
def test_pair_inside_a_pair_is_decided_too(price):
    jaxpr, args = nested_program()
    (pair,) = find_pairs(jaxpr)
    assert len(pair.inner) == 1
    theirs, ours = (jax.jit(lambda *xs, p=p: jaxprs.evaluate(p, xs))(*args) for p in (jaxpr, at_price(jaxpr, price)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_high_price_decides_inside_of_pairs():
    pairs = Pairs(find_pairs(nested_program(2, 64)[0]), resolve_target("cpu"))
    (decision,) = pairs.decide(1e-9)
    assert decision.inner
