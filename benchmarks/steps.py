"""Whole steps at equal peaks: the loss planned inside a step, as one had to do it, against the step planned as one.

    python benchmarks/steps.py          # all programs: three minutes on two cores
    python benchmarks/steps.py gated    # those whose name contains a word

For each program and share: `jaxremat.remat(loss, budget=share)` inside the step, compiled, takes so many bytes. The
same step by `jaxremat.jit` gets these as its budget, to a thousandth of the step as written. `peak`: compiled, as a
share of the step as written. `FLOPs`: of contractions, beyond those of the step as written. `planning`: process time by
prediction alone, of the step and of the loss at the same share. The last results are in `results/steps.md`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from running import peak_bytes

import jaxremat
from jaxremat.cost.flops import equation_flops, is_contraction
from jaxremat.planning.memory import PLANS
from jaxremat.trace import jaxpr as jaxprs

SHARES = (0.6, 0.4)
WIDTH, DEPTH, BATCH = 128, 8, 4096
Wrap = Callable[[Callable], Callable]


@dataclasses.dataclass(frozen=True)
class Program:
    """A step as people write it.

    Attributes:
      step: from a way to wrap its losses to the step; its first argument is donated.
      args: abstract.
      loss, loss_args: what is differentiated, alone.
    """

    step: Callable[[Wrap], Callable]
    args: tuple
    loss: Callable
    loss_args: tuple


def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def state_of(params, optimizer) -> dict:
    return {"params": params, "opt": jax.eval_shape(optimizer.init, params)}


def updated(optimizer, grads, state) -> dict:
    updates, opt = optimizer.update(grads, state["opt"], state["params"])
    return {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt}


def forward(layers, x):
    for up, gate, down in layers:
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        x = x + (jax.nn.silu(h @ gate) * (h @ up)) @ down
    return x


def loss(layers, x):
    return jnp.mean(forward(layers, x) ** 2)


LAYERS = [(shape(WIDTH, 2 * WIDTH), shape(WIDTH, 2 * WIDTH), shape(2 * WIDTH, WIDTH))] * DEPTH
X = shape(BATCH, WIDTH)


def of_one_gradient(objective, optimizer) -> Callable[[Wrap], Callable]:
    """Makes the step that takes the gradient of an objective, wrapped, and updates by it."""

    def make(wrap: Wrap):
        def step(state, x):
            value, grads = jax.value_and_grad(wrap(objective))(state["params"], x)
            return updated(optimizer, grads, state), value

        return step

    return make


def gated() -> Program:
    """AdamW behind a clipped gradient: every gradient lives to the end."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

    return Program(of_one_gradient(loss, optimizer), (state_of(LAYERS, optimizer), X), loss, (LAYERS, X))


def scanned() -> Program:
    """The layers in a scan."""
    optimizer = optax.adamw(1e-3)
    stacked = tuple(shape(DEPTH, *layer.shape) for layer in LAYERS[0])
    over = lambda layers, x: jnp.mean(jax.lax.scan(lambda x, layer: (forward([layer], x), None), x, layers)[0] ** 2)

    return Program(of_one_gradient(over, optimizer), (state_of(stacked, optimizer), X), over, (stacked, X))


def accumulated() -> Program:
    """Gradients summed over micro-batches by a scan."""
    optimizer = optax.adamw(1e-3)

    def make(wrap: Wrap):
        def step(state, micro):
            def one(total, x):
                value, grads = jax.value_and_grad(wrap(loss))(state["params"], x)
                return jax.tree.map(jnp.add, total, grads), value

            grads, values = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, state["params"]), micro)
            return updated(optimizer, grads, state), values.mean()

        return step

    return Program(make, (state_of(LAYERS, optimizer), shape(3, BATCH, WIDTH)), loss, (LAYERS, X))


