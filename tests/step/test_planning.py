import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
import step_programs

import jaxremat
from jaxremat.compiled.compile import MemoryReport
from jaxremat.planner.schedules import APART
from jaxremat.step.planned_step import PlannedStep
from jaxremat.step.planning import fastest_of_alike


@dataclasses.dataclass(frozen=True)
class Predicted:
    peak_bytes: int
    cost: float


def test_of_what_cannot_be_told_apart_the_fastest_counts():
    alike = [Predicted(100_000, 4.0), Predicted(int(100_000 * APART), 1.5), Predicted(100_200, 2.0)]
    others = [Predicted(100_001 + int(100_000 * (APART - 1)), 1.0), Predicted(200_000, 0.5)]
    assert fastest_of_alike([*others, *alike]) == [alike[1], *others]


def test_refusal_names_the_smallest_of_all_that_was_compiled(monkeypatch):
    """What was compiled in search of a plan counts, too, where what is compiled in search of the least is larger."""
    written, first = 2**30, 2**28
    peaks = itertools.chain([written], itertools.count(first, 2**20))

    def compiled(*_):
        peak_bytes = next(peaks)
        return MemoryReport("cpu", 0, 0, peak_bytes, 0, peak_bytes, 0.0)

    monkeypatch.setattr(PlannedStep, "_compiled", compiled)
    step, args = step_programs.deep(8, 4096)
    predicted = jaxremat.jit(step, budget=1.0, donate_argnums=0).predicted_bytes(*args)
    with pytest.raises(jaxremat.BudgetError) as refused:
        jaxremat.jit(step, budget=int(0.6 * predicted), donate_argnums=0).plan(*args)
    assert refused.value.min_peak_bytes == first
    assert "allow=('chunk',)" in str(refused.value)
    assert next(peaks) > first + 2**20


def two_towers(depth, width, batch):
    """(step, args): two towers whose outputs are compared with one another, as in CLIP."""

    def tower(layers, x):
        for up, down in layers:
            x = x + jnp.tanh(x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) @ up) @ down
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss(params, images, texts):
        likeness = 10 * tower(params["images"], images) @ tower(params["texts"], texts).T
        return -sum(jnp.mean(jnp.diag(jax.nn.log_softmax(likeness, axis))) for axis in (0, 1))

    def step(state, images, texts):
        loss_now, gradients = jax.value_and_grad(loss)(state["params"], images, texts)
        updates, adam = optimizer.update(gradients, state["adam"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "adam": adam}, loss_now

    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    layers = [(shape(width, 2 * width), shape(2 * width, width))] * depth
    params, optimizer = {"images": layers, "texts": layers}, optax.adamw(1e-3)
    state = {"params": params, "adam": jax.eval_shape(optimizer.init, params)}
    return step, (state, shape(batch, width), shape(batch, width))


def test_the_least_is_asked_for_less_until_nothing_is_found():
    """1.88 MB, where the smallest of what is predicted to be small takes 2.07."""
    step, args = two_towers(2, 64, 256)
    planned = functools.partial(jaxremat.jit, step, donate_argnums=0)
    least = planned(budget="least").plan(*args).compiled.peak_bytes
    assert least < 2.0e6
    with pytest.raises(jaxremat.BudgetError):
        planned(budget=int(0.98 * least)).plan(*args)
