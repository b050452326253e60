"""Answers to different budgets beside one another: what one finds, another that allows more must not miss."""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxremat
from jaxremat.planner.correction import CLOSE_ENOUGH

BUDGETS = (0.7, 0.5, 0.4, 0.3)
ROWS, WIDTH = 512, 64


def shape(*lengths):
    return jax.ShapeDtypeStruct(lengths, jnp.float32)


X = shape(ROWS, WIDTH)


def layers(number, width=WIDTH):
    return [(shape(width, 2 * width), shape(2 * width, width))] * number


def forward(params, x):
    for up, down in params:
        x = x + jax.nn.gelu(x @ up) @ down
    return x


def loss(params, x):
    return jnp.mean(forward(params, x) ** 2)


def state_of(params, optimizer):
    return params, jax.eval_shape(optimizer.init, params)


def updated(optimizer, grads, state):
    params, opt = state
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


def perturbed():
    """Parameters move along a first gradient; a second one is taken there."""
    optimizer = optax.sgd(0.1)

    def step(state, x):
        first = jax.grad(loss)(state[0], x)
        scale = 0.05 / (optax.tree.norm(first) + 1e-6)
        moved = jax.tree.map(lambda p, g: p + scale * g, state[0], first)
        return updated(optimizer, jax.grad(loss)(moved, x), state)

    return step, (state_of(layers(4), optimizer), X)


def adversaries():
    """Two players, each with an optimizer, one after the other."""
    optimizer = optax.adam(1e-3)

    def step(players, real, noise):
        critic, maker = players

        def of_critic(params):
            fake = forward(maker[0], noise)
            wrong = jax.nn.softplus(-forward(params, real).mean(-1)) + jax.nn.softplus(forward(params, fake).mean(-1))
            return wrong.mean()

        critic = updated(optimizer, jax.grad(of_critic)(critic[0]), critic)
        of_maker = lambda params: jax.nn.softplus(-forward(critic[0], forward(params, noise)).mean(-1)).mean()
        return critic, updated(optimizer, jax.grad(of_maker)(maker[0]), maker)

    player = state_of(layers(3), optimizer)
    return step, ((player, player), X, X)


def accumulated():
    """Gradients summed over micro-batches by a scan."""
    optimizer = optax.adamw(1e-3)

    def step(state, micro):
        def one(total, x):
            value, grads = jax.value_and_grad(loss)(state[0], x)
            return jax.tree.map(jnp.add, total, grads), value

        grads, values = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, state[0]), micro)
        return updated(optimizer, grads, state), values.mean()

    return step, (state_of(layers(6), optimizer), shape(3, ROWS, WIDTH))


def meta():
    """A gradient through two steps of an inner gradient."""
    optimizer = optax.sgd(0.1)

    def adapted(params, x):
        for _ in range(2):
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x))
        return params

    def step(state, x, y):
        return updated(optimizer, jax.grad(lambda params: loss(adapted(params, x), y))(state[0]), state)

    return step, (state_of(layers(2), optimizer), X, X)


def averaged():
    """A clipped gradient, AdamW, and an average of the parameters."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    def step(state, x):
        trained, average = state
        trained = updated(optimizer, jax.grad(loss)(trained[0], x), trained)
        return trained, jax.tree.map(lambda a, p: 0.99 * a + 0.01 * p, average, trained[0])

    return step, ((state_of(layers(6), optimizer), layers(6)), X)


PROGRAMS = (perturbed, adversaries, accumulated, meta, averaged)


def predicted(make, budget):
    step, args = make()
    return jaxremat.jit(step, budget=budget, donate_argnums=0, verify="replay").predicted(*args)


@functools.cache
def answers(make):
    """The plan for each budget that is not refused, the largest first, then for the least; what refusals name."""
    plans, least_bytes = [], []
    for budget in BUDGETS:
        try:
            plans.append(predicted(make, budget))
        except jaxremat.BudgetError as error:
            least_bytes.append(error.min_peak_bytes)
    return plans, predicted(make, "least"), least_bytes


@pytest.mark.parametrize("make", PROGRAMS)
def test_least_is_the_smallest_that_any_budget_finds(make):
    plans, least, refused = answers(make)
    most_bytes = (1 + CLOSE_ENOUGH) * min([*(plan.peak_bytes for plan in plans), *refused])
    assert least.peak_bytes <= most_bytes
    assert all(named <= (1 + CLOSE_ENOUGH) * least.peak_bytes for named in refused)


@pytest.mark.parametrize("make", PROGRAMS)
def test_larger_budget_takes_no_more_time(make):
    plans, least, _ = answers(make)
    times = [1 + plan.overhead for plan in (*plans, least)]
    assert all(larger <= 1.01 * smaller for larger, smaller in itertools.combinations(times, 2))