def convolved() -> Program:
    """Convolutions with batch statistics that are returned, momentum."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    kernels = [shape(3, 3, 32, 32)] * 6
    images, means = shape(16, 32, 32, 32), shape(6, 32)
    conv = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

    def graded(kernels, x):
        seen = []
        for k in kernels:
            h = conv(x, k)
            seen.append(h.mean((0, 1, 2)))
            x = x + jax.nn.relu((h - seen[-1]) * jax.lax.rsqrt(h.var((0, 1, 2)) + 1e-5))
        return jnp.mean(x**2), jnp.stack(seen)

    def make(wrap: Wrap):
        def step(state, x):
            (value, seen), grads = jax.value_and_grad(wrap(graded), has_aux=True)(state["params"], x)
            return {**updated(optimizer, grads, state), "means": 0.9 * state["means"] + 0.1 * seen}, value

        return step

    state = {**state_of(kernels, optimizer), "means": means}
    return Program(make, (state, images), graded, (kernels, images))


def two_players() -> Program:
    """Two gradients one after the other, the first through a gradient (a penalty)."""
    optimizer = optax.adam(1e-4)
    few = LAYERS[:4]

    def critic_loss(critic, real, fake):
        slope = jax.grad(lambda x: forward(critic, x).sum())(0.5 * (real + fake))
        return forward(critic, fake).mean() - forward(critic, real).mean() + jnp.mean(slope**2)

    def make(wrap: Wrap):
        def step(state, real, noise):
            critic, maker = state["params"]
            first, by_critic = jax.value_and_grad(wrap(critic_loss))(critic, real, forward(maker, noise))
            made = lambda maker, critic, noise: -forward(critic, forward(maker, noise)).mean()
            second, by_maker = jax.value_and_grad(wrap(made))(maker, critic, noise)
            return updated(optimizer, (by_critic, by_maker), state), (first, second)

        return step

    return Program(make, (state_of((few, few), optimizer), X, X), critic_loss, (few, X, X))


def epochs() -> Program:
    """Epochs of shuffled mini-batches: a gradient step in a scan of a scan."""
    optimizer = optax.adam(3e-4)

    def make(wrap: Wrap):
        def step(state, x, key):
            def minibatch(state, chosen):
                value, grads = jax.value_and_grad(wrap(loss))(state["params"], x[chosen])
                return updated(optimizer, grads, state), value

            def epoch(state, key):
                return jax.lax.scan(minibatch, state, jax.random.permutation(key, 2 * BATCH).reshape(2, BATCH))

            return jax.lax.scan(epoch, state, jax.random.split(key, 2))

        return step

    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    return Program(make, (state_of(LAYERS, optimizer), shape(2 * BATCH, WIDTH), key), loss, (LAYERS, X))


def low_rank() -> Program:
    """A frozen base in bfloat16, adapters of low rank trained."""
    optimizer = optax.adam(1e-3)
    base = jax.tree.map(lambda s: shape(*s.shape, dtype=jnp.bfloat16), LAYERS)
    adapters = jax.tree.map(lambda s: (shape(s.shape[0], 4), shape(4, s.shape[1])), LAYERS)

    def adapted(adapters, base, x):
        pairs = jax.tree.leaves(
            adapters, is_leaf=lambda leaf: isinstance(leaf, tuple) and not isinstance(leaf[0], tuple)
        )
        leaves, tree = jax.tree.flatten(base)
        return loss(jax.tree.unflatten(tree, [w.astype(a.dtype) + a @ b for w, (a, b) in zip(leaves, pairs)]), x)

    def make(wrap: Wrap):
        def step(state, base, x):
            value, grads = jax.value_and_grad(wrap(adapted))(state["params"], base, x)
            return updated(optimizer, grads, state), value

        return step

    return Program(make, (state_of(adapters, optimizer), base, X), adapted, (adapters, base, X))


def distilled() -> Program:
    """A teacher that is an average of the parameters, and needs no gradient."""
    optimizer = optax.lion(1e-4)

    def beside(layers, target, x):
        return jnp.mean((forward(layers, x) - target) ** 2)

    def make(wrap: Wrap):
        def step(state, x):
            target = forward(state["teacher"], x)
            value, grads = jax.value_and_grad(wrap(beside))(state["params"], target, x)
            new = updated(optimizer, grads, state)
            average = jax.tree.map(lambda t, p: 0.99 * t + 0.01 * p, state["teacher"], new["params"])
            return {**new, "teacher": average}, value

        return step

    return Program(make, ({**state_of(LAYERS, optimizer), "teacher": LAYERS}, X), beside, (LAYERS, X, X))


PROGRAMS = {
    make.__name__: make
    for make in (gated, scanned, accumulated, convolved, two_players, epochs, low_rank, distilled)
}  # fmt: skip


def flops(jaxpr) -> float:
    """Of the contractions of one run, those of loops as often as they run; of a conditional, the dearest branch."""
    total = 0.0
    for eqn in jaxpr.eqns:
        inside = [flops(body) for body in jaxprs.subjaxprs(eqn)]
        if eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(inside)
        elif eqn.primitive.name == "cond":
            total += max(inside)
        else:
            total += sum(inside) + (equation_flops(eqn) if is_contraction(eqn) else 0.0)
    return total


def measured(jitted, args) -> tuple[int, float]:
    """(compiled peak, FLOPs) of what `jax.jit` or `jaxremat.jit` returned."""
    traced = jitted.trace(*args)
    return peak_bytes(traced.lower().compile()), flops(traced.jaxpr.jaxpr)


def at_equal_peak(written: Callable, program: Program, limit: int) -> tuple[int, float]:
    """What `measured` says of the planned step; the least that was reached, and no FLOPs, where it is refused."""
    try:
        return measured(jaxremat.jit(written, budget=limit, donate_argnums=0), program.args)
    except jaxremat.BudgetError as error:
        return error.min_peak_bytes, 0.0


def planning_seconds(plan: Callable[[], Any]) -> float:
    """Of the processor, where nothing is remembered of plans that were made before."""
    PLANS.clear()
    start = time.process_time()
    with contextlib.suppress(jaxremat.BudgetError):
        plan()
    return time.process_time() - start


def compare(name: str, share: float) -> str:
    """One line of the table."""
    program = PROGRAMS[name]()
    has_aux = name == "convolved"
    written = program.step(lambda loss: loss)
    peak, least = measured(jax.jit(written, donate_argnums=0), program.args)
    wrap = lambda loss: jaxremat.remat(loss, budget=share, verify="replay", has_aux=has_aux)
    inside, by_loss = measured(jax.jit(program.step(wrap), donate_argnums=0), program.args)
    limit = math.ceil(1000 * inside / peak) * peak // 1000
    whole, by_step = at_equal_peak(written, program, limit)
    alone = lambda: jaxremat.plan(program.loss, *program.loss_args, budget=share, verify="replay", has_aux=has_aux)
    trusted = jaxremat.jit(written, budget=limit, donate_argnums=0, verify="replay")
    seconds = planning_seconds(lambda: trusted.plan(*program.args)), planning_seconds(alone)
    extra = f"{by_step / least - 1:+.1%}" if by_step else "refused"
    return (
        f"| {name} | {share} | {inside / peak:.3f} | {by_loss / least - 1:+.1%} | {whole / peak:.3f} |"
        f" {extra} | {seconds[0]:.2f} s | {seconds[1]:.2f} s | {seconds[0] / seconds[1]:.1f} |"
    )


def main() -> None:
    print(
        "| program | share | loss planned: peak | FLOPs | step planned: peak | FLOPs | planning: step | loss | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in PROGRAMS:
        if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
            for share in SHARES:
                print(compare(name, share), flush=True)


if __name__ == "__main__":
    main()
