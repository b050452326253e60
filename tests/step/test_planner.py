import functools

import jax
import jax.numpy as jnp
import optax
import pytest
import step_programs

import jaxremat
from jaxremat.planner.schedules import APART
from jaxremat.planning.memory import PLANS
from jaxremat.step.planner import ProgramPlanner
from jaxremat.step.scheduling import StepSearch


def normalized():
    """Convolutions with batch statistics, whose values are as large as one another: memory comes in large pieces."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=dimensions
    )

    def loss(kernels, x):
        for k in kernels:
            h = conv(x, k)
            x = x + jax.nn.relu((h - h.mean((0, 1, 2))) * jax.lax.rsqrt(h.var((0, 1, 2)) + 1e-5))
        return jnp.mean(x**2)

    def step(kernels, x):
        value, grads = jax.value_and_grad(loss)(kernels, x)
        return jax.tree.map(lambda k, g: k - 0.1 * g, kernels, grads), value

    kernels, images = (
        jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32),
        jax.ShapeDtypeStruct((16, 32, 32, 32), jnp.float32),
    )
    return step, ([kernels] * 6, images)


def normalized_within(share):
    step, args = normalized()
    plan = jaxremat.jit(step, budget=share, donate_argnums=0, verify="replay").plan(*args)
    assert plan.peak_bytes <= plan.budget_bytes
    return plan


def test_what_is_replayed_higher_and_predicted_to_fit_is_found():
    """A few bytes more, .375 of its bytes, are enough for the same plan; it took 1.47 times longer within .37."""
    assert normalized_within(0.37).overhead == pytest.approx(normalized_within(0.4).overhead)


def test_what_fits_but_for_the_order_runs_in_another(monkeypatch):
    found = normalized_within(0.55)
    PLANS.clear()
    monkeypatch.setattr(ProgramPlanner, "_in_order_that_fits", lambda self, outcome, limit: outcome)
    assert found.overhead < 0.7 * normalized_within(0.55).overhead


def test_fewer_barriers_come_first():
    """What is made for the first time need not wait for a barrier, and is fused as in the step as it is written."""
    step, args = step_programs.deep(8, 4096)
    plan = jaxremat.jit(step, budget=0.6, donate_argnums=0, verify="replay").plan(*args)
    assert plan.outcome.schedule.barrier_scope == "sources"


def test_aims_next_to_one_another_are_searched_once(monkeypatch):
    step, args = step_programs.deep(8, 2048)
    jitted = jaxremat.jit(step, budget=0.7, donate_argnums=0, verify="replay")
    planner = jitted._planner(jitted._call(args, {}))
    asked = []
    fit = StepSearch.fit
    monkeypatch.setattr(StepSearch, "fit", lambda self, size: asked.append(size) or fit(self, size))
    grain = int((APART - 1) * planner.plain.replayed_bytes)
    aim = 120 * grain
    outcome = planner.fit(aim)
    assert planner.fit(aim + grain - 1) is outcome
    assert planner.fit(int(0.9 * outcome.replayed_bytes)) is not outcome
    assert len(asked) == 2


def routed(layers=6, rows=1024, width=64):
    """Layers that send rows to slots and fetch them back, as those of experts do: each scatters into zeros, twice."""

    def loss(ws, x, slots):
        for w, to in zip(ws, slots):
            sent = jnp.zeros((rows + 1, width)).at[to].add(jnp.repeat(x, 2, 0))
            x = x + jnp.tanh(jnp.sin(sent @ w) @ w)[to].reshape(rows // 2, 2, width).sum(1)
        return jnp.mean(x**2)

    def step(ws, x, slots):
        value, grads = jax.value_and_grad(loss)(ws, x, slots)
        return jax.tree.map(lambda w, g: w - 0.1 * g, ws, grads), value

    shape = lambda *lengths: jax.ShapeDtypeStruct(lengths, jnp.float32)
    slots = [jax.ShapeDtypeStruct((rows,), jnp.int32)] * layers
    return step, ([shape(width, width)] * layers, shape(rows // 2, width), slots)


def test_zeros_of_scatters_do_not_wait_beside_the_peak():
    """XLA:CPU makes all of them at the start: the least of this step was 1.0."""
    step, args = routed()
    plan = jaxremat.jit(step, budget="least", donate_argnums=0).plan(*args)
    assert plan.compiled.peak_bytes < 0.25 * plan.baseline_peak_bytes
    assert plan.peak_bytes == pytest.approx(plan.compiled.peak_bytes, rel=0.05)


def mixture(experts=8, rows=1024, width=64, layers=3):
    """Experts that all compute, two of which count for each row."""

    optimizer = optax.adamw(1e-3)

    def block(layer, x):
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        chances, chosen = jax.lax.top_k(jax.nn.softmax(h @ layer["router"]), 2)
        gates = (jax.nn.one_hot(chosen, experts) * chances[..., None]).sum(-2)
        hidden = jax.nn.gelu(jnp.einsum("bw,ewn->ben", h, layer["up"]))
        return x + jnp.einsum("ben,enw,be->bw", hidden, layer["down"], gates)

    def step_of(block):
        def loss(params, x):
            for layer in params:
                x = block(layer, x)
            return jnp.mean(x**2)

        def step(state, x):
            params, opt = state
            value, grads = jax.value_and_grad(loss)(params, x)
            updates, opt = optimizer.update(grads, opt, params)
            return (optax.apply_updates(params, updates), opt), value

        return step

    shape = lambda *lengths: jax.ShapeDtypeStruct(lengths, jnp.float32)
    layer = {
        "router": shape(width, experts),
        "up": shape(experts, width, 2 * width),
        "down": shape(experts, 2 * width, width),
    }
    params = [layer] * layers
    args = (params, jax.eval_shape(optimizer.init, params)), shape(rows, width)
    return step_of(block), step_of(jax.checkpoint(block)), args


def test_least_of_a_dense_mixture_is_below_checkpoints_by_hand():
    """Whole segments behind one barrier are fused as they were written: the least took a fifth more than by hand."""
    step, by_hand, args = mixture()
    compiled = jax.jit(by_hand, donate_argnums=0).lower(*args).compile().memory_analysis()
    hand_bytes = compiled.argument_size_in_bytes + compiled.output_size_in_bytes + compiled.temp_size_in_bytes
    plan = jaxremat.jit(step, budget="least", donate_argnums=0).plan(*args)
    assert plan.compiled.peak_bytes <= hand_bytes - compiled.alias_size_in_bytes
    assert plan.overhead < 1 / 3


def test_least_of_two_layers_is_below_checkpoints_by_hand():
    """Each is as large as all that is kept: what kernels compute on the way was most of what was replayed."""

    def step_of(layer):
        def loss(weights, x):
            made = x
            for w in weights[:-1]:
                made = layer(made, w)
            return ((made @ weights[-1] - x) ** 2).mean()

        def step(weights, x):
            value, gradients = jax.value_and_grad(loss)(weights, x)
            return [w - 0.1 * g for w, g in zip(weights, gradients)], value

        return step

    layer = lambda x, w: jax.nn.gelu(x @ w)
    weights = [jax.ShapeDtypeStruct(pair, jnp.float32) for pair in ((128, 512), (512, 512), (512, 128))]
    args = weights, jax.ShapeDtypeStruct((2048, 128), jnp.float32)
    compiled = jax.jit(step_of(jax.checkpoint(layer)), donate_argnums=0).lower(*args).compile().memory_analysis()
    hand_bytes = compiled.argument_size_in_bytes + compiled.output_size_in_bytes + compiled.temp_size_in_bytes
    plan = jaxremat.jit(step_of(layer), budget="least", donate_argnums=0).plan(*args)
    assert plan.compiled.peak_bytes <= hand_bytes - compiled.alias_size_in_bytes


def penalized(layers=4, rows=2048, width=64):
    """Two players, of which one is held to a slope: a gradient of a gradient, then another gradient."""

    def forward(ws, x):
        for up, down in ws:
            x = x + jax.nn.silu(x @ up) @ down
        return x

    def step(params, real, noise):
        critic, maker = params

        def critic_loss(critic):
            fake = forward(maker, noise)
            slope = jax.grad(lambda x: forward(critic, x).sum())(0.5 * (real + fake))
            return forward(critic, fake).mean() - forward(critic, real).mean() + jnp.mean(slope**2)

        by_critic = jax.grad(critic_loss)(critic)
        by_maker = jax.grad(lambda maker: -forward(critic, forward(maker, noise)).mean())(maker)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, (by_critic, by_maker))

    shape = lambda *lengths: jax.ShapeDtypeStruct(lengths, jnp.float32)
    player = [(shape(width, 2 * width), shape(2 * width, width))] * layers
    return step, ((player, player), shape(rows, width), shape(rows, width))


def test_what_one_round_of_cuts_leaves_too_high_is_cut_again():
    """Only as far as the budget asks for: the smallest schedule takes far more time."""
    step, args = penalized()
    jitted = jaxremat.jit(step, budget=0.4, donate_argnums=0, verify="replay")
    planner = jitted._planner(jitted._call(args, {}))
    aim = int(0.3 * planner.plain.replayed_bytes)
    found = planner.fit(aim)
    assert found.replayed_bytes <= aim
    assert found.cost < 1.5 * planner.plain.cost < planner.smallest.cost
